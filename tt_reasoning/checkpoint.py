"""Checkpoints that are whole or not there: a Hugging Face folder a step, with the state to go on from it.

``OUTPUT/step_N/`` is what vLLM, transformers and ``evaluate`` load as it is (LoRA merged; the adapter alone is in
``step_N/adapter`` as PEFT loads it, a value head in ``step_N/value_head``); ``training_state.pt`` in it holds the
optimizer for an exact resume. A folder is written under another name and renamed at the end. One that was damaged
later, by a full disk or a copy cut short, is set aside as ``step_N.damaged``, and the one before it is gone on from.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchtune.training import FullModelHFCheckpointer

from tt_reasoning.aggregation import CARD
from tt_reasoning.errors import UserError
from tt_reasoning.lora import adapter_names, is_lora, save_adapter
from tt_reasoning.models.value_head import head_names, save_head
from tt_reasoning.models.weights import StateDict, load_weights, save_weights
from tt_reasoning.store import sync_folder, write_json
from tt_reasoning.training import (
    Process,
    adapter_state,
    from_main,
    full_model_state,
    full_optimizer_state,
    head_state,
    load_model_state,
    load_optimizer_state,
    run_on_main,
    wait_for_main,
)

STATE, ADAPTER, BEST = "training_state.pt", "adapter", "best"
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
    optimizer: Optimizer | Sequence[Optimizer],
    scheduler: LRScheduler | None,
    source: str,
    process: Process,
    card: dict[str, Any],
    *,
    card_name: str = CARD,
    state: dict[str, Any] | None = None,
) -> Path:
    """Write ``output/step_N`` whole or not at all, in the dtype that the weights are held in (``pick_dtype``).

    Every process must call it.

    Args:
        source: the Hugging Face folder that training began from; config and tokenizer are copied from it.
        card: what a reader of the folder needs to know, written to ``card_name``.
        state: plain values (numbers, texts, lists and dicts of them) that ``resume_from`` hands back.
    """
    folder = output / f"step_{step}"
    weights, optimizer_state = full_model_state(model), full_optimizer_state(model, optimizer)
    adapters = adapter_state(model) if is_lora(model) else None
    head = head_state(model)
    if process.is_main:
        temporary = output / f".step_{step}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_weights(weights, source, temporary)
        if adapters is not None:
            save_adapter(adapters, model, source, temporary / ADAPTER)
        if head:
            save_head(head, model, temporary)
        for name in _COPIED:
            if (Path(source) / name).exists():
                shutil.copy(Path(source) / name, temporary / name)
        write_json(temporary / card_name, card)
        content = {
            "step": step,
            "optimizer": optimizer_state,
            "adapters": adapters,
            "value_head": head,
            "scheduler": scheduler.state_dict() if scheduler else None,
            "state": state or {},
        }
        torch.save(content, temporary / STATE)
        for path in [*temporary.rglob("*"), temporary]:
            sync_folder(path)  # files too: fsync asks for no more than an open descriptor
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        sync_folder(output)
    wait_for_main(process)
    return folder


class LoraCheckpointer(FullModelHFCheckpointer):
    """torchtune's checkpointer for its stock LoRA recipes, with the adapter in a folder of its own.

    torchtune writes the adapter beside the weights that it was merged into. Where PEFT is installed, transformers then
    loads that folder with the adapter applied twice. Here it is in ``epoch_N/adapter``, as in this pack's checkpoints,
    and names the model that it belongs to; ``adapter_model.pt``, from which torchtune resumes, stays where it was.

    Example (YAML):
        ``checkpointer: {_component_: tt_reasoning.checkpoint.LoraCheckpointer, checkpoint_dir: models/smollm2-135m,
        checkpoint_files: [model.safetensors], model_type: LLAMA3_2, output_dir: outputs/sft}``
    """

    def save_checkpoint(
        self,
        state_dict: dict[str, Any],
        epoch: int,
        intermediate_checkpoint: bool = False,
        adapter_only: bool = False,
    ) -> None:
        """Write ``epoch_N``; with ``adapter_only`` there are no merged weights, and it is left as torchtune has it."""
        super().save_checkpoint(state_dict, epoch, intermediate_checkpoint, adapter_only)
        folder = Path(self._output_dir) / f"epoch_{epoch}"
        config = folder / "adapter_config.json"
        if adapter_only or not config.exists():
            return
        (folder / ADAPTER).mkdir(exist_ok=True)
        card = json.loads(config.read_text())
        card |= {"base_model_name_or_path": str(self._checkpoint_dir), "task_type": "CAUSAL_LM"}
        write_json(folder / ADAPTER / config.name, card)
        os.replace(folder / "adapter_model.safetensors", folder / ADAPTER / "adapter_model.safetensors")
        config.unlink()


def agree_on_last_step(output: Path, process: Process) -> int:
    """The step of the newest whole checkpoint, 0 where there is none; every process must call it.

    The main process looks, so on several nodes the folder need be on the first alone. A newer folder that is
    damaged is renamed to ``step_N.damaged``, never deleted, and said.
    """
    return from_main(_newest_whole(output) if process.is_main else 0, process)


def _newest_whole(output: Path) -> int:
    for step in reversed(_steps(output)):
        folder = output / f"step_{step}"
        if (damage := _damage(folder)) is None:
            return step
        aside, count = folder.with_name(f"{folder.name}.damaged"), 1
        while aside.exists():
            count += 1
            aside = folder.with_name(f"{folder.name}.damaged_{count}")
        folder.rename(aside)
        print(f"{folder} is damaged ({damage}): kept as {aside.name}, going on from the checkpoint before it")
    return 0


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None where nothing is: by the files' tables of contents, not all of them.

    Both formats say how long the file has to be, so a file cut short is found without reading it.
    """
    try:
        with zipfile.ZipFile(folder / STATE) as archive:  # what torch.save writes
            for name in archive.namelist():
                if name.endswith("/data.pkl"):  # everything but the tensors, by its checksum
                    archive.read(name)
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        return f"{STATE}: {error}"
    wanted = {"model.safetensors"}
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        index = folder / "model.safetensors.index.json"
        if index.exists():
            wanted = {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError) as error:
        return f"config.json or the index of the weights: {error}"
    for file in sorted({folder / name for name in wanted} | {*folder.rglob("*.safetensors")}):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            return f"{file.name}: {error}"
    return None


