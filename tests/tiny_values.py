"""Tiny random value models (Q#), as Hugging Face folders."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from tiny import write_tiny_model

from tt_reasoning.guidance import CARD, ValueCard, value_card_row
from tt_reasoning.models import build_from_hf
from tt_reasoning.models.value_head import ValueHead, attach_head, head_names, save_head


def write_value_model(folder: Path, *, seed: int = 1, hidden_size: int = 32, **card: object) -> Path:
    """A value model whose outputs differ much from token to token."""
    write_tiny_model(folder, seed=seed, hidden_size=hidden_size)
    filled = ValueCard(**{"head": "V", "loss": "bce", "prompt": "steps", "num_atoms": 5} | card)
    (folder / CARD).write_text(json.dumps(value_card_row(filled)))
    model = build_from_hf(str(folder))
    columns = model.tok_embeddings.num_embeddings if filled.head == "Q" else None
    attach_head(model, partial(ValueHead, num_values=filled.num_values, num_columns=columns, meaning="return"))
    torch.nn.init.normal_(model.value_head.weight, std=0.5, generator=torch.Generator().manual_seed(seed))
    save_head({name: model.state_dict()[name] for name in head_names(model)}, model, folder)
    return folder
