"""The verifier's recipe as a user runs it: on one process and two, killed, gone on with, mistyped."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import verifier_valuehead
from grpo_home import merge, metrics, num_logged, rows_of, run, run_until
from judge_home import CONFIGS, command, settings, write_home
from omegaconf import DictConfig
from safetensors.torch import load_file
from tiny import untie
from torch.nn import functional as F

from tt_reasoning.datasets.prm import pack_judged
from tt_reasoning.errors import UserError
from tt_reasoning.judges import JudgeCard, read_card
from tt_reasoning.judges.forms import find_form
from tt_reasoning.judges.native import NativeJudge
from tt_reasoning.judges.values import value_scores
from tt_reasoning.models import ChatTokenizer
from tt_reasoning.models.value_head import saved_head
from tt_reasoning.store import read_records, write_records
from tt_reasoning.training import Process, build_model
from tt_reasoning.types import Answer, Problem

CPU = ("verifier_valuehead", "135M_verifier_cpu.yaml")
REFERENCES = "reference_solutions={_component_: tt_reasoning.datasets.sft_dataset, source: x}"
SETTINGS = ("evaluation.share=0.25", "evaluation.every_n_steps=4", "lr_scheduler.num_warmup_steps=1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three answers to each of eight problems; one is right, and one of all could not be judged."""
    home = write_home(tmp_path_factory.mktemp("home"))
    set_verdicts(home, lambda answer_id, correct: None if answer_id == "7-2" else correct)
    problems = rows_of(home / "steps" / "problems.jsonl")
    write_records(home / "sft.jsonl", [{"question": p["question"], "model_response": "It is so."} for p in problems])
    return home


def set_verdicts(home: Path, correct: Callable[[str, bool], bool | None]) -> None:
    file = home / "steps" / "verdicts.jsonl"
    write_records(file, [row | {"correct": correct(row["answer_id"], row["correct"])} for row in rows_of(file)])


def config_of(home: Path, output: str, *overrides: str) -> DictConfig:
    return merge(CONFIGS / CPU[1], [*settings(home, output), *SETTINGS, *overrides])


def run_here(home: Path, output: str, *overrides: str) -> Path:
    """The recipe in this process; returns the output folder."""
    verifier_valuehead.main(config_of(home, output, *overrides))
    return home / output


def references(home: Path) -> str:
    """Solutions of nine bytes and their end."""
    file = home / "sft.jsonl"
    return f"reference_solutions={{_component_: tt_reasoning.datasets.sft_dataset, source: {file}, prompt: steps}}"


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    """A run that nothing disturbs."""
    return run_here(home, "whole", "max_steps=40", "value_head.lr=0.03", "evaluation.every_n_steps=20")


