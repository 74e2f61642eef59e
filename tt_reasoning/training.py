"""Processes, models and optimizers for every recipe: plain functions, one process or several (FSDP2)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torchtune import config
from torchtune.modules import MultiHeadAttention, TransformerDecoder, TransformerSelfAttentionLayer
from torchtune.training import get_shard_conditions, is_distributed, set_activation_checkpointing

from tt_reasoning.errors import UserError
from tt_reasoning.lora import adapter_names, check_lora, fresh_adapters, lora_layers, merged
from tt_reasoning.models.value_head import BuildHead, HeadInit, attach_head, first_head, head_names
from tt_reasoning.models.weights import StateDict, check_shapes, load_weights

T = TypeVar("T")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16_mixed": torch.float32}


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
    message: str | None = None
    if process.is_main:
        try:
            check()
        except UserError as error:
            message = str(error)
    if (said := from_main(message, process)) is not None:
        raise UserError(said)


def from_main(value: T, process: Process) -> T:
    """The main process's value, on all of them."""
    values = [value]
    if process.world_size > 1:
        dist.broadcast_object_list(values)
    return values[0]


def pick_dtype(name: str) -> torch.dtype:
    """What the weights are held in: ``bf16``, ``fp32``, or ``bf16_mixed`` (fp32 weights, bf16 arithmetic).

    >>> pick_dtype("bf16"), pick_dtype("bf16_mixed")
    (torch.bfloat16, torch.float32)
    """
    return _DTYPES[name]


def arithmetic(dtype: str, device: torch.device) -> AbstractContextManager[object]:
    """What forward passes and sampling run inside: bf16 arithmetic for ``bf16_mixed``, nothing for the others.

    Backward runs outside it. The block keeps bf16 copies of the weights while it lasts, so none may hold an
    optimizer step: one block a forward pass or a rollout.
    """
    if dtype == "bf16_mixed":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def build_model(
    model_cfg: DictConfig,
    checkpoint: str,
    process: Process,
    dtype: torch.dtype,
    *,
    trainable: bool = True,
    activation_checkpointing: bool = False,
    seed: int = 0,
    mixed: bool = False,
    value_head: BuildHead | None = None,
    head_init: HeadInit | None = None,
) -> TransformerDecoder:
    """Build a decoder, load a Hugging Face folder's weights into it, shard it over the processes.

    It is built without memory first, so that the shapes are checked before anything is allocated; only
    the main process reads the weights. Where the config places LoRA adapters, they alone are trained, and
    the value head.

    Args:
        seed: LoRA adapters and a random head begin the same for the same seed, on any number of processes.
        mixed: for ``bf16_mixed`` (with dtype fp32). What is not trained is held in bf16, as nothing is ever
            added to it, and a sharded model gathers its weights in bf16 and sums its gradients in fp32.
            Without it ``arithmetic`` alone does, at the memory and the traffic of fp32.
        value_head: builds the model's value head, such as ``partial(ValueHead, meaning="...")`` (fp32 in any
            dtype).
        head_init: what the head begins with (``first_head``); None takes ``checkpoint/value_head``, or zeros where
            there is none.

    Raises:
        UserError: weights of another size than the model's, LoRA that cannot be trained (``check_lora``), a value
            head of another size or meaning, an initialisation that it cannot have.
    """
    try:
        with torch.device("meta"):
            model = config.instantiate(model_cfg).to(dtype)
            if value_head is not None:
                attach_head(model, value_head)
    except UserError:
        raise
    except ValueError as error:  # torchtune's builders refuse LoRA on no module, or on tied output weights
        raise UserError(f"config key model: {error}") from None
    check_lora(model, model_cfg)
    weights: StateDict = {}

    def read() -> None:
        weights.update(load_weights(checkpoint))
        check_shapes(model, weights, checkpoint)
        weights.update(fresh_adapters(model, seed))
        if head:
            weights.update(first_head(model, weights, checkpoint, head_init, seed))

    adapters, head = adapter_names(model), head_names(model)
    run_on_main(process, read)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable and (not adapters or name in adapters or name in head))
        if mixed and not parameter.requires_grad and name not in head:
            parameter.data = parameter.data.to(torch.bfloat16)
    _share_rope(model)
    if activation_checkpointing:
        set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})
    if process.world_size > 1:
        _shard(model, mixed)
    model.to_empty(device=process.device)
    for module in model.modules():
        if hasattr(module, "rope_init"):  # not in the state dict, so to_empty left it blank
            with process.device:
                module.rope_init()
    load_model_state(model, weights)
    return model.train(trainable)


