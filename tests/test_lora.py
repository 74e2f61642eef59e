"""LoRA: fresh adapters change nothing, trained ones merge into the base, PEFT's file says the same, resume is exact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from tiny import write_tiny_model
from torch.nn import functional as F
from torchtune import config
from torchtune.models.llama3_2 import llama3_2_1b, lora_llama3_2_1b
from torchtune.models.qwen2_5 import lora_qwen2_5_0_5b, qwen2_5_0_5b
from torchtune.modules import TransformerDecoder
from transformers import AutoModelForCausalLM

from tt_reasoning.checkpoint import agree_on_last_step, resume_from, save_checkpoint
from tt_reasoning.errors import UserError
from tt_reasoning.lora import adapter_names, fresh_adapters, is_lora, without_adapters
from tt_reasoning.models import lora_smollm2_135m, smollm2_135m
from tt_reasoning.models.weights import check_shapes, load_weights
from tt_reasoning.training import Process, build_model, deployable_state

ALONE = Process(0, 1, torch.device("cpu"))
TOKENS = torch.arange(1, 41).reshape(2, 20)
EVERYWHERE = {"lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"], "apply_lora_to_mlp": True}
FAMILIES = pytest.mark.parametrize("folder", ["llama", "qwen2"], indirect=True)


@pytest.fixture
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return write_tiny_model(tmp_path / "model", model_type=getattr(request, "param", "llama"))


def base_cfg(folder: Path) -> DictConfig:
    return OmegaConf.create({"_component_": "tt_reasoning.models.build_from_hf", "path": str(folder)})


def lora_cfg(folder: Path, **changes: object) -> DictConfig:
    settings = {"path": str(folder), **EVERYWHERE, "lora_rank": 4, "lora_alpha": 8, **changes}
    return OmegaConf.create({"_component_": "tt_reasoning.models.lora_from_hf", **settings})


def train(model: TransformerDecoder, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Learn to predict a fixed row; large steps, so that every adapter moves."""
    for _ in range(steps):
        logits_BTV = model(TOKENS[:, :-1])
        F.cross_entropy(logits_BTV.flatten(0, 1).float(), TOKENS[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def adam(model: TransformerDecoder) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)


def trained(folder: Path, **options: bool) -> tuple[TransformerDecoder, torch.optim.Optimizer]:
    model = build_model(lora_cfg(folder), str(folder), ALONE, torch.float32, **options)
    optimizer = adam(model)
    train(model, optimizer, steps=3)
    return model, optimizer


@torch.no_grad()
def logits(model: TransformerDecoder) -> torch.Tensor:
    return model(TOKENS)


@FAMILIES
def test_fresh_adapters_leave_every_logit_of_the_base_model_as_it_was(folder: Path) -> None:
    base = build_model(base_cfg(folder), str(folder), ALONE, torch.float32)
    model = build_model(lora_cfg(folder), str(folder), ALONE, torch.float32)
    assert is_lora(model) and not is_lora(base)
    assert torch.equal(logits(model), logits(base))


def test_the_adapters_alone_are_trained(folder: Path) -> None:
    model = build_model(lora_cfg(folder), str(folder), ALONE, torch.float32)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == adapter_names(model)
    assert len(adapter_names(model)) == 2 * 2 * 7  # layers x (A, B) x matrices of a layer
    frozen = build_model(lora_cfg(folder), str(folder), ALONE, torch.float32, trainable=False)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_adapters_begin_the_same_for_the_same_seed_alone(folder: Path) -> None:
    first, second, other = (
        build_model(lora_cfg(folder), str(folder), ALONE, torch.float32, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    a_RI = first["layers.0.mlp.w2.lora_a.weight"]
    assert not torch.equal(a_RI, other["layers.0.mlp.w2.lora_a.weight"])
    assert not torch.equal(a_RI, first["layers.1.mlp.w2.lora_a.weight"])
    assert a_RI.abs().max() <= 64**-0.5 and a_RI.std() == pytest.approx(64**-0.5 / 3**0.5, rel=0.2)
    assert not any(first[name].any() for name in adapter_names(config.instantiate(lora_cfg(folder))) if "_b." in name)


@FAMILIES
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_without_its_adapters_a_trained_model_is_the_one_it_began_as(
    folder: Path, activation_checkpointing: bool
) -> None:
    base = build_model(base_cfg(folder), str(folder), ALONE, torch.float32)
    model, _ = trained(folder, activation_checkpointing=activation_checkpointing)
    moved = logits(model)
    with without_adapters(model):
        found = model(TOKENS)
    assert torch.equal(found, logits(base)) and not found.requires_grad
    assert torch.equal(logits(model), moved) and (moved - found).abs().max() > 0.1


@FAMILIES
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_merged_weights_compute_what_the_adapters_compute_on_the_fly(
    folder: Path, activation_checkpointing: bool
) -> None:
    """The sums are in another order, so up to fp32 rounding."""
    model, _ = trained(folder, activation_checkpointing=activation_checkpointing)
    base = build_model(base_cfg(folder), str(folder), ALONE, torch.float32)
    base.load_state_dict(deployable_state(model, ALONE))
    torch.testing.assert_close(logits(base), logits(model), atol=1e-5, rtol=1e-5)
    assert all("_checkpoint" not in name for name in deployable_state(model, ALONE))


@FAMILIES
def test_the_saved_folder_is_merged_and_its_adapter_says_the_same_by_hand(folder: Path, tmp_path: Path) -> None:
    model, optimizer = trained(folder)
    saved = save_checkpoint(tmp_path, 3, model, optimizer, None, str(folder), ALONE, {})
    card = json.loads((saved / "adapter" / "adapter_config.json").read_text())
    assert (card["r"], card["lora_alpha"], card["base_model_name_or_path"]) == (4, 8, str(folder))
    matrices = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert card["target_modules"] == matrices
    adapter = load_file(saved / "adapter" / "adapter_model.safetensors")
    base, merged = load_file(folder / "model.safetensors"), load_file(saved / "model.safetensors")
    assert base.keys() == merged.keys() and len(adapter) == 2 * 2 * 7
    for name in base:
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        a_RI, b_OR = (adapter.get(f"{layer}.{part}.weight") for part in ("lora_A", "lora_B"))
        if a_RI is None:
            assert torch.equal(merged[name], base[name]), name
            continue
        assert a_RI.shape == (4, base[name].shape[1]) and b_OR.shape == (base[name].shape[0], 4)
        torch.testing.assert_close(merged[name], base[name] + 8 / 4 * b_OR @ a_RI, atol=1e-6, rtol=1e-6)
        assert (merged[name] - base[name]).abs().max() > 1e-3
    theirs = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)(TOKENS).logits
    torch.testing.assert_close(theirs, logits(model), atol=1e-4, rtol=1e-4)
    deployed, read = deployable_state(model, ALONE), load_weights(saved)
    assert deployed.keys() == read.keys() and all(torch.equal(deployed[name], read[name]) for name in read)


@FAMILIES
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_a_resumed_run_ends_in_the_bits_of_an_uninterrupted_one(
    folder: Path, tmp_path: Path, activation_checkpointing: bool
) -> None:
    def fresh() -> tuple[TransformerDecoder, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        options = {"activation_checkpointing": activation_checkpointing, "seed": 3}
        model = build_model(lora_cfg(folder), str(folder), ALONE, torch.float32, **options)
        optimizer = adam(model)
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=2)

    whole, optimizer, scheduler = fresh()
    train(whole, optimizer, steps=2)
    scheduler.step()
    save_checkpoint(tmp_path, 2, whole, optimizer, scheduler, str(folder), ALONE, {}, state={"position": 7})
    train(whole, optimizer, steps=2)

    resumed, optimizer, scheduler = fresh()
    assert agree_on_last_step(tmp_path, ALONE) == 2
    assert resume_from(tmp_path, 2, resumed, optimizer, scheduler, ALONE) == {"position": 7}
    assert scheduler.last_epoch == 1 and len(optimizer.state) == 28
    train(resumed, optimizer, steps=2)
    first, second = whole.state_dict(), resumed.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_adapters_of_another_model_are_refused_at_resume(folder: Path, tmp_path: Path) -> None:
    model, optimizer = trained(folder)
    save_checkpoint(tmp_path, 1, model, optimizer, None, str(folder), ALONE, {})
    other = build_model(lora_cfg(folder, apply_lora_to_mlp=False), str(folder), ALONE, torch.float32)
    with pytest.raises(UserError, match="its LoRA adapters are not those of the config's model"):
        resume_from(tmp_path, 1, other, adam(other), None, ALONE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_dropout": 0.1}, "config key model.lora_dropout: 0.1: .* set it to 0.0"),
        ({"lora_rank": 0}, "config key model.lora_rank: 0 is below 1"),
        ({"lora_attn_modules": ["q_prj"]}, "config key model.lora_attn_modules 'q_prj': did you mean 'q_proj'"),
        ({"lora_attn_modules": []}, "config key model: Must pass one or more"),
        ({"apply_lora_to_output": True}, "config key model: apply_lora_to_output"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_lora_that_cannot_be_trained_is_refused_by_its_key(folder: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(lora_cfg(folder, **change), str(folder), ALONE, torch.float32)


@pytest.mark.parametrize("key", ["use_dora", "quantize_base"])
def test_variants_of_torchtunes_builders_are_refused_by_their_key(folder: Path, key: str) -> None:
    builder = {"_component_": "torchtune.models.llama3_2.lora_llama3_2_1b", "lora_attn_modules": ["q_proj"], key: True}
    with pytest.raises(UserError, match=f"config key model.{key}: "):
        build_model(OmegaConf.create(builder), str(folder), ALONE, torch.float32)


@pytest.mark.parametrize(
    ("with_lora", "plain"),
    [(lora_smollm2_135m, smollm2_135m), (lora_qwen2_5_0_5b, qwen2_5_0_5b), (lora_llama3_2_1b, llama3_2_1b)],
    ids=lambda builder: builder.__name__,
)
def test_a_lora_builder_takes_the_weights_of_its_plain_model(with_lora: object, plain: object) -> None:
    with torch.device("meta"):
        model, weights = with_lora(["q_proj", "v_proj"], apply_lora_to_mlp=True), plain().state_dict()
    check_shapes(model, weights, "here")
    assert fresh_adapters(model, 0).keys() == {*adapter_names(model)} == model.state_dict().keys() - weights.keys()
    weights.pop("norm.scale")
    with pytest.raises(UserError, match="norm.scale is missing there"):
        check_shapes(model, weights, "here")


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
from test_lora import adam, logits, lora_cfg, train
from tt_reasoning.checkpoint import agree_on_last_step, resume_from, save_checkpoint
from tt_reasoning.lora import without_adapters
from tt_reasoning.training import build_model, deployable_state, full_optimizer_state, start_process, stop_process

model_folder, output = Path(sys.argv[1]), Path(sys.argv[2])
process = start_process("cpu")
own = output / str(process.rank)  # as on two nodes that share no disk
own.mkdir(parents=True)

def build(seed):
    model = build_model(lora_cfg(model_folder), str(model_folder), process, torch.float32,
                        activation_checkpointing=True, seed=seed)
    return model, adam(model)

def keep(name, value):
    torch.save(value, own / name)

model, optimizer = build(seed=5)
keep("start", {name: t.full_tensor() for name, t in model.state_dict().items()})
with without_adapters(model):
    keep("base_logits", model(torch.arange(1, 41).reshape(2, 20)))
train(model, optimizer, steps=2)
with without_adapters(model):
    keep("base_logits_later", model(torch.arange(1, 41).reshape(2, 20)))
save_checkpoint(own, 2, model, optimizer, None, str(model_folder), process, {}, state={"position": 9})
keep("deployable", deployable_state(model, process))
train(model, optimizer, steps=2)
keep("end", {name: t.full_tensor() for name, t in model.state_dict().items()})

model, optimizer = build(seed=6)
keep("agreed", agree_on_last_step(own, process))
keep("state", resume_from(own, 2, model, optimizer, None, process))
train(model, optimizer, steps=2)
keep("resumed", {name: t.full_tensor() for name, t in model.state_dict().items()})
stop_process()
"""


@FAMILIES
def test_two_processes_begin_and_end_as_one_and_only_the_first_needs_the_files(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", script, folder, tmp_path],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert not list((tmp_path / "1").glob("step_*"))

    def both(name: str) -> list:
        return [torch.load(tmp_path / str(rank) / name) for rank in (0, 1)]

    one = build_model(lora_cfg(folder), str(folder), ALONE, torch.float32, seed=5)
    base = build_model(base_cfg(folder), str(folder), ALONE, torch.float32)
    start = one.state_dict()
    for state in both("start"):
        assert state.keys() == start.keys() and all(torch.equal(state[name], start[name]) for name in start)
    for found in (*both("base_logits"), *both("base_logits_later")):
        assert torch.equal(found, logits(base))
    optimizer = adam(one)
    train(one, optimizer, steps=2)
    mine, (theirs, elsewhere) = deployable_state(one, ALONE), both("deployable")
    assert elsewhere == {} and list(theirs) == list(mine)
    for name in mine:  # gradients are averaged over two equal halves: no difference but rounding
        torch.testing.assert_close(theirs[name], mine[name], atol=1e-5, rtol=1e-5)
    saved = load_weights(tmp_path / "0" / "step_2")
    assert all(torch.equal(saved[name], theirs[name]) for name in theirs)
    assert both("agreed") == [2, 2] and both("state") == [{"position": 9}] * 2
    end, resumed = both("end")[0], both("resumed")[0]
    assert all(torch.equal(end[name], resumed[name]) for name in end)