def test_a_verifier_learns_the_rule_and_tells_right_from_wrong_on_held_out_problems(home: Path, whole: Path) -> None:
    rows, evaluations = metrics(whole), rows_of(whole / "evaluations.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert [row["step"] for row in evaluations] == [0, 20, 40]
    assert rows[0]["value_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert evaluations[-1]["loss"] < 0.5 and evaluations[-1]["auc"] > 0.9
    assert rows[0]["loss"] == pytest.approx(rows[0]["value_loss"] + rows[0]["language_model_loss"])
    # Every byte of an answer has its value; those of right answers are what the language model learns.
    assert all(0 < row["language_model_tokens"] < row["value_tokens"] < row["tokens"] for row in rows)
    before, after = (load_file(path / "model.safetensors") for path in (home / "model", whole / "step_40"))
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)


def test_the_held_out_scores_are_those_of_the_checkpoint_read_at_the_last_token(home: Path, whole: Path) -> None:
    rows, card, cfg = rows_of(whole / "held_out.jsonl"), read_card(whole / "step_40"), config_of(home, "whole")
    assert card == JudgeCard(head="value", prompt="steps", step_token="", outcome=True, squash=True)
    best = min(rows_of(whole / "evaluations.jsonl"), key=lambda row: row["loss"])
    assert (whole / "best").resolve().name == f"step_{best['step']}"
    data = verifier_valuehead.load_data(cfg)
    assert not {group.problem_id for group in data.train} & {group.problem_id for group in data.held_out}
    head, alone = saved_head(whole / "step_40"), Process(0, 1, torch.device("cpu"))
    model = build_model(cfg.model, str(whole / "step_40"), alone, torch.float32, value_head=head).eval()
    row = pack_judged(data.held_out, "cpu")
    scores = value_scores(model, row.packed, row.place_S, squash=True)
    found = dict(zip([solution.answer_id for solution in row.solutions], scores.tolist(), strict=True))
    assert found == pytest.approx({row["answer_id"]: row["scores"][0] for row in rows}, abs=1e-5)
    labels = torch.tensor([solution.labels[0] for solution in row.solutions])
    last = rows_of(whole / "evaluations.jsonl")[-1]
    assert last["loss"] == pytest.approx(F.binary_cross_entropy(scores, labels).item(), abs=1e-5)


def test_ranking_reads_a_checkpoint_as_the_recipe_did(home: Path, whole: Path) -> None:
    form, tokenizer = find_form(whole / "step_40")
    judge = NativeJudge(str(whole / "step_40"), form, device="cpu")
    questions = {problem.id: problem.question for problem in read_records(home / "steps" / "problems.jsonl", Problem)}
    answers = {answer.id: answer for answer in read_records(home / "steps" / "answers.jsonl", Answer)}
    for row in rows_of(whole / "held_out.jsonl"):
        text = answers[row["answer_id"]].text
        layout = form.format.lay_out(tokenizer, questions[row["problem_id"]], text, form.spans(text, "auto"))
        assert judge.score([[layout]])[0][0] == pytest.approx(row["scores"], abs=1e-5)


def test_reference_solutions_of_held_out_problems_are_not_learned(home: Path) -> None:
    data = verifier_valuehead.load_data(config_of(home, "hidden", references(home)))
    assert (len(data.train), len(data.held_out), len(data.references)) == (6, 2, 6)
    asked = {problem.id: problem.question for problem in read_records(home / "steps" / "problems.jsonl", Problem)}
    hidden = {asked[group.problem_id] for group in data.held_out}
    tokenizer = ChatTokenizer(home / "model")
    shown = [tokenizer.decode(group.prompt_tokens) for group in data.references]
    assert not [text for text in shown for question in hidden if question in text]


def test_two_processes_compute_the_loss_of_one(home: Path) -> None:
    """A row each, so that one process computes a reference solution while the other computes answers.

    Sums are in another order, so up to fp32 rounding, which Adam's first steps magnify.
    """
    settings = ["max_steps=4", references(home), "pack_tokens=20"]
    result = run(command(home, *CPU, "two", *SETTINGS, *settings, "batch_size=1", processes=2))
    assert result.returncode == 0, result.stderr
    one = run_here(home, "one", *settings)
    for row_one, row_two in zip(metrics(one), metrics(home / "two"), strict=True):
        assert row_two == pytest.approx(row_one, rel=1e-4, abs=1e-5)
        assert row_one["language_model_tokens"] == 2 * (len("It is so.") + 1)  # each with the token that ends it
    evaluations = [rows_of(folder / "evaluations.jsonl") for folder in (one, home / "two")]
    assert len(evaluations[0]) == 2
    for row_one, row_two in zip(*evaluations, strict=True):
        assert row_two == pytest.approx(row_one, rel=1e-4, abs=1e-5)


def test_a_killed_run_ends_in_the_bits_of_one_that_was_not(home: Path) -> None:
    settings = ["max_steps=30", "save_every_n_steps=5", "value_head.dropout=0.2"]
    never, words = run_here(home, "never", *settings), command(home, *CPU, "killed", *SETTINGS, *settings)
    assert run_until(words, lambda: num_logged(home / "killed") >= 12)
    result = run(words)
    assert result.returncode == 0 and "going on from step" in result.stdout, result.stderr
    assert "to 6 problems (left out: 1 no_label); 2 problems held out, 0 reference solutions" in result.stdout
    assert f"done: 30 steps -> {home / 'killed' / 'step_30'}" in result.stdout
    killed = home / "killed"
    assert metrics(killed) == metrics(never) and len(metrics(never)) == 30
    assert (killed / "held_out.jsonl").read_bytes() == (never / "held_out.jsonl").read_bytes()
    for name in ("model.safetensors", "value_head/model.safetensors"):
        assert (killed / "step_30" / name).read_bytes() == (never / "step_30" / name).read_bytes(), name


def test_what_the_language_model_learns_is_as_asked_and_changes_no_value_at_first(home: Path) -> None:
    (everything,) = metrics(run_here(home, "everything", "max_steps=1", "language_model_on=all"))
    assert everything["language_model_tokens"] == everything["value_tokens"]
    (values,) = metrics(run_here(home, "values", "max_steps=1", "loss.language_model_weight=0"))
    assert values["language_model_tokens"] == 0 and values["loss"] == values["value_loss"] == everything["value_loss"]


def test_a_verifier_without_words_goes_on_where_the_output_layer_is_not_the_embedding(tmp_path: Path) -> None:
    """Nothing reads that layer then: it is not trained, and has no optimizer state to go on from."""
    home = write_home(tmp_path)
    untie(home / "model")
    words = ["max_steps=2", "save_every_n_steps=1", "keep_checkpoints=null", "loss.language_model_weight=0"]
    last = run_here(home, "untied", *words) / "step_2" / "model.safetensors"
    whole = last.read_bytes()
    assert torch.equal(*(load_file(file)["lm_head.weight"] for file in (last, home / "model" / "model.safetensors")))
    shutil.rmtree(last.parent)
    assert run_here(home, "untied", *words) and last.read_bytes() == whole


def test_a_verifier_goes_on_from_another_ones_head(home: Path, whole: Path) -> None:
    again = run_here(home, "again", "max_steps=1", f"checkpoint={whole / 'step_40'}")
    first, last = rows_of(again / "evaluations.jsonl")[0], rows_of(whole / "evaluations.jsonl")[-1]
    assert first["step"] == 0 and first["loss"] == pytest.approx(last["loss"], abs=1e-6)
    with pytest.raises(UserError, match="is another head: 1 value.s., 'logit of: the answer is correct'"):
        run_here(home, "mse", "max_steps=1", f"checkpoint={whole / 'step_40'}", "loss.kind=mse")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["value_head.dropuot=0.1"], "unknown config key 'value_head.dropuot': did you mean 'value_head.dropout'?"),
        (["value_head.dropout=1.0"], "config key value_head.dropout: 1 leaves nothing to read"),
        (["evaluation.share=0.99"], "of 8 problems leaves none to train on"),
        (["loss.kind=bse"], "unknown value of config key loss.kind 'bse': did you mean"),
        (["prompt=ssa_thnk"], "unknown prompt 'ssa_thnk'"),
        (["prompt=answer"], "prompt 'answer' is a chat"),
        (["dataset.source=nowhere"], "nowhere"),
        (["language_model_on=right"], "config key language_model_on: found 'right'"),
        ([REFERENCES, "loss.language_model_weight=0"], "config key reference_solutions: nothing learns them"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_told_before_anything_is_trained(home: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        run_here(home, "mistake", "max_steps=1", *overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_answers_of_one_class_are_refused_with_their_number(tmp_path: Path) -> None:
    set_verdicts(write_home(tmp_path), lambda answer_id, correct: True)
    with pytest.raises(UserError, match="all 18 labels .* are 1"):
        run_here(tmp_path, "one_class", "max_steps=1")
