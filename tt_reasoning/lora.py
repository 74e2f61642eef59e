"""LoRA: small trained matrices beside frozen weights; the model without them, merged with them, or them alone.

A LoRA layer computes ``W x + (alpha / rank) B A x`` and trains A and B only (arXiv 2106.09685). The layers are
torchtune's ``LoRALinear``; its builders (``torchtune.models.qwen2_5.lora_qwen2_5_1_5b_instruct``, ...) and
``tt_reasoning.models.lora_from_hf`` place them. Without its adapters the model is the one that training began
from, so it is its own reference.

Shapes: I inputs and O outputs of a layer, R the rank: W is [O, I], A [R, I], B [O, R].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchtune.modules.peft import DoRALinear, LoRALinear, disable_adapter

from tt_reasoning.errors import UserError, unknown_name
from tt_reasoning.models.weights import TO_HF, StateDict, head_shape, read_hf_config
from tt_reasoning.store import write_json
from tt_reasoning.types import seed_of

_ATTENTION = ("q_proj", "k_proj", "v_proj", "output_proj")
_WRAPPER = "_checkpoint_wrapped_module."  # what activation checkpointing puts into a module's name


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The LoRA layers by their names in the state dict; empty where a model has none."""
    found = ((name.replace(_WRAPPER, ""), module) for name, module in model.named_modules())
    return {name: module for name, module in found if isinstance(module, LoRALinear)}


def is_lora(model: nn.Module) -> bool:
    """Whether the model has LoRA adapters."""
    return bool(lora_layers(model))


def adapter_names(model: nn.Module) -> list[str]:
    """The names of A and B of every LoRA layer in the state dict."""
    return [f"{layer}.{part}.weight" for layer in lora_layers(model) for part in ("lora_a", "lora_b")]


def check_lora(model: nn.Module, model_cfg: Mapping[str, Any]) -> None:
    """Refuse what cannot be trained here, or what a builder would pass over in silence.

    Raises:
        UserError: a name in ``lora_attn_modules`` that no layer has, a rank below 1, dropout (the policy's
            log-probabilities must not be random), DoRA, a quantized base.
    """
    for name in model_cfg.get("lora_attn_modules") or ():
        if name not in _ATTENTION:
            raise unknown_name("module in config key model.lora_attn_modules", name, _ATTENTION)
    for module in model.modules():
        if isinstance(module, DoRALinear):
            raise UserError("config key model.use_dora: DoRA is not trained here; set it to false")
        if not isinstance(module, LoRALinear):
            continue
        if module.rank < 1:
            raise UserError(f"config key model.lora_rank: {module.rank} is below 1")
        if isinstance(module.dropout, nn.Dropout):
            raise UserError(
                f"config key model.lora_dropout: {module.dropout.p}: log-probabilities of the policy would be "
                "random; set it to 0.0"
            )
        if module._quantize_base:
            raise UserError("config key model.quantize_base: a quantized base is not trained here; set it to false")


def fresh_adapters(model: nn.Module, seed: int) -> StateDict:
    """New adapters by name, whole, fp32, on the CPU: A uniform in +-1/sqrt(I), B zero, from the seed alone.

    The model may be without memory. With B at zero it computes what it computes without adapters.
    """
    adapters: StateDict = {}
    for name, layer in lora_layers(model).items():
        generator = torch.Generator().manual_seed(seed_of("lora", seed, name))
        a_RI = torch.empty(layer.rank, layer.in_dim)
        adapters[f"{name}.lora_a.weight"] = nn.init.kaiming_uniform_(a_RI, a=math.sqrt(5), generator=generator)
        adapters[f"{name}.lora_b.weight"] = torch.zeros(layer.out_dim, layer.rank)
    return adapters


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The base model while the block runs, for a reference; it records no gradient.

    (Activation checkpointing computes a layer again in backward, after the block, with the adapters back.)
    """
    with torch.no_grad(), disable_adapter(model):
        yield


@torch.no_grad()
def merged(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """``W + scale * B @ A`` computed in fp32, in the dtype of W.

    >>> merged(torch.ones(1, 2), torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]), scale=2.0)
    tensor([[ 7., 13.]])
    """
    with torch.autocast(weight_OI.device.type, enabled=False):
        return torch.addmm(weight_OI.float(), b_OR.float(), a_RI.float(), alpha=scale).to(weight_OI.dtype)


def save_adapter(adapters: StateDict, model: nn.Module, source: str, folder: Path) -> None:
    """Write the adapters as PEFT and vLLM load them onto the Hugging Face folder ``source``.

    Args:
        adapters: A and B by torchtune's names, whole, on the CPU.
        folder: takes ``adapter_model.safetensors`` and ``adapter_config.json``.
    """
    config, layers = read_hf_config(source), lora_layers(model)
    ((rank, alpha),) = {(layer.rank, layer.alpha) for layer in layers.values()}
    heads = head_shape(config)
    # B has the rows of W, so W's converter (it permutes those of q and k in a Llama) does for B, R columns wide.
    heads |= {"head_dim": heads["head_dim"] or heads["dim"] // heads["num_heads"], "dim": rank}
    tensors, targets = {}, set()
    for name in layers:
        ((hf_name, b_OR),) = TO_HF[config["model_type"]](
            {f"{name}.weight": adapters[f"{name}.lora_b.weight"]}, **heads
        ).items()
        hf_name = hf_name.removesuffix(".weight")
        tensors[f"base_model.model.{hf_name}.lora_A.weight"] = adapters[f"{name}.lora_a.weight"].contiguous()
        tensors[f"base_model.model.{hf_name}.lora_B.weight"] = b_OR.contiguous()
        targets.add(hf_name.rpartition(".")[2])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    card = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": source,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
    }
    write_json(folder / "adapter_config.json", card)