def _steps(output: Path) -> list[int]:
    """The steps of all checkpoints, oldest first."""
    found = (re.fullmatch(r"step_(\d+)", path.name) for path in output.glob("step_*"))
    return sorted(int(match[1]) for match in found if match)


def mark_best(output: Path, step: int) -> None:
    """Let ``output/best`` point at ``step_N``."""
    temporary = output / f".{BEST}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(f"step_{step}")
    os.replace(temporary, output / BEST)
    sync_folder(output)


def prune_checkpoints(output: Path, keep: int | None, best: int | None = None) -> None:
    """Remove all but the newest ``keep`` checkpoints and step ``best``; None keeps every one."""
    steps = [step for step in _steps(output) if (output / f"step_{step}" / STATE).exists()]
    for step in steps[:-keep] if keep else ():
        if step != best:
            shutil.rmtree(output / f"step_{step}")


def keep_best(output: Path, best: int | None, keep: int | None) -> None:
    """Mark checkpoint ``step_<best>``, if it is one, and remove all others but the newest ``keep``.

    The best may be an earlier one: a kill may have come between its checkpoint and its mark.
    """
    if best:
        mark_best(output, best)
    prune_checkpoints(output, keep, best=best)


def remove_torn_checkpoints(output: Path) -> None:
    """Remove what a kill left of a checkpoint that was being written."""
    for folder in output.glob(".step_*.tmp"):
        shutil.rmtree(folder)


def resume_from(
    output: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    scheduler: LRScheduler | None,
    process: Process,
) -> dict[str, Any]:
    """Load weights, optimizer and schedule of ``output/step_N``; returns the ``state`` that was saved with them.

    Every process must call it; the main process alone reads. A LoRA model takes its adapters from there, its
    base weights it has from the checkpoint that the run began with.

    Raises:
        UserError: a checkpoint whose adapters or value head are not this model's.
    """
    folder, names = output / f"step_{step}", adapter_names(model)
    weights: StateDict = {}
    saved: dict[str, Any] = {}

    def read() -> None:
        saved.update(torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True))
        adapters = saved["adapters"] or {}
        if sorted(adapters) != sorted(names):
            raise UserError(f"{folder}: its LoRA adapters are not those of the config's model; set another output_dir")
        weights.update(adapters or load_weights(folder))
        head = saved.get("value_head", {})
        if sorted(head) != sorted(head_names(model)):
            raise UserError(f"{folder}: its value head is not that of the config's model; set another output_dir")
        weights.update(head)

    run_on_main(process, read)
    load_model_state(model, weights, strict=not names)
    load_optimizer_state(model, optimizer, saved.get("optimizer", {}))
    schedule, state = from_main((saved.get("scheduler"), saved.get("state")), process)
    if scheduler:
        scheduler.load_state_dict(schedule)
    return state