def _share_rope(model: nn.Module) -> None:
    """One table of rotations for all layers: torchtune's LoRA builders for Qwen2 make one a layer (34 MB in 7B)."""
    shared: dict[tuple, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, MultiHeadAttention) and (rope := module.pos_embeddings) is not None:
            key = (type(rope), rope.dim, rope.base, rope.max_seq_len)
            module.pos_embeddings = shared.setdefault(key, rope)


def _shard(model: nn.Module, mixed: bool) -> None:
    """FSDP2: a layer is gathered when it runs and let go afterwards (torchtune's shard_model takes no precision)."""
    policy = MixedPrecisionPolicy()
    if mixed:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for name, module in reversed(list(model.named_modules())):
        if get_shard_conditions(name, module):
            fully_shard(module, reshard_after_forward=True, mp_policy=policy)
    if head_names(model):
        fully_shard(model.value_head)  # apart from the output layer, as it stays in fp32
    fully_shard(model, reshard_after_forward=True, mp_policy=policy)


def load_model_state(model: nn.Module, weights: StateDict, *, strict: bool = True) -> None:
    """Load full weights (read on the main process, empty on the others) into a whole or sharded model.

    Args:
        strict: False leaves what ``weights`` lacks as it is.
    """
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=dist.is_initialized(), strict=strict)
    set_model_state_dict(model, weights, options=options)


def full_model_state(model: nn.Module) -> StateDict:
    """The weights as they are used, whole, LoRA merged, without the value head, on the CPU of the main process.

    Empty on the others. Every process must call it. Names and sharing of memory are those of ``deployable_state``.
    """
    return _gather_weights(model, keep=not dist.is_initialized() or dist.get_rank() == 0)


def deployable_state(model: nn.Module, process: Process) -> StateDict:
    """The weights as they are used, whole, LoRA merged, on the CPU of the first process of every node.

    Empty on the others. Every process must call it: a sharded parameter is gathered by all of them, one
    after another, so that the device holds one whole parameter at a time. The names are torchtune's, the
    values those that ``save_checkpoint`` writes. Where the model itself is on a CPU the tensors may share
    its memory: copy them to keep them past the next optimizer step.
    """
    return _gather_weights(model, keep=process.world_size == 1 or int(os.environ.get("LOCAL_RANK", 0)) == 0)


def adapter_state(model: nn.Module) -> StateDict:
    """A and B of every LoRA layer, whole, on the CPU of the main process. Every process must call it."""
    return _gather_named(model, adapter_names(model))


def head_state(model: nn.Module) -> StateDict:
    """The value head, whole, on the CPU of the main process. Every process must call it."""
    return _gather_named(model, head_names(model))


def _gather_named(model: nn.Module, names: Sequence[str]) -> StateDict:
    keep, held = not dist.is_initialized() or dist.get_rank() == 0, model.state_dict()
    whole = ((name, _whole(held[name])) for name in names)
    return {name: tensor.cpu() for name, tensor in whole if keep}


@torch.no_grad()
def _gather_weights(model: nn.Module, *, keep: bool) -> StateDict:
    layers, held = lora_layers(model), model.state_dict()
    added = {*adapter_names(model), *head_names(model)}
    weights: StateDict = {}
    for name in (name for name in held if name not in added):
        tensor = _whole(held[name])
        if (layer := layers.get(layer_name := name.removesuffix(".weight"))) is not None:
            a_RI, b_OR = (_whole(held[f"{layer_name}.{part}.weight"]) for part in ("lora_a", "lora_b"))
            tensor = merged(tensor, a_RI, b_OR, layer.alpha / layer.rank) if keep else tensor
        if keep:
            weights[name] = tensor.cpu()
    return weights


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_optimizer_state(model: nn.Module, optimizer: Optimizer | Sequence[Optimizer]) -> dict[str, Any]:
    """The whole optimizer state by parameter name, on the CPU of the main process. Every process must call it.

    Several optimizers, each of its own parameters, have one state.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(model, optimizer, options=options)


def load_optimizer_state(
    model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], state: dict[str, Any]
) -> None:
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


def gather_values(value: T, process: Process) -> list[T]:
    """A value of every process (anything that pickles), in their order, on all of them."""
    values: list[T] = [value] * process.world_size
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


def level_rows(rows: list[list[T]], process: Process, spare: list[T] | None = None) -> list[list[T]]:
    """As many rows as the process with the most has, since a sharded model's passes are joint.

    Rows are added from ``spare`` (what changes nothing), and when that is used up by splitting the longest ones.
    """
    spare = spare or []
    rows = [list(row) for row in rows]
    for _ in range(len(rows), max(gather_values(len(rows), process))):
        rows.append([spare.pop() if spare else max(rows, key=len).pop()])
    return rows


def clip_gradients(model: nn.Module, max_norm: float | None) -> float:
    """Clip the gradients of all parameters to a joint norm; returns the norm before clipping."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), float("inf") if max_norm is None else max_norm)
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole.item()
