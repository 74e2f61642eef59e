"""torchtune's stock DPO recipe on the CPU with this project's config, pairs and tokenizer: its folder is a model."""

from __future__ import annotations

import json
import math
import re
import subprocess
from pathlib import Path

import pytest
import torch
from grpo_home import TUNE, environment
from tiny import write_tiny_model

from tt_reasoning.models import build_from_hf
from tt_reasoning.models.weights import check_shapes, load_weights

CONFIG = Path(__file__).parents[2] / "configs" / "135M_dpo_cpu.yaml"


def test_the_config_learns_to_prefer_the_chosen_side_and_leaves_a_hugging_face_folder(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "2 + 2?"}]
    pair = {"conversations": turns, "chosen": {"from": "gpt", "value": "It is 4."},
            "rejected": {"from": "gpt", "value": "Is it 4? Wait. Yes, it is 4."}}  # fmt: skip
    (tmp_path / "fcs-conversations.json").write_text(json.dumps([pair] * 5))
    settings = [
        f"checkpointer.checkpoint_dir={model}", f"output_dir={tmp_path / 'out'}",
        f"dataset.source={tmp_path / 'fcs-conversations.json'}",
        "model._component_=tt_reasoning.models.lora_from_hf", f"model.path={model}",
        "gradient_accumulation_steps=1", "max_steps_per_epoch=4", "optimizer.lr=1e-2",
        "lr_scheduler.num_warmup_steps=1",
    ]  # fmt: skip
    command = [*TUNE, "lora_dpo_single_device", "--config", str(CONFIG), *settings]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(), check=False)
    assert result.returncode == 0, result.stderr
    (log,) = (tmp_path / "out" / "logs").glob("*.txt")
    losses = [float(loss) for loss in re.findall(r"loss:([\d.]+)", log.read_text())]
    # The adapter is zero at first and the first step of the warm-up has learning rate 0: the policy is its reference.
    assert losses[:2] == pytest.approx([math.log(2)] * 2, abs=1e-5)
    assert len(losses) == 4 and losses[3] < losses[2] < 0.6
    margins = [float(margin) for margin in re.findall(r"rewards/margins:(-?[\d.]+)", log.read_text())]
    assert margins[0] == 0 and margins[3] > 0
    left = tmp_path / "out" / "epoch_0"
    weights, start = load_weights(left), load_weights(model)
    check_shapes(build_from_hf(str(left)), weights, left)
    assert not torch.equal(weights["layers.0.attn.q_proj.weight"], start["layers.0.attn.q_proj.weight"])
    assert torch.equal(weights["norm.scale"], start["norm.scale"])  # only the layers with an adapter
