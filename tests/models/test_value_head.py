"""A value head beside a decoder: built, trained, saved, loaded and gone on with like the rest of the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from tiny import untie, write_tiny_model
from torchtune.modules import TransformerDecoder

from tt_reasoning.checkpoint import resume_from, save_checkpoint
from tt_reasoning.errors import UserError
from tt_reasoning.judges.values import read_values, value_scores
from tt_reasoning.loop import build_optimizer
from tt_reasoning.losses import JudgeSize, ValueLoss
from tt_reasoning.models import build_from_hf
from tt_reasoning.models.value_head import ValueHead, attach_head, saved_head
from tt_reasoning.models.weights import load_weights
from tt_reasoning.prefix_tree import completion_logprobs, pack_groups
from tt_reasoning.training import Process, arithmetic, build_model, deployable_state

ALONE = Process(0, 1, torch.device("cpu"))
TWO_VALUES = partial(ValueHead, num_values=2, meaning="two")
GROUPS = [([1, 2, 3, 4], [[5, 6, 7], [8], [9, 10]]), ([11], [[12, 13], [14, 15, 16]])]
OPTIMIZER = OmegaConf.create({"optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-3}})
KINDS = pytest.mark.parametrize("kind", ["full", "lora"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


def model_cfg(folder: Path, kind: str) -> DictConfig:
    lora = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 4} if kind == "lora" else {}
    builder = "lora_from_hf" if lora else "build_from_hf"
    return OmegaConf.create({"_component_": f"tt_reasoning.models.{builder}", "path": str(folder), **lora})


def build(
    folder: Path, kind: str = "full", process: Process = ALONE, dtype: str = "fp32", **options: object
) -> TransformerDecoder:
    precision, options = torch.bfloat16 if dtype == "bf16" else torch.float32, {"value_head": TWO_VALUES, **options}
    cfg = model_cfg(folder, kind)
    return build_model(cfg, str(folder), process, precision, mixed=dtype == "bf16_mixed", **options)


def values_of(model: TransformerDecoder, dtype: str = "fp32") -> torch.Tensor:
    with arithmetic(dtype, torch.device("cpu")):
        return read_values(model, pack_groups(GROUPS, "cpu")).values_SA


def train(model: TransformerDecoder, optimizer: torch.optim.Optimizer, steps: int, dtype: str = "fp32") -> None:
    """Move both values of every token towards numbers of its own."""
    row = pack_groups(GROUPS, "cpu")
    target_RA = torch.stack([row.target_R / 8 - 1, 2 - row.target_R / 4], -1)
    for _ in range(steps):
        with arithmetic(dtype, torch.device("cpu")):
            values_RA, logprobs_N = read_values(model, row, row.target_R > 6)
        ((values_RA - target_RA).pow(2).mean() - 0.1 * logprobs_N.mean()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def trained(
    folder: Path, kind: str = "full", process: Process = ALONE, dtype: str = "fp32", steps: int = 4
) -> tuple[TransformerDecoder, torch.optim.Optimizer]:
    model = build(folder, kind, process, dtype)
    optimizer, _ = build_optimizer(OPTIMIZER, model, 9, head_lr=0.05)
    train(model, optimizer, steps, dtype)
    return model, optimizer


def test_a_value_is_gain_times_product_plus_bias_in_fp32() -> None:
    head = ValueHead(3, 2, meaning="two")
    weights = {"weight": [[1.0, 2.0, 3.0], [0.0, -1.0, 0.5]], "gain": [2.0, -1.0], "bias": [0.25, 10.0]}
    head.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    hidden = torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, 4.0]], dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = head(hidden)
    # 2 * 6 + 0.25, -(-0.5) + 10; 2 * 14 + 0.25, -2 + 10
    assert values.dtype == torch.float32 and values.tolist() == [[12.25, 10.5], [28.25, 8.0]]


def test_dropout_is_for_training_alone() -> None:
    head = ValueHead(1000, meaning="one", dropout=0.25)
    head.load_state_dict({"weight": torch.ones(1, 1000), "gain": torch.ones(1), "bias": torch.zeros(1)})
    torch.manual_seed(0)
    assert 900 < head(torch.ones(1000)).item() < 1100 and head(torch.ones(1000)) != 1000
    assert head.eval()(torch.ones(1000)) == 1000


@KINDS
def test_a_fresh_head_says_zero_and_leaves_the_model_as_it_was(folder: Path, kind: str) -> None:
    model, without = build(folder, kind), build(folder, kind, value_head=None)
    assert not values_of(model).any()
    tokens = torch.arange(1, 20)[None]
    assert torch.equal(model(tokens), without(tokens))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    plain = [name for name, parameter in without.named_parameters() if parameter.requires_grad]
    assert names == [*plain, "value_head.weight", "value_head.gain", "value_head.bias"]
    assert deployable_state(model, ALONE).keys() == deployable_state(without, ALONE).keys()


def test_the_head_is_fp32_in_a_model_that_is_not(folder: Path) -> None:
    for dtype in ("bf16", "bf16_mixed"):
        model, _ = trained(folder, "lora", dtype=dtype)
        assert {parameter.dtype for parameter in model.value_head.parameters()} == {torch.float32}
        assert model.tok_embeddings.weight.dtype == torch.bfloat16 and model.value_head.gain.ne(1).all()


def test_solutions_that_share_a_prompt_have_the_values_of_one_row_each(folder: Path) -> None:
    model, _ = trained(folder)
    shared, learn_R = pack_groups(GROUPS, "cpu"), torch.tensor([True, False, True, True, True] + [False, True] * 3)
    values_RA, logprobs_N = read_values(model, shared, learn_R, chunk=2)
    alone = [values_of_one(model, prompt, solution) for prompt, group in GROUPS for solution in group]
    torch.testing.assert_close(values_RA, torch.cat(alone), atol=1e-5, rtol=0)
    assert values_RA.std() > 0.1
    torch.testing.assert_close(logprobs_N, completion_logprobs(model, shared)[learn_R])
    at_S = shared.place_R[torch.tensor([2, 3, 5])]
    model.value_head = ValueHead(32, meaning="one")
    model.value_head.weight.data.normal_(std=0.2)
    expected = read_values(model, shared).values_SA.squeeze(-1)[torch.tensor([2, 3, 5])]
    torch.testing.assert_close(value_scores(model, shared, at_S, squash=True), expected.sigmoid())
    torch.testing.assert_close(value_scores(model, shared, at_S, squash=False), expected.clamp(0, 1))


def values_of_one(model: TransformerDecoder, prompt: list[int], solution: list[int]) -> torch.Tensor:
    """By the model's own forward pass over the plain row."""
    model.unembed = lambda hidden_1TD: model.value_head(model.norm(hidden_1TD[0, len(prompt) :]))
    found = model(torch.tensor([prompt + solution]))
    del model.unembed
    return found


