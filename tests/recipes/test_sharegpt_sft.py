"""torchtune's stock recipe trains on a ShareGPT file with this project's config and tokenizer."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from grpo_home import TUNE
from tiny import write_tiny_model

from tt_reasoning.sharegpt import Turn, list_lines, to_record, write_once

CONFIG = Path(__file__).parents[2] / "configs" / "135M_sharegpt_sft_cpu.yaml"
TEXT = "<|begin_of_thought|>\n2 or 4?\n<|end_of_thought|>\n\n<|begin_of_solution|>\n4\n<|end_of_solution|>"


def test_two_steps_on_a_sharegpt_file_learn_it_and_leave_a_model(tmp_path: Path) -> None:
    model, data = write_tiny_model(tmp_path / "model"), tmp_path / "train_data.json"
    write_once(data, lambda: list_lines(to_record(Turn(f"{n} + 2?", TEXT, {}), "Think.") for n in range(8)))
    settings = [
        f"checkpointer.checkpoint_dir={model}", f"output_dir={tmp_path / 'out'}", f"dataset.data_files={data}",
        "model._component_=tt_reasoning.models.build_from_hf", f"model.path={model}", "epochs=1",
        "max_steps_per_epoch=2", "gradient_accumulation_steps=1", "optimizer.lr=1e-2",
        "lr_scheduler.num_warmup_steps=0",
    ]  # fmt: skip
    command = [*TUNE, "full_finetune_single_device", "--config", str(CONFIG), *settings]
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    (log,) = (tmp_path / "out" / "logs").glob("*.txt")
    losses = [float(loss) for loss in re.findall(r"loss:([\d.]+)", log.read_text())]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert (tmp_path / "out" / "epoch_0" / "model-00001-of-00001.safetensors").exists()
