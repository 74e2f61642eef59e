"""Checkpoints that are whole or not there: a Hugging Face folder a step, with the state to go on from it.

``OUTPUT/step_N/`` is what vLLM, transformers and ``evaluate`` load as it is; ``training_state.pt`` in it
holds the optimizer for an exact resume. A folder is written under another name and renamed at the end.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tt_reasoning.models.weights import load_weights, save_weights
from tt_reasoning.store import sync_folder, write_json
from tt_reasoning.training import (
    Process,
    full_model_state,
    full_optimizer_state,
    load_model_state,
    load_optimizer_state,
    wait_for_main,
)

STATE = "training_state.pt"
_COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)


def save_checkpoint(
    output: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    source: str,
    process: Process,
    card: dict[str, Any],
) -> Path:
    """Write ``output/step_N`` whole or not at all. Every process must call it.

    Args:
        source: the Hugging Face folder that training began from; config and tokenizer are copied from it.
        card: what a reader of the folder needs to know, written to ``aggregator.json``.
    """
    folder = output / f"step_{step}"
    weights, state = full_model_state(model), full_optimizer_state(model, optimizer)
    if process.is_main:
        temporary = output / f".step_{step}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_weights(weights, source, temporary)
        for name in _COPIED:
            if (Path(source) / name).exists():
                shutil.copy(Path(source) / name, temporary / name)
        write_json(temporary / "aggregator.json", card)
        schedule = scheduler.state_dict() if scheduler else None
        torch.save({"step": step, "optimizer": state, "scheduler": schedule}, temporary / STATE)
        for file in temporary.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        sync_folder(output)
    wait_for_main(process)
    return folder


def last_step(output: Path) -> int:
    """The step of the newest whole checkpoint, 0 where there is none."""
    return max(_steps(output), default=0)


def _steps(output: Path) -> list[int]:
    """The steps of all whole checkpoints, oldest first."""
    found = (re.fullmatch(r"step_(\d+)", path.name) for path in output.glob("step_*") if (path / STATE).exists())
    return sorted(int(match[1]) for match in found if match)


def prune_checkpoints(output: Path, keep: int | None) -> None:
    """Remove all but the newest ``keep`` checkpoints; None keeps every one."""
    for step in _steps(output)[:-keep] if keep else ():
        shutil.rmtree(output / f"step_{step}")


def remove_torn_checkpoints(output: Path) -> None:
    """Remove what a kill left of a checkpoint that was being written."""
    for folder in output.glob(".step_*.tmp"):
        shutil.rmtree(folder)


def resume_from(
    output: Path, step: int, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None, process: Process
) -> None:
    """Load weights, optimizer and schedule of ``output/step_N``. Every process must call it."""
    folder = output / f"step_{step}"
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True)
    load_model_state(model, load_weights(folder) if process.is_main else {})
    load_optimizer_state(model, optimizer, state["optimizer"] if process.is_main else {})
    if scheduler:
        scheduler.load_state_dict(state["scheduler"])
