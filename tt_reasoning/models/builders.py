"""torchtune decoders that torchtune has no builder for, and one from any Llama, Mistral or Qwen2 ``config.json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torchtune.models.llama3_2._component_builders import llama3_2, lora_llama3_2
from torchtune.models.qwen2._component_builders import lora_qwen2, qwen2
from torchtune.modules import TransformerDecoder

from tt_reasoning.errors import UserError
from tt_reasoning.models.weights import has_class_head, read_hf_config

_NEEDED = (
    "model_type",
    "vocab_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "rms_norm_eps",
)
_LLAMA3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


# Mistral is a Llama that attends to a window; rows are kept within it, where the two are the same.
_PLAIN: dict[str, Callable[..., TransformerDecoder]] = {"llama": llama3_2, "mistral": llama3_2, "qwen2": qwen2}
_WITH_LORA: dict[str, Callable[..., TransformerDecoder]] = {
    "llama": lora_llama3_2, "mistral": lora_llama3_2, "qwen2": lora_qwen2,
}  # fmt: skip
_SMOLLM2_135M = {
    "vocab_size": 49152,
    "num_layers": 30,
    "num_heads": 9,
    "num_kv_heads": 3,
    "embed_dim": 576,
    "intermediate_dim": 1536,
    "max_seq_len": 8192,
    "rope_base": 100_000,
    "norm_eps": 1e-5,
    "scale_factor": 1,
}


def smollm2_135m() -> TransformerDecoder:
    """SmolLM2-135M (base or instruct), from HuggingFaceTB/SmolLM2-135M: a Llama of 30 thin layers."""
    return llama3_2(**_SMOLLM2_135M)


def lora_smollm2_135m(
    lora_attn_modules: Sequence[str],
    apply_lora_to_mlp: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
) -> TransformerDecoder:
    """SmolLM2-135M with LoRA, the arguments named as in torchtune's builders.

    Args:
        lora_attn_modules: which of ``q_proj``, ``k_proj``, ``v_proj``, ``output_proj`` of every layer.
        apply_lora_to_mlp: the three matrices of every MLP as well.
        lora_alpha: the adapters' product is scaled by ``lora_alpha / lora_rank``.
        lora_dropout: 0 in this pack's recipes, which refuse another value.

    Example (YAML):
        ``model: {_component_: tt_reasoning.models.lora_smollm2_135m, lora_attn_modules: [q_proj, v_proj]}``
    """
    return lora_llama3_2(
        list(lora_attn_modules),
        apply_lora_to_mlp,
        **_SMOLLM2_135M,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
    )


def build_from_hf(path: str) -> TransformerDecoder:
    """The decoder that a Hugging Face folder's ``config.json`` describes, weights not loaded.

    In place of logits over the vocabulary a ``Qwen2ForProcessRewardModel`` has the logits of its two classes.

    Raises:
        UserError: no ``config.json``, or an architecture other than Llama, Mistral and Qwen2.

    Example (YAML):
        ``model: {_component_: tt_reasoning.models.build_from_hf, path: models/smollm2-135m}``
    """
    family, shape = _read_shape(path)
    model = _PLAIN[family](**shape)
    if has_class_head(read_hf_config(path)):
        width = shape["embed_dim"]
        model.output = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
    return model


def read_max_seq_len(path: str | Path) -> int:
    """The most tokens that the model of a Hugging Face folder reads. Raises UserError as ``build_from_hf``."""
    return _read_shape(str(path))[1]["max_seq_len"]


def lora_from_hf(
    path: str,
    lora_attn_modules: Sequence[str],
    apply_lora_to_mlp: bool = False,
    apply_lora_to_output: bool = False,
    lora_rank: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
) -> TransformerDecoder:
    """The decoder of ``build_from_hf`` with LoRA, the arguments named as in torchtune's builders.

    Raises:
        UserError: as ``build_from_hf``.

    Example (YAML):
        ``model: {_component_: tt_reasoning.models.lora_from_hf, path: models/m, lora_attn_modules: [q_proj]}``
    """
    family, shape = _read_shape(path)
    return _WITH_LORA[family](
        list(lora_attn_modules),
        apply_lora_to_mlp,
        apply_lora_to_output,
        **shape,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
    )


def _read_shape(path: str) -> tuple[str, dict[str, Any]]:
    """The family and the builder's arguments for a ``config.json``."""
    config, file = read_hf_config(path), Path(path) / "config.json"
    missing = [name for name in _NEEDED if name not in config]
    if missing:
        raise UserError(f"{file} lacks '{missing[0]}'")
    for name in ("use_sliding_window", "attention_bias", "mlp_bias"):
        if config.get(name):
            raise UserError(f"{file}: {name} is on, which torchtune's builders do not have")
    shape: dict[str, Any] = {
        "vocab_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config.get("num_key_value_heads", config["num_attention_heads"]),
        "embed_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "max_seq_len": config["max_position_embeddings"],
        "norm_eps": config["rms_norm_eps"],
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
    }
    # transformers 5 writes rope_parameters, earlier versions rope_theta and rope_scaling.
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or rope
    rope_base = rope.get("rope_theta", config.get("rope_theta", 10_000))
    rope_type = scaling.get("rope_type", scaling.get("type", "default"))
    if config["model_type"] == "qwen2" and rope_type == "default":
        return "qwen2", {**shape, "rope_base": rope_base}
    if config["model_type"] == "mistral" and rope_type == "default":
        shape["max_seq_len"] = min(shape["max_seq_len"], config.get("sliding_window") or shape["max_seq_len"])
        return "mistral", {**shape, "rope_base": rope_base, "scale_factor": 1}
    if config["model_type"] == "llama" and rope_type == "default":
        return "llama", {**shape, "rope_base": rope_base, "scale_factor": 1}
    if config["model_type"] == "llama" and rope_type == "llama3":
        for name, value in _LLAMA3_SCALING.items():
            if scaling.get(name) != value:
                raise UserError(f"{file}: rope scaling has {name} {scaling.get(name)}, torchtune's is fixed at {value}")
        return "llama", {**shape, "rope_base": rope_base, "scale_factor": scaling["factor"]}
    raise UserError(
        f"{file}: model_type '{config['model_type']}' with rope type '{rope_type}' "
        "is not supported; llama, mistral and qwen2 are"
    )