def test_the_head_has_a_learning_rate_of_its_own(folder: Path) -> None:
    model = build(folder)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer, _ = build_optimizer(OPTIMIZER, model, 9, head_lr=0.05)
    train(model, optimizer, steps=1)
    moved = {name: (p - before[name]).abs().max().item() for name, p in model.named_parameters()}
    assert moved.pop("value_head.weight") == pytest.approx(0.05, rel=1e-3) == moved.pop("value_head.bias")
    assert moved.pop("value_head.gain") < 0.05  # its product is still 0: nothing but weight decay moves it
    assert 0 < max(moved.values()) < 2e-3


@pytest.mark.parametrize("what", ["values", "words", "both", "neither"])
def test_every_row_gives_every_weight_a_gradient_so_that_sharded_processes_meet(folder: Path, what: str) -> None:
    """Also where nothing is to be learned, and where the output layer is not the embedding: then it is zero."""
    model = build_from_hf(str(untie(folder)))
    attach_head(model, partial(ValueHead, meaning="one"))
    row = pack_groups(GROUPS, "cpu")
    target_R = torch.full(row.target_R.shape, 1.0 if what in ("values", "both") else float("nan"))
    learn_R = torch.full(row.target_R.shape, what in ("words", "both"))
    values_RA, logprobs_N = read_values(model, row, learn_R)
    loss, _ = ValueLoss()(values_RA.squeeze(-1), target_R, logprobs_N, JudgeSize(11, 11))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert gradients["value_head.weight"].any().item() == (what in ("values", "both"))
    assert gradients["output.weight"].any().item() == (what in ("words", "both"))


