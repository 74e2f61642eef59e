"""Weights go to torchtune and back unchanged, give transformers' logits, and of another size are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tiny import write_tiny_model
from torchtune import config
from transformers import AutoModelForCausalLM

from tt_reasoning.errors import UserError
from tt_reasoning.models import build_from_hf, smollm2_135m
from tt_reasoning.models.weights import load_weights, save_weights
from tt_reasoning.training import Process, build_model

ALONE = Process(0, 1, torch.device("cpu"))


def model_cfg(folder: Path) -> OmegaConf:
    return OmegaConf.create({"_component_": "tt_reasoning.models.build_from_hf", "path": str(folder)})


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_logits_are_those_of_transformers(tmp_path: Path, model_type: str) -> None:
    folder = write_tiny_model(tmp_path, model_type=model_type)
    tokens = torch.arange(1, 60).unsqueeze(0)
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(tokens).logits
        ours = build_model(model_cfg(folder), str(folder), ALONE, torch.float32)(tokens)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_smollm2_logits_are_those_of_transformers(smollm2: Path) -> None:
    tokens = torch.tensor([[504, 3575, 282, 4649, 314] * 8])
    cfg = OmegaConf.create({"_component_": "tt_reasoning.models.smollm2_135m"})
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)(tokens).logits
        ours = build_model(cfg, str(smollm2), ALONE, torch.float32)(tokens)
    torch.testing.assert_close(ours, theirs, atol=5e-4, rtol=1e-4)


def test_the_named_builder_and_the_config_file_describe_the_same_model(smollm2: Path) -> None:
    with torch.device("meta"):
        named, read = smollm2_135m(), build_from_hf(str(smollm2))
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (named, read)]
    assert shapes[0] == shapes[1]
    assert named.max_seq_len == read.max_seq_len


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_weights_survive_the_way_to_torchtune_and_back_bit_for_bit(tmp_path: Path, model_type: str) -> None:
    folder = write_tiny_model(tmp_path / "a", model_type=model_type)
    (tmp_path / "b").mkdir()
    save_weights(load_weights(folder), folder, tmp_path / "b")
    first, second = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "b"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_of_another_size_is_refused_by_the_first_tensor_that_differs(tmp_path: Path) -> None:
    small, large = write_tiny_model(tmp_path / "small"), write_tiny_model(tmp_path / "large", hidden_size=64)
    with pytest.raises(UserError, match=r"tok_embeddings.weight is \(320, 32\) there, \(320, 64\) in the model"):
        build_model(model_cfg(large), str(small), ALONE, torch.float32)


def test_a_damaged_weight_file_is_named(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="model.safetensors: damaged"):
        load_weights(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"model_type": "gpt2"}, "model_type 'gpt2'"), ({"rope_scaling": {"rope_type": "yarn"}}, "rope type 'yarn'")],
)
def test_an_architecture_that_is_not_supported_is_named(tmp_path: Path, change: dict, message: str) -> None:
    folder = write_tiny_model(tmp_path)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message):
        config.instantiate(model_cfg(folder))
