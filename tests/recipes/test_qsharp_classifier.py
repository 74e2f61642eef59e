"""The recipe of value models as a user runs it: every head and loss, on one process and two, killed, gone on with."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import qsharp_classifier
import torch
from grpo_home import merge, metrics, num_logged, rows_of, run, run_until
from omegaconf import DictConfig
from qsharp_home import CONFIG, command, settings, write_collection, write_home
from safetensors.torch import load_file
from tiny import untie, write_tiny_model
from torch.nn import functional as F

from tt_reasoning.errors import UserError
from tt_reasoning.guidance import ValueCard, read_value_card
from tt_reasoning.guidance.decode import ValueGuide, load_value_model
from tt_reasoning.guidance.rules import mean_return, token_bonus
from tt_reasoning.models.value_head import saved_head
from tt_reasoning.prompts import PROMPTS
from tt_reasoning.store import write_records
from tt_reasoning.training import Process, build_model
from tt_reasoning.types import Guidance

Q_ATOMS = ("value_head.type=Q", "loss.kind=categorical", "loss.num_atoms=3")
LORA = ("model._component_=tt_reasoning.models.lora_from_hf", "+model.lora_attn_modules=[q_proj]", "+model.lora_rank=4")
HEAD = "value_head/model.safetensors"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, its untied twin, and four examples of each of eight problems, two of them held out."""
    home = write_home(tmp_path_factory.mktemp("home"))
    untie(write_tiny_model(home / "untied"))
    return home


def config_of(home: Path, output: str, *overrides: str) -> DictConfig:
    return merge(CONFIG, [*settings(home, output), *(word.removeprefix("+") for word in overrides)])


def run_here(home: Path, output: str, *overrides: str) -> Path:
    """The recipe in this process; returns the output folder."""
    qsharp_classifier.main(config_of(home, output, *overrides))
    return home / output


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    """A V model by cross-entropy, that nothing disturbs."""
    return run_here(home, "whole", "max_steps=40", "evaluation.every_n_steps=20")


@pytest.fixture(scope="module")
def atoms(home: Path) -> Path:
    """A Q model of three atoms."""
    return run_here(home, "atoms", *Q_ATOMS, "max_steps=40", "evaluation.every_n_steps=20", "value_head.init=reuse")