@KINDS
def test_a_checkpoint_holds_the_head_where_no_loader_looks(folder: Path, tmp_path: Path, kind: str) -> None:
    model, optimizer = trained(folder, kind)
    saved = save_checkpoint(tmp_path, 3, model, optimizer, None, str(folder), ALONE, {})
    assert load_file(saved / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()
    assert load_weights(saved).keys() == load_weights(folder).keys()
    head = load_file(saved / "value_head" / "model.safetensors")
    assert all(torch.equal(head[name], tensor) for name, tensor in model.value_head.state_dict().items())
    assert json.loads((saved / "value_head" / "value_head.json").read_text()) == {"num_values": 2, "meaning": "two"}
    judge = build_model(model_cfg(folder, "full"), str(saved), ALONE, torch.float32, value_head=saved_head(saved))
    torch.testing.assert_close(values_of(judge), values_of(model), atol=1e-5, rtol=1e-5)  # LoRA is merged in


@KINDS
def test_a_resumed_run_ends_in_the_bits_of_an_uninterrupted_one(folder: Path, tmp_path: Path, kind: str) -> None:
    whole, optimizer = trained(folder, kind, steps=2)
    save_checkpoint(tmp_path, 2, whole, optimizer, None, str(folder), ALONE, {})
    train(whole, optimizer, steps=2)
    resumed = build(folder, kind)
    optimizer, _ = build_optimizer(OPTIMIZER, resumed, 9, head_lr=0.05)
    resume_from(tmp_path, 2, resumed, optimizer, None, ALONE)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 0.05]
    train(resumed, optimizer, steps=2)
    first, second = whole.state_dict(), resumed.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def begin(folder: Path, init: str | None, num_columns: int | None = 320, **options: object) -> dict[str, torch.Tensor]:
    head = partial(TWO_VALUES, num_columns=num_columns)
    return build(folder, value_head=head, head_init=init, **options).value_head.state_dict()


def test_a_head_begins_at_zero_at_random_or_as_the_output_layer(folder: Path) -> None:
    weights = load_weights(folder)["tok_embeddings.weight"]
    zero, reused, drawn = (begin(folder, init) for init in ("zero", "reuse", "random"))
    assert not zero["weight"].any() and zero["gain"].eq(1).all() and not zero["bias"].any()
    # The two values of token v are rows 2 v and 2 v + 1.
    assert torch.equal(reused["weight"][0::2], weights) and torch.equal(reused["weight"][1::2], weights)
    assert drawn["weight"].std().item() == pytest.approx(0.02, rel=0.02) and abs(drawn["weight"].mean()) < 1e-3
    again, other = begin(folder, "random"), begin(folder, "random", seed=1)
    assert torch.equal(again["weight"], drawn["weight"]) and not torch.equal(other["weight"], drawn["weight"])
    for init in (reused, drawn):
        assert init["gain"].eq(1).all() and not init["bias"].any()
    with pytest.raises(UserError, match="reuse copies the output layer's row of every token"):
        begin(folder, "reuse", num_columns=None)
    with pytest.raises(UserError, match="value_head.init: warm, but .* holds no value_head/"):
        begin(folder, "warm")


def test_a_checkpoints_own_head_is_taken_when_asked_for_or_nothing_is_asked(folder: Path, tmp_path: Path) -> None:
    model, optimizer = trained(folder)
    saved = save_checkpoint(tmp_path, 1, model, optimizer, None, str(folder), ALONE, {})
    own = model.value_head.state_dict()
    for init in ("warm", None):
        found = begin(saved, init, num_columns=None)
        assert all(torch.equal(found[name], own[name]) for name in own)
    assert not begin(saved, "zero", num_columns=None)["weight"].any()
    assert torch.equal(begin(saved, "reuse")["weight"][::2], load_weights(saved)["tok_embeddings.weight"])


def test_an_untied_output_layer_is_what_a_head_reuses(folder: Path) -> None:
    weights = load_weights(untie(folder))
    assert torch.equal(weights["output.weight"], -weights["tok_embeddings.weight"])
    assert torch.equal(begin(folder, "reuse")["weight"][::2], weights["output.weight"])


