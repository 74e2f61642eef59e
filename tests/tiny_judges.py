"""Tiny random judges of every form, as Hugging Face folders."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import write_tiny_model

from tt_reasoning.judges import CARD, JudgeCard, card_row
from tt_reasoning.models import build_from_hf
from tt_reasoning.models.value_head import ValueHead, attach_head, head_names, save_head


def write_card_judge(folder: Path, *, hidden_size: int = 32, **card: object) -> Path:
    """A judge of this pack with labels + and - behind every line."""
    write_tiny_model(folder, hidden_size=hidden_size)
    (folder / CARD).write_text(json.dumps(card_row(JudgeCard(**{"head": "tokens", "prompt": "steps"} | card))))
    return folder


def write_value_judge(folder: Path, *, squash: bool = True) -> Path:
    """A verifier of this pack: a random value head, read at every token."""
    write_card_judge(folder, head="value", step_token="", outcome=True, squash=squash)
    model = build_from_hf(str(folder))
    attach_head(model, partial(ValueHead, meaning="the answer is correct"))
    torch.nn.init.normal_(model.value_head.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    save_head({name: model.state_dict()[name] for name in head_names(model)}, model, folder)
    return folder


def write_math_shepherd(folder: Path) -> Path:
    """A Mistral with the step tag in its vocabulary."""
    return write_tiny_model(folder, model_type="mistral", added=["ки"])


def write_rlhflow(folder: Path) -> Path:
    """A chat model, told by its name alone."""
    return write_tiny_model(folder, model_type="llama")


def write_qwen_prm(folder: Path, *, hidden_size: int = 32) -> Path:
    """A Qwen2 with a head of two classes in place of the vocabulary, as transformers writes it."""
    from transformers import Qwen2Config, Qwen2Model

    write_tiny_model(folder, model_type="qwen2", added=["<extra_0>"], hidden_size=hidden_size)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Qwen2ForProcessRewardModel"], "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model, head = Qwen2Model(Qwen2Config.from_pretrained(folder)), qwen_head(config["hidden_size"])
    for parameter in [*model.parameters(), *head.parameters()]:
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    weights |= {f"score.{name}": tensor for name, tensor in head.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def qwen_head(width: int) -> torch.nn.Sequential:
    """The head of the published model, by its own description."""
    return torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))