def test_a_value_model_learns_the_rule_and_says_it_of_held_out_problems(whole: Path, atoms: Path) -> None:
    rows, evaluations = metrics(whole), rows_of(whole / "evaluations.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert [row["step"] for row in evaluations] == [0, 20, 40]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5) and rows[0]["mean_return"] == 0.5
    # Two problems a step with four examples each, half of them right; supervised from the switch token to the end.
    assert all(row["answers"] == 8 and row["good_share"] == 0.5 for row in rows)
    assert all(row["answers"] < row["value_tokens"] < row["tokens"] for row in rows)
    last = evaluations[-1]
    assert last["last_explained_variance"] > 0.9 > last["explained_variance"] > 0.3  # in the middle nobody can know
    assert last["last_auc"] > 0.9 and last["problems"] == 2 and last["sequences"] == 8
    assert metrics(atoms)[0]["loss"] == pytest.approx(math.log(3), abs=1e-5) and metrics(atoms)[-1]["loss"] < 0.3
    assert rows_of(atoms / "evaluations.jsonl")[-1]["explained_variance"] > 0.1


def values_alone(folder: Path, cfg: DictConfig, card: ValueCard) -> dict[str, torch.Tensor]:
    """What a checkpoint says of the held-out answers, by the model's own pass over each of them."""
    cfg.evaluation = {"every_n_steps": 1}
    loss = qsharp_classifier.ReturnLoss(card.loss, num_atoms=card.num_atoms)
    data, head = qsharp_classifier.load_data(cfg, loss), saved_head(folder)
    model = build_model(cfg.model, str(folder), Process(0, 1, torch.device("cpu")), torch.float32, value_head=head)
    model.eval().unembed = lambda hidden_1TD: model.value_head(model.norm(hidden_1TD[0]))
    found = {}
    for group in data.held_out:
        for solution in group.solutions:
            tokens = group.prompt_tokens + solution.tokens
            with torch.no_grad():
                values = model(torch.tensor([tokens]))  # [T, A], of a Q head [T, V, A]
            at = torch.tensor(solution.reads) + len(group.prompt_tokens)
            own = values[at] if card.head == "V" else values[at - 1, torch.tensor(tokens)[at]]
            found[solution.answer_id] = own
    return found


@pytest.mark.parametrize("name", ["whole", "atoms"])
def test_the_held_out_scores_are_those_of_the_checkpoint(
    home: Path, name: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(name)
    card, rows = read_value_card(folder / "step_40"), rows_of(folder / "held_out.jsonl")
    values = values_alone(folder / "step_40", config_of(home, name), card)
    assert len(rows) == len(values) == 8 and {row["step"] for row in rows} == {40}
    losses = []
    for row in rows:
        own_SA = values[row["answer_id"]]
        assert row["scores"] == pytest.approx(mean_return(own_SA).tolist(), abs=1e-5)
        target_S = torch.full((len(own_SA),), row["label"])
        if card.loss == "bce":
            losses.append(F.binary_cross_entropy_with_logits(own_SA[:, 0], target_S).item())
        else:  # right answers are the last of the three atoms, wrong ones the first
            losses.append(F.cross_entropy(own_SA, (2 * target_S).long()).item())
    last = rows_of(folder / "evaluations.jsonl")[-1]
    assert last["loss"] == pytest.approx(sum(losses) / 8, abs=1e-5)
    best = min(rows_of(folder / "evaluations.jsonl"), key=lambda row: row["loss"])
    assert (folder / "best").resolve().name == f"step_{best['step']}"


@pytest.mark.parametrize("name", ["whole", "atoms"])
def test_guided_decoding_reads_a_checkpoint_as_the_recipe_did(
    home: Path, name: str, request: pytest.FixtureRequest
) -> None:
    """What is added to a token is the bonus of the values that training reads there: first, last and between."""
    folder: Path = request.getfixturevalue(name)
    model, card = load_value_model(folder / "step_40", Process(0, 1, torch.device("cpu")), torch.float32)
    guidance = Guidance(value_model=str(folder), eta=3.0, top_k=1, rule=card.rule)
    data = qsharp_classifier.load_data(config_of(home, name), qsharp_classifier.ReturnLoss())
    values = values_alone(folder / "step_40", config_of(home, name), card)
    for solution in data.held_out[0].solutions:
        for index in {0, len(solution.reads) // 2, len(solution.reads) - 1}:
            tokens = data.held_out[0].prompt_tokens + solution.tokens[: solution.reads[index] + 1]
            logits_MV = F.one_hot(torch.tensor(tokens[-1:]), 320).float()
            with ValueGuide(model, card, guidance, 320).open([tokens[:-1]], [1], 4) as steering, torch.no_grad():
                found = steering.steer(logits_MV, None)[0, tokens[-1]] - 1
            expected = token_bonus(values[solution.answer_id][index], 3.0, card.rule)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_checkpoint_says_how_it_is_to_be_read(home: Path, whole: Path, atoms: Path) -> None:
    template = PROMPTS["steps"].template()
    read = {"prompt": "steps", "template": template, "end": 258}  # <|im_end|>
    assert read_value_card(whole / "best") == ValueCard(head="V", loss="bce", **read)
    expected = ValueCard(head="Q", loss="categorical", num_atoms=3, **read)
    assert read_value_card(atoms / "step_40") == expected and expected.rule == "categorical"
    baked = run_here(home, "baked", "max_steps=1", "loss.kind=mse", "loss.target=expectation", "loss.eta=2.0")
    card = read_value_card(baked / "step_1")
    assert (card.rule, card.eta, card.loss) == ("expectation", 2.0, "mse")
    # 0.5 said, exp(-2) and 1 learned, of half the answers each.
    expected = 0.5 * ((0.5 - math.exp(-2)) ** 2 + 0.5**2)
    assert metrics(baked)[0]["loss"] == pytest.approx(expected, abs=1e-6)


def test_rows_and_accumulation_change_nothing_and_switch_tokens_alone_are_one_an_answer(home: Path) -> None:
    words = ["max_steps=3", "optimizer._component_=torch.optim.SGD"]  # Adam's first steps magnify rounding
    plain = metrics(run_here(home, "plain", *words))
    apart = metrics(run_here(home, "apart", *words, "pack_tokens=null"))
    parts = metrics(run_here(home, "parts", *words, "batch_size=1", "gradient_accumulation_steps=2"))
    assert plain[0]["loss"] > plain[-1]["loss"] + 0.01
    for others in (apart, parts):
        for one, other in zip(plain, others, strict=True):
            assert other == pytest.approx(one, rel=1e-4, abs=1e-5)
    (only,) = metrics(run_here(home, "switch", "max_steps=1", "dataset.switch_token_only=true", "dtype=bf16_mixed"))
    assert only["value_tokens"] == only["answers"] == 8


def test_two_processes_compute_the_loss_of_one(home: Path) -> None:
    """A Q head that begins as the output layer, which itself is not trained. Sums are in another order, so up to
    rounding."""
    words = ["max_steps=4", "value_head.type=Q", "value_head.init=reuse", "pack_tokens=20"]
    words += [f"checkpoint={home / 'untied'}", f"model.path={home / 'untied'}"]
    result = run(command(home, "two", *words, "batch_size=1", processes=2))
    assert result.returncode == 0, result.stderr
    one = run_here(home, "one", *words)
    assert metrics(one)[0]["loss"] != pytest.approx(math.log(2), abs=1e-3)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        rows = [[{k: v for k, v in row.items() if "second" not in k and "_per_s" not in k} for row in rows_of(f / name)]
                for f in (one, home / "two")]  # fmt: skip
        assert len(rows[0]) == len(rows[1]) > 1
        for row_one, row_two in zip(*rows, strict=True):
            assert row_two == pytest.approx(row_one, rel=1e-3, abs=1e-4)
    assert "its head from the output layer" in result.stdout


def test_a_killed_run_ends_in_the_bits_of_one_that_was_not(home: Path) -> None:
    words = ["max_steps=30", "save_every_n_steps=5", "value_head.dropout=0.2", "value_head.init=random"]
    never, killed = run_here(home, "never", *words), home / "killed"
    assert run_until(command(home, "killed", *words), lambda: num_logged(killed) >= 12)
    result = run(command(home, "killed", *words))
    assert result.returncode == 0 and "going on from step" in result.stdout, result.stderr
    assert "24 answers, 50.0% right, to 6 problems; 2 problems held out; a V model of logit of" in result.stdout
    assert metrics(killed) == metrics(never) and len(metrics(never)) == 30
    assert (killed / "held_out.jsonl").read_bytes() == (never / "held_out.jsonl").read_bytes()
    for name in ("model.safetensors", HEAD, "value.json"):
        assert (killed / "step_30" / name).read_bytes() == (never / "step_30" / name).read_bytes(), name


@pytest.mark.parametrize(
    "words", [[*LORA, *Q_ATOMS], ["untied", "loss.kind=mse"], ["untied", "value_head.type=Q"]], ids=["lora", "V", "Q"]
)
def test_every_kind_goes_on_exactly_from_its_checkpoint(home: Path, words: list[str], tmp_path: Path) -> None:
    """Also where the output layer has no gradient, as no word is learned."""
    base = home / "untied" if "untied" in words else home / "model"
    words = [w for w in words if w != "untied"] + [f"checkpoint={base}", f"model.path={base}", f"output_dir={tmp_path}"]
    words += ["max_steps=4", "save_every_n_steps=2", "keep_checkpoints=null", "dtype=bf16_mixed", "seed=1"]
    run_here(home, "", *words)
    first = {name: (tmp_path / "step_4" / name).read_bytes() for name in ("model.safetensors", HEAD)}
    assert first["model.safetensors"] != (base / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "step_4")
    run_here(home, "", *words)
    assert {name: (tmp_path / "step_4" / name).read_bytes() for name in first} == first
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4]


def test_where_a_head_begins_is_as_asked(home: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last, checkpoint = rows_of(whole / "evaluations.jsonl")[-1]["loss"], f"checkpoint={whole / 'step_40'}"
    for init, wanted, said in (
        ("warm", last, f"its head that of {whole}"),
        ("null", last, f"its head that of {whole}"),
        ("zero", math.log(2), f"its head at zero (that of {whole}/step_40 left aside)"),
    ):
        again = run_here(home, f"again_{init}", "max_steps=1", checkpoint, f"value_head.init={init}")
        assert rows_of(again / "evaluations.jsonl")[0]["loss"] == pytest.approx(wanted, abs=1e-6)
        assert said in capsys.readouterr().out
    with pytest.raises(UserError, match="is another head: 1 value.s., 'logit of: the return', where this run trains 3"):
        run_here(home, "other", "max_steps=1", checkpoint, "value_head.init=warm", *Q_ATOMS[1:])
    rounds = write_collection(home / "r2", start=8)
    run_here(home, "rounds", "max_steps=1", f"dataset.sources=[{home / 'r1'},{rounds}]", "evaluation=null")
    assert "48 answers, 50.0% right, to 12 problems; 0 problems held out" in capsys.readouterr().out
    assert not (home / "rounds" / "evaluations.jsonl").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["value_head.tpye=Q"], "unknown config key 'value_head.tpye': did you mean 'value_head.type'?"),
        (["value_head.type=VQ"], "config key value_head.type: found 'VQ', wanted 'V' or 'Q'"),
        (["value_head.dropout=1.0"], "config key value_head.dropout: 1 leaves nothing to read"),
        (["value_head.init=reuse"], "config key value_head.init: reuse copies the output layer's row of every token"),
        (["value_head.init=warm"], "config key value_head.init: warm, but"),
        (["loss.kind=bse"], "unknown value of config key loss.kind 'bse': did you mean"),
        (["loss.eta=5.0"], "config key loss.eta: 5, but with loss.target=bernoulli eta belongs to decoding"),
        (["loss.target=expectation"], "config key loss.eta: missing"),
        ([*Q_ATOMS, "loss.low=0.5"], "a return of 0 is outside [0.5, 1], the range of loss.kind=categorical"),
        (["dataset.sources=[nowhere]"], "nowhere"),
        (["dataset.sources=nowhere"], "give a list of folders"),
        (["dataset.max_tokens=9"], "gives nothing to train on"),
        (["loss._component_=tt_reasoning.losses.ValueLoss", "~loss.target", "~loss.eta"], "use losses.ReturnLoss"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_told_before_anything_is_trained(home: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        run_here(home, "mistake", "max_steps=1", *overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_collection_that_holds_nothing_out_wants_no_evaluation(tmp_path: Path) -> None:
    home = write_home(tmp_path)
    file = home / "r1" / "examples.jsonl"
    write_records(file, [row | {"split": "train"} for row in rows_of(file)])
    with pytest.raises(UserError, match="no problem of dataset.sources is held out; set evaluation=null"):
        run_here(home, "none", "max_steps=1")
    folder = run_here(home, "none", "max_steps=1", "evaluation=null")
    assert not (folder / "best").exists() and load_file(folder / "step_1" / HEAD)["weight"].shape == (1, 32)
