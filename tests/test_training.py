"""Models and checkpoints as every recipe uses them: whole weights, mixed precision, damage that is found at resume."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from tiny import write_tiny_model
from torch.nn import functional as F
from torchtune.modules import TransformerDecoder

from tt_reasoning.checkpoint import (
    agree_on_last_step,
    mark_best,
    prune_checkpoints,
    resume_from,
    save_checkpoint,
)
from tt_reasoning.models.weights import load_weights
from tt_reasoning.rollout import generate
from tt_reasoning.training import Process, arithmetic, build_model, deployable_state, pick_dtype

ALONE = Process(0, 1, torch.device("cpu"))
TOKENS = torch.arange(1, 41).reshape(2, 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


def model_cfg(folder: Path, **lora: object) -> DictConfig:
    builder = "lora_from_hf" if lora else "build_from_hf"
    return OmegaConf.create({"_component_": f"tt_reasoning.models.{builder}", "path": str(folder), **lora})


def build(folder: Path, dtype: str = "fp32", process: Process = ALONE, **options: bool) -> TransformerDecoder:
    mixed = dtype == "bf16_mixed"
    return build_model(model_cfg(folder), str(folder), process, pick_dtype(dtype), mixed=mixed, **options)


def logprobs(model: TransformerDecoder, dtype: str) -> torch.Tensor:
    """Of every next token of two fixed rows."""
    with arithmetic(dtype, torch.device("cpu")):
        logits_BTV = model(TOKENS[:, :-1])
    return -F.cross_entropy(logits_BTV.flatten(0, 1).float(), TOKENS[:, 1:].flatten(), reduction="none")


def train(model: TransformerDecoder, dtype: str = "fp32", *, lr: float, steps: int = 1) -> torch.optim.Optimizer:
    """Steps of AdamW, which moves every weight by about ``lr`` whatever its gradient."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    for _ in range(steps):
        (-logprobs(model, dtype).mean()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return optimizer


def save(output: Path, step: int, model: TransformerDecoder, optimizer: torch.optim.Optimizer, source: Path) -> Path:
    return save_checkpoint(output, step, model, optimizer, None, str(source), ALONE, {}, state={"position": step})


def share_moved(model: TransformerDecoder, folder: Path) -> float:
    """The share of all weights that are no longer what the file holds."""
    before, after = load_weights(folder), deployable_state(model, ALONE)
    moved = sum((after[n].float() != before[n].to(after[n].dtype).float()).sum().item() for n in before)
    return moved / sum(tensor.numel() for tensor in before.values())


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_the_deployable_weights_are_those_that_a_checkpoint_holds(
    folder: Path, tmp_path: Path, activation_checkpointing: bool
) -> None:
    model = build(folder, activation_checkpointing=activation_checkpointing)
    optimizer = train(model, lr=1e-2)
    deployed, saved = deployable_state(model, ALONE), load_weights(save(tmp_path, 1, model, optimizer, folder))
    assert deployed.keys() == saved.keys() and all(torch.equal(deployed[name], saved[name]) for name in saved)


def test_small_updates_are_lost_in_bf16_and_kept_in_mixed_precision(folder: Path) -> None:
    """Beside a weight of 0.2 the next bf16 number is 0.001 away: a step of 1e-6 rounds to nothing."""
    pure, mixed = build(folder, "bf16"), build(folder, "bf16_mixed")
    train(pure, "bf16", lr=1e-6, steps=3)
    optimizer = train(mixed, "bf16_mixed", lr=1e-6, steps=3)
    assert share_moved(pure, folder) < 0.05
    assert share_moved(mixed, folder) > 0.95
    assert {parameter.dtype for parameter in mixed.parameters()} == {torch.float32}
    assert {state["exp_avg"].dtype for state in optimizer.state.values()} == {torch.float32}


def test_mixed_precision_computes_in_bf16(folder: Path) -> None:
    exact = logprobs(build(folder, "fp32"), "fp32")
    mixed_model = build(folder, "bf16_mixed")
    pure_error = (logprobs(build(folder, "bf16"), "bf16") - exact).abs().mean()
    mixed_error = (logprobs(mixed_model, "bf16_mixed") - exact).abs().mean()
    assert 0 < mixed_error < 1.5 * pure_error < 0.1
    assert torch.equal(logprobs(mixed_model, "fp32"), exact)  # outside the block it is fp32


def test_activation_checkpointing_recomputes_in_mixed_precision_as_it_computed(folder: Path) -> None:
    gradients = []
    for activation_checkpointing in (False, True):
        model = build(folder, "bf16_mixed", activation_checkpointing=activation_checkpointing)
        (-logprobs(model, "bf16_mixed").mean()).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain.dtype == torch.float32 and torch.equal(plain, recomputed)


def test_a_rollout_runs_in_mixed_precision_and_a_later_gradient_is_whole(folder: Path) -> None:
    model = build(folder, "bf16_mixed")
    with arithmetic("bf16_mixed", torch.device("cpu")):
        ((completion,),) = generate(
            model, [[1, 2, 3]], [[0]], max_new_tokens=5, temperature=1.0, stop_tokens=[258], decode=str
        )
    assert completion.tokens
    (-logprobs(model, "bf16_mixed").mean()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_what_lora_does_not_train_is_held_in_bf16(folder: Path) -> None:
    cfg = model_cfg(folder, lora_attn_modules=["q_proj", "v_proj"])
    model = build_model(cfg, str(folder), ALONE, torch.float32, mixed=True)
    assert all(p.dtype == (torch.float32 if p.requires_grad else torch.bfloat16) for p in model.parameters())
    held = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, "bf16_mixed", lr=1e-6, steps=2)
    for before, parameter in zip(held, model.parameters(), strict=True):
        assert torch.equal(before, parameter) != parameter.requires_grad
    assert all(tensor.dtype == torch.bfloat16 for tensor in deployable_state(model, ALONE).values())


@pytest.fixture
def output(folder: Path, tmp_path: Path) -> Path:
    """Three checkpoints."""
    model = build(folder)
    optimizer = train(model, lr=1e-3)
    for step in (1, 2, 3):
        save(tmp_path / "out", step, model, optimizer, folder)
    return tmp_path / "out"


def cut(file: Path, share: float) -> None:
    os.truncate(file, int(file.stat().st_size * share))


DAMAGES = {
    "the state cut short": lambda step: cut(step / "training_state.pt", 0.9),
    "the state empty": lambda step: cut(step / "training_state.pt", 0),
    "the state not copied": lambda step: (step / "training_state.pt").unlink(),
    "the state overwritten with zeros": lambda step: (step / "training_state.pt").write_bytes(b"\0" * 20_000),
    "the weights cut short": lambda step: cut(step / "model.safetensors", 0.9),
    "the weights not copied": lambda step: (step / "model.safetensors").unlink(),
    "a shard not copied": lambda step: (step / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    ),
    "the config empty": lambda step: cut(step / "config.json", 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_used(
    folder: Path, output: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agree_on_last_step(output, ALONE) == 3 and capsys.readouterr().out == ""
    DAMAGES[damage](output / "step_3")
    left = sorted(path.name for path in (output / "step_3").iterdir())
    assert agree_on_last_step(output, ALONE) == 2
    said = capsys.readouterr().out
    assert f"{output / 'step_3'} is damaged" in said and "step_3.damaged" in said and said.count("\n") == 1
    assert sorted(path.name for path in output.iterdir()) == ["step_1", "step_2", "step_3.damaged"]
    assert sorted(path.name for path in (output / "step_3.damaged").iterdir()) == left
    model = build(folder)
    optimizer = train(model, lr=1e-3)
    assert resume_from(output, 2, model, optimizer, None, ALONE) == {"position": 2}
    save(output, 3, model, optimizer, folder)
    DAMAGES[damage](output / "step_3")
    assert agree_on_last_step(output, ALONE) == 2
    names = ["step_1", "step_2", "step_3.damaged", "step_3.damaged_2"]
    assert sorted(path.name for path in output.iterdir()) == names


def test_older_checkpoints_are_left_alone_and_none_whole_is_step_0(output: Path) -> None:
    cut(output / "step_1" / "training_state.pt", 0.5)
    assert agree_on_last_step(output, ALONE) == 3 and (output / "step_1").is_dir()
    for step in (2, 3):
        cut(output / f"step_{step}" / "training_state.pt", 0.5)
    assert agree_on_last_step(output, ALONE) == 0 and not list(output.glob("step_?"))
    assert agree_on_last_step(output / "nowhere", ALONE) == 0


def test_pruning_keeps_the_newest_the_best_and_what_is_damaged(output: Path) -> None:
    mark_best(output, 2)
    mark_best(output, 1)
    (output / "step_0.damaged").mkdir()
    prune_checkpoints(output, None)
    assert len(list(output.glob("step_*"))) == 4
    prune_checkpoints(output, 1, best=1)
    assert sorted(path.name for path in output.glob("*")) == ["best", "step_0.damaged", "step_1", "step_3"]
    assert load_weights(output / "best").keys() == load_weights(output / "step_1").keys()
    assert (output / "best").resolve().name == "step_1"


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
from test_training import build, logprobs, model_cfg, train
from tt_reasoning.rollout import generate
from tt_reasoning.training import arithmetic, build_model, deployable_state, start_process, stop_process

folder, output = Path(sys.argv[1]), Path(sys.argv[2])
process = start_process("cpu")
model = build(folder, "bf16_mixed", process, activation_checkpointing=True)
before = logprobs(model, "bf16_mixed").detach()
with arithmetic("bf16_mixed", process.device):
    found = generate(model, [[1, 2, 3]], [[0]], max_new_tokens=5, temperature=1.0, stop_tokens=[258], decode=str)
assert len(found[0][0].tokens) > 0
train(model, "bf16_mixed", lr=1e-6, steps=3)
weights = deployable_state(model, process)
assert {p.dtype for p in model.parameters()} == {torch.float32}

cfg = model_cfg(folder, lora_attn_modules=["q_proj", "v_proj"])
lora = build_model(cfg, str(folder), process, torch.float32, mixed=True, activation_checkpointing=True)
held = {n: p.full_tensor().clone() for n, p in lora.named_parameters()}
train(lora, "bf16_mixed", lr=1e-6, steps=2)
for name, parameter in lora.named_parameters():
    assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)
    assert torch.equal(held[name], parameter.full_tensor()) != parameter.requires_grad
torch.save((before, weights), output / f"{process.rank}.pt")
stop_process()
"""


def test_mixed_precision_on_two_processes_keeps_small_updates_too(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", script, folder, tmp_path],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (first, weights), (second, elsewhere) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert elsewhere == {} and torch.equal(first, second)
    exact = logprobs(build(folder), "fp32").detach()
    pure_error = (logprobs(build(folder, "bf16"), "bf16") - exact).abs().mean()
    assert 0 < (first - exact).abs().mean() < 1.5 * pure_error
    start, one = load_weights(folder), build(folder, "bf16_mixed")
    train(one, "bf16_mixed", lr=1e-6, steps=3)
    for name, alone in deployable_state(one, ALONE).items():
        assert weights[name].dtype == torch.float32
        moved, moved_alone = weights[name] - start[name], alone - start[name]
        assert (moved != 0).float().mean() > 0.95 and moved.abs().max() < 4e-6
        # Adam's steps follow the signs of the gradients, which two ways to round bf16 mostly agree on.
        assert F.cosine_similarity(moved.flatten(), moved_alone.flatten(), dim=0) > 0.8
