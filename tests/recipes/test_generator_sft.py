"""torchtune's stock recipe on the CPU with this project's config, data set and tokenizer: its folder is a model."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import torch
from grpo_home import TUNE
from tiny import write_tiny_model

from tt_reasoning.models import ChatTokenizer, build_from_hf
from tt_reasoning.models.weights import check_shapes, load_weights, read_hf_config

CONFIG = Path(__file__).parents[2] / "configs" / "135M_generator_sft_cpu.yaml"


def test_the_generators_config_learns_its_rows_and_leaves_a_hugging_face_folder(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    row = {"question": "2 + 3?", "model_response": "2 + 3 = 5\nThe answer is: 5", "is_correct": True}
    (tmp_path / "sft.jsonl").write_text((json.dumps(row) + "\n") * 16)
    settings = [
        f"checkpointer.checkpoint_dir={model}", f"output_dir={tmp_path / 'out'}", f"dataset.source={tmp_path}",
        "model._component_=tt_reasoning.models.build_from_hf", f"model.path={model}", "epochs=1", "batch_size=1",
        "gradient_accumulation_steps=1", "optimizer.lr=1e-2", "lr_scheduler.num_warmup_steps=1",
    ]  # fmt: skip
    command = [*TUNE, "full_finetune_single_device", "--config", str(CONFIG), *settings]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    (log,) = (tmp_path / "out" / "logs").glob("*.txt")
    losses = [float(loss) for loss in re.findall(r"loss:([\d.]+)", log.read_text())]
    assert len(losses) == 16 and losses[-1] < losses[0] / 2
    left = tmp_path / "out" / "epoch_0"
    weights = load_weights(left)
    check_shapes(build_from_hf(str(left)), weights, left)
    assert not torch.equal(weights["norm.scale"], load_weights(model)["norm.scale"])
    assert read_hf_config(left) == read_hf_config(model)
    assert ChatTokenizer(left).encode("2 + 3") == ChatTokenizer(model).encode("2 + 3")
