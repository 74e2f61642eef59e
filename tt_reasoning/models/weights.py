"""Weights between Hugging Face folders (safetensors only) and torchtune state dicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torchtune.models.convert_weights import hf_to_tune, tune_to_hf
from torchtune.models.qwen2._convert_weights import qwen2_hf_to_tune, qwen2_tune_to_hf
from torchtune.modules.peft import get_adapter_params

from tt_reasoning.errors import UserError
from tt_reasoning.models.value_head import head_names

StateDict = dict[str, torch.Tensor]
TO_HF = {"llama": tune_to_hf, "mistral": tune_to_hf, "qwen2": qwen2_tune_to_hf}
_FROM_HF = {"llama": hf_to_tune, "mistral": hf_to_tune, "qwen2": qwen2_hf_to_tune}
_CLASS_HEAD = "score."  # Linear, ReLU, Linear in place of the vocabulary


def read_hf_config(path: str | Path) -> dict[str, Any]:
    """``config.json`` of a model folder. Raises UserError where there is no such folder or file."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"no such model folder: {folder}; get one with: python tools/get_model.py --out {folder}")
    file = folder / "config.json"
    if not file.exists():
        raise UserError(f"{folder} holds no config.json: not a Hugging Face model folder")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON: {error}") from None


def head_shape(config: dict[str, Any]) -> dict[str, Any]:
    """What the converters need to know of a ``config.json``."""
    return {
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config.get("num_key_value_heads", config["num_attention_heads"]),
        "dim": config["hidden_size"],
        "head_dim": config.get("head_dim"),
    }


def has_class_head(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` is of a judge with two classes a token, as Qwen2.5-Math-PRM is."""
    return "Qwen2ForProcessRewardModel" in (config.get("architectures") or ())


def load_weights(path: str | Path) -> StateDict:
    """The weights of a Hugging Face folder under torchtune's names, on the CPU, in the dtype of the file.

    Raises:
        UserError: no safetensors file there, a damaged one, or an unknown architecture.
    """
    config, folder = read_hf_config(path), Path(path)
    # torchtune's LoRA recipes leave the adapter beside the weights that it is merged into.
    files = sorted(file for file in folder.glob("*.safetensors") if file.name != "adapter_model.safetensors")
    if not files:
        raise UserError(f"{folder} holds no *.safetensors file; other weight formats are not loaded")
    weights: StateDict = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                weights.update({name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{file}: damaged: {error}") from None
    head: StateDict = {}
    if has_class_head(config):
        names = [name for name in weights if name.startswith(_CLASS_HEAD)]
        head = {"output." + name.removeprefix(_CLASS_HEAD): weights.pop(name) for name in names}
    if head or config.get("tie_word_embeddings"):
        weights.pop("lm_head.weight", None)
    convert = _FROM_HF.get(config["model_type"])
    if convert is None:
        raise UserError(f"{folder}: model_type '{config['model_type']}' is not supported; llama, mistral and qwen2 are")
    return convert(weights, **head_shape(config)) | head


def check_shapes(model: torch.nn.Module, weights: StateDict, path: str | Path) -> None:
    """Refuse weights of another size before they are loaded; neither LoRA adapters nor a value head are among them.

    Raises:
        UserError: names the first tensor that is missing, left over, or of another shape.
    """
    added = {*get_adapter_params(model), *head_names(model)}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in added}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"{path} does not fit the model of the config: {name} is {found.get(name, 'missing')} there, "
                f"{wanted.get(name, 'absent')} in the model; set model to the checkpoint's size"
            )


def save_weights(weights: StateDict, source: str | Path, folder: str | Path) -> None:
    """Write torchtune weights as safetensors into ``folder``, shaped by the ``config.json`` of ``source``."""
    config = read_hf_config(source)
    converted = TO_HF[config["model_type"]](weights, **head_shape(config))
    save_torch_state_dict({k: v.contiguous() for k, v in converted.items()}, folder, metadata={"format": "pt"})
