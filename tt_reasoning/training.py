"""Processes, models and optimizers for every recipe: plain functions, one process or several (FSDP2)."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer
from torchtune import config
from torchtune.modules import TransformerDecoder, TransformerSelfAttentionLayer
from torchtune.training import get_shard_conditions, is_distributed, set_activation_checkpointing, shard_model
from torchtune.training.precision import PRECISION_STR_TO_DTYPE

from tt_reasoning.errors import UserError
from tt_reasoning.models.weights import StateDict, check_shapes, load_weights


class Process(NamedTuple):
    """This process among those of a run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0


def start_process(device: str) -> Process:
    """Join the process group that torchrun prepared, or be alone.

    Args:
        device: ``cpu``, ``cuda``, or ``auto`` for CUDA where there is one.

    Raises:
        UserError: ``cuda`` without a GPU, or more processes than GPUs.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no GPU here; set device=cpu or device=auto")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if device == "cuda" and local_rank >= torch.cuda.device_count():
        raise UserError(f"more processes than GPUs: --nproc_per_node is above {torch.cuda.device_count()}")
    place = torch.device(device, local_rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(place)
    if not is_distributed():
        return Process(0, 1, place)
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    return Process(dist.get_rank(), dist.get_world_size(), place)


def stop_process() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_main(process: Process) -> None:
    """Hold every process until all have come here."""
    if process.world_size > 1:
        dist.barrier()


def run_on_main(process: Process, check: Callable[[], object]) -> None:
    """Call ``check`` on the main process alone; its ``UserError`` is raised on all of them.

    Without it the others would wait for a process that is gone, and end with an error that hides the cause.
    """
    message: list[str | None] = [None]
    if process.is_main:
        try:
            check()
        except UserError as error:
            message = [str(error)]
    if process.world_size > 1:
        dist.broadcast_object_list(message)
    if message[0] is not None:
        raise UserError(message[0])


def pick_dtype(name: str) -> torch.dtype:
    """``bf16`` or ``fp32``, the two that this pack trains in.

    >>> pick_dtype("bf16")
    torch.bfloat16
    """
    return PRECISION_STR_TO_DTYPE[name]


def build_model(
    model_cfg: DictConfig,
    checkpoint: str,
    process: Process,
    dtype: torch.dtype,
    *,
    trainable: bool = True,
    activation_checkpointing: bool = False,
) -> TransformerDecoder:
    """Build a decoder, load a Hugging Face folder's weights into it, shard it over the processes.

    It is built without memory first, so that the shapes are checked before anything is allocated; only
    the main process reads the weights.

    Raises:
        UserError: weights of another size than the model's.
    """
    with torch.device("meta"):
        model = config.instantiate(model_cfg).to(dtype)
    weights: StateDict = {}

    def read() -> None:
        weights.update(load_weights(checkpoint))
        check_shapes(model, weights, checkpoint)

    run_on_main(process, read)
    model.requires_grad_(trainable)
    if activation_checkpointing:
        set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})
    if process.world_size > 1:
        shard_model(model, [partial(get_shard_conditions, names_to_match=None)], cpu_offload=False)
    model.to_empty(device=process.device)
    for module in model.modules():
        if hasattr(module, "rope_init"):  # not in the state dict, so to_empty left it blank
            with process.device:
                module.rope_init()
    load_model_state(model, weights)
    return model.train(trainable)


def load_model_state(model: nn.Module, weights: StateDict) -> None:
    """Load full weights (read on the main process, empty on the others) into a whole or sharded model."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=dist.is_initialized())
    set_model_state_dict(model, weights, options=options)


def full_model_state(model: nn.Module) -> StateDict:
    """The whole weights on the CPU of the main process, empty on the others. Every process must call it."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def full_optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The whole optimizer state by parameter name, on the CPU of the main process. Every process must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(model, optimizer, options=options)


def load_optimizer_state(model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a whole optimizer state (read on the main process, empty on the others)."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=dist.is_initialized())
    set_optimizer_state_dict(model, optimizer, state, options=options)


def sum_over_processes(values: dict[str, float], process: Process) -> dict[str, float]:
    """Each value summed over the processes; a name that a process lacks counts as 0 there."""
    if process.world_size == 1:
        return values
    parts: list[dict[str, float]] = [{}] * process.world_size
    dist.all_gather_object(parts, values)
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}


def gather_values(value: float, process: Process) -> list[float]:
    """A number of every process, in their order, on all of them."""
    values: list[float] = [value] * process.world_size
    if process.world_size > 1:
        dist.all_gather_object(values, value)
    return values


def gather_rows(rows: list[dict[str, Any]], process: Process) -> list[dict[str, Any]]:
    """The rows of all processes on the main one, in the order of the processes; empty on the others."""
    if process.world_size == 1:
        return rows
    gathered: list[Any] = [None] * process.world_size
    dist.gather_object(rows, gathered if process.is_main else None)
    return [row for part in gathered if part for row in part]


def clip_gradients(model: nn.Module, max_norm: float | None) -> float:
    """Clip the gradients of all parameters to a joint norm; returns the norm before clipping."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), float("inf") if max_norm is None else max_norm)
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole.item()