@pytest.mark.parametrize("num_values", [1, 3])
def test_a_column_is_read_in_the_state_before_its_token(folder: Path, num_values: int) -> None:
    head = partial(ValueHead, num_values=num_values, meaning="q", num_columns=320)
    model, row = build(folder, value_head=head, head_init="random"), pack_groups(GROUPS, "cpu")
    model.value_head.bias.data.normal_(generator=torch.Generator().manual_seed(0))
    values_RA, tokens_S = read_values(model, row).values_SA, torch.tensor([0, 3, 8])
    assert values_RA.shape == (len(row.target_R), num_values) and values_RA.std() > 0.1
    torch.testing.assert_close(read_values(model, row, tokens_S=tokens_S).values_SA, values_RA[tokens_S])
    model.unembed = lambda hidden_1TD: model.value_head(model.norm(hidden_1TD[0]))  # all columns: [T, V, A]
    alone = []
    for prompt, group in GROUPS:
        for solution in group:
            everything = model(torch.tensor([prompt + solution]))
            places = range(len(prompt) - 1, len(prompt) + len(solution) - 1)
            alone += [everything[place, token] for place, token in zip(places, solution, strict=True)]
    torch.testing.assert_close(values_RA, torch.stack(alone), atol=1e-5, rtol=0)


def test_some_tokens_are_read_as_among_all(folder: Path) -> None:
    model, row = trained(folder)[0], pack_groups(GROUPS, "cpu")
    tokens_S = torch.tensor([1, 2, 7])
    found = read_values(model, row, tokens_S=tokens_S).values_SA
    torch.testing.assert_close(found, read_values(model, row).values_SA[tokens_S])


def test_another_head_is_refused_by_what_it_says(folder: Path, tmp_path: Path) -> None:
    model, optimizer = trained(folder)
    saved = save_checkpoint(tmp_path, 1, model, optimizer, None, str(folder), ALONE, {})
    for other in (partial(ValueHead, meaning="two"), partial(ValueHead, num_values=2, meaning="logit")):
        with pytest.raises(UserError, match="value_head is another head: 2 value.s., 'two', where this run trains"):
            build_model(model_cfg(folder, "full"), str(saved), ALONE, torch.float32, value_head=other)
    headless = build(folder, value_head=None)
    with pytest.raises(UserError, match="its value head is not that of the config's model; set another output_dir"):
        resume_from(tmp_path, 1, headless, optimizer, None, ALONE)
    with pytest.raises(UserError, match="holds no value head"):
        saved_head(folder)
    head = saved / "value_head" / "model.safetensors"
    os.truncate(head, 100)
    with pytest.raises(UserError, match="not a value head, or a damaged one"):
        saved_head(saved)
    save_file({"w": torch.zeros(1)}, head)
    with pytest.raises(UserError, match="is another head"):
        build_model(model_cfg(folder, "full"), str(saved), ALONE, torch.float32, value_head=TWO_VALUES)


TWO_PROCESSES = """
import sys
from pathlib import Path
import torch
from test_value_head import OPTIMIZER, begin, build, train, trained, values_of
from tt_reasoning.checkpoint import resume_from, save_checkpoint
from tt_reasoning.loop import build_optimizer
from tt_reasoning.training import start_process, stop_process

folder, output = Path(sys.argv[1]), Path(sys.argv[2])
process = start_process("cpu")
for kind, dtype in (("full", "fp32"), ("lora", "bf16_mixed")):
    model, optimizer = trained(folder, kind, process, dtype, steps=2)
    save_checkpoint(output / kind, 2, model, optimizer, None, str(folder), process, {})
    train(model, optimizer, 2, dtype)
    end = {name: t.full_tensor() for name, t in model.state_dict().items()}
    resumed = build(folder, kind, process, dtype)
    optimizer, _ = build_optimizer(OPTIMIZER, resumed, 9, head_lr=0.05)
    resume_from(output / kind, 2, resumed, optimizer, None, process)
    train(resumed, optimizer, 2, dtype)
    assert all(torch.equal(end[name], t.full_tensor()) for name, t in resumed.state_dict().items())
    if process.is_main:
        torch.save(end, output / f"{kind}.pt")
for init in ("reuse", "random"):
    head = {name: t.full_tensor() for name, t in begin(folder, init, process=process).items()}
    if process.is_main:
        torch.save(head, output / f"{init}.pt")
stop_process()
"""


def test_two_processes_train_save_and_resume_as_one(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    paths = os.pathsep.join([*(str(Path(__file__).parents[n]) for n in (0, 1)), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", script, folder, tmp_path],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    two, (one, _) = torch.load(tmp_path / "full.pt"), trained(folder)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-4)
    for init in ("reuse", "random"):
        alone, here = begin(folder, init), torch.load(tmp_path / f"{init}.pt")
        assert here["weight"].any() and all(torch.equal(here[name], alone[name]) for name in alone)
    lora = torch.load(tmp_path / "lora.pt")
    assert lora["value_head.weight"].dtype == torch.float32 and lora["value_head.gain"].ne(1).all()
