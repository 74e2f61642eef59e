"""The step judge's recipe as a user runs it: learns a rule, on one process and two, killed, mistyped, repeated."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import prm_nexttok
import pytest
from grpo_home import environment, merge, metrics, rows_of, run
from judge_home import CONFIGS, command, settings, write_home
from safetensors.torch import load_file

from tt_reasoning.answer_sets import open_answers
from tt_reasoning.errors import UserError
from tt_reasoning.judges import JudgeCard, read_card
from tt_reasoning.judges.forms import find_form
from tt_reasoning.judges.native import NativeJudge
from tt_reasoning.judges.ranking import Reader, score_answers
from tt_reasoning.models.vocabulary import add_tokens
from tt_reasoning.steps import read_steps

CPU = ("prm_nexttok", "135M_prm_cpu.yaml")
SETTINGS = ("evaluation.share=0.25", "evaluation.every_n_steps=6", "lr_scheduler.num_warmup_steps=1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    """A run of twelve steps that nothing disturbs."""
    more = ("max_steps=12", "gradient_accumulation_steps=2", "save_every_n_steps=3", "keep_checkpoints=9")
    result = run(command(home, *CPU, "whole", *SETTINGS, *more))
    assert result.returncode == 0, result.stderr
    assert f"done: 12 steps -> {home / 'whole' / 'step_12'}" in result.stdout
    assert "36 labels, 66.7% right, of 18 solutions; 2 problems held out; 12 steps" in result.stdout
    return home / "whole"


def run_here(home: Path, output: str, *overrides: str) -> None:
    """The recipe in this process, which saves its start."""
    prm_nexttok.main(merge(CONFIGS / CPU[1], [*settings(home, output), *overrides]))


def test_a_judge_learns_the_rule_and_tells_right_from_wrong_on_held_out_problems(whole: Path) -> None:
    before, *_, after = rows_of(whole / "evaluations.jsonl")
    assert before["step"] == 0 and after["step"] == 12
    assert after["loss"] < before["loss"] and after["auc"] > 0.9
    assert metrics(whole)[-1]["label_loss"] < metrics(whole)[0]["label_loss"]
    assert after["problems"] == 2 and after["steps"] == 12
    held = rows_of(whole / "held_out.jsonl")
    assert {row["answer_id"][2:] for row in held} == {"0", "1", "2"} and len(held) == 6


def test_ranking_reads_a_checkpoint_as_its_evaluation_did(home: Path, whole: Path, tmp_path: Path) -> None:
    judge = whole / "step_12"
    form, tokenizer = find_form(judge)
    reader = Reader(form=form, tokenizer=tokenizer, style="lines", max_length=200)
    score_answers(
        open_answers(home / "steps"), tmp_path, reader, lambda: NativeJudge(str(judge), form, device="cpu")
    )
    ranked = read_steps(tmp_path / "steps.jsonl")
    held = rows_of(whole / "held_out.jsonl")
    assert held and {row["step"] for row in held} == {12}
    for row in held:
        assert [step.score for step in ranked[row["answer_id"]]] == pytest.approx(row["scores"], abs=1e-5)


def test_a_checkpoint_says_how_the_judge_is_read(home: Path, whole: Path) -> None:
    assert read_card(whole / "step_12") == JudgeCard(head="tokens", prompt="steps", step_token="\n", good="+", bad="-")
    assert (whole / "best").is_symlink()
    assert load_file(whole / "step_12" / "model.safetensors").keys() == load_file(
        home / "model" / "model.safetensors"
    ).keys()


def test_a_run_cut_at_a_checkpoint_goes_on_to_the_same_weights_and_metrics(home: Path, whole: Path) -> None:
    """A folder as a kill behind step 6 leaves it: rows of later steps are logged already, one of them torn."""
    cut = home / "cut"
    subprocess.run(["cp", "-r", whole, cut], check=True)
    for name in ("step_9", "step_12", "best"):
        subprocess.run(["rm", "-r", cut / name], check=True)
    manifest = json.loads((cut / "manifest.json").read_text())
    manifest["arguments"]["output_dir"] = str(cut)
    (cut / "manifest.json").write_text(json.dumps(manifest))
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13')
    more = ("max_steps=12", "gradient_accumulation_steps=2", "save_every_n_steps=3", "keep_checkpoints=9")
    result = run(command(home, *CPU, "cut", *SETTINGS, *more))
    assert result.returncode == 0, result.stderr
    assert "going on from step 6" in result.stdout
    assert metrics(cut) == metrics(whole)
    assert rows_of(cut / "evaluations.jsonl") == rows_of(whole / "evaluations.jsonl")
    assert (cut / "held_out.jsonl").read_bytes() == (whole / "held_out.jsonl").read_bytes()
    weights = [(folder / "step_12" / "model.safetensors").read_bytes() for folder in (whole, cut)]
    assert weights[0] == weights[1]
    assert (cut / "best").resolve().name == (whole / "best").resolve().name


def test_two_processes_compute_the_loss_of_one(home: Path, whole: Path) -> None:
    """Two processes of one batch each against one that accumulates two: sums in another order, so fp32's tolerance."""
    result = run(command(home, *CPU, "two", *SETTINGS, "max_steps=12", processes=2))
    assert result.returncode == 0, result.stderr
    for one, two in zip(metrics(whole)[:6], metrics(home / "two")[:6], strict=True):
        assert one.keys() == two.keys()
        for name in one:
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), name


def test_lora_soft_labels_packing_and_a_language_model_loss_work_together(home: Path) -> None:
    more = (
        "max_steps=2", "model._component_=tt_reasoning.models.lora_from_hf", "model.lora_attn_modules=[q_proj,v_proj]",
        "dataset.estimate=soft", "loss.over=vocabulary", "loss.language_model_weight=0.5", "balance_classes=true",
        "pack_tokens=100", "evaluation=null", "dtype=bf16_mixed",
    )  # fmt: skip
    run_here(home, "lora", *more)
    assert (home / "lora" / "step_2" / "adapter" / "adapter_model.safetensors").exists()
    assert all(row["language_model_loss"] > 0 and row["label_loss"] > 0 for row in metrics(home / "lora"))
    assert not (home / "lora" / "evaluations.jsonl").exists()


def test_special_tokens_that_were_added_to_the_model_mark_and_label_the_steps(home: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(home / "model", model)
    add_tokens(model, ["<END_STEP>", "<POS_STEP>", "<NEG_STEP>"])
    more = ("max_steps=1", f"checkpoint={model}", f"model.path={model}", "step_format.step_token=<END_STEP>")
    more += ("labels.good=<POS_STEP>", "labels.bad=<NEG_STEP>", r'step_format.between="\n"')
    run_here(home, "special", *SETTINGS, *more)
    card = read_card(home / "special" / "step_1")
    assert (card.step_token, card.between, card.good, card.bad) == ("<END_STEP>", "\n", "<POS_STEP>", "<NEG_STEP>")


def test_an_outcome_judge_has_one_label_a_solution(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("max_steps=1", "dataset._component_=tt_reasoning.datasets.outcome_dataset", "~dataset.estimate")
    run_here(home, "outcome", *SETTINGS, *more, "~dataset.neutral")
    assert "18 labels, 33.3% right, of 18 solutions" in capsys.readouterr().out
    assert read_card(home / "outcome" / "step_1").outcome


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("labels.good=positive", "config key labels.good: 'positive' is no token of this vocabulary (8 tokens)"),
        ("step_format.step_token=<END_STEP>", "step_format.step_token: '<END_STEP>' is no token of this vocabulary"),
        ("labels.bad=+", "config key labels: '+' and '+' are the same token"),
        ("evaluation.share=1.5", "config key evaluation.share: 1.5 leaves no problem to train on"),
        ("dataset.source=nowhere", "no such folder: nowhere"),
        ("dataset.max_tokens=10", "no solution with a labelled step (left out: 24 too_long; max_tokens=10)"),
        ("step_format.prompt=answer", "prompt 'answer' is a chat"),
        ("loss.over=tokens", "config key loss.over: 'tokens', wanted 'labels' or 'vocabulary'"),
        ("dataset.estimate=sof", "unknown config key dataset.estimate 'sof': did you mean 'soft'?"),
    ],
)
def test_a_mistake_is_named(home: Path, change: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        run_here(home, "mistake", *SETTINGS, change)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_mistake_is_one_line_and_status_2(home: Path) -> None:
    words = command(home, *CPU, "mistake", "labels.bad=+")
    result = subprocess.run(words, capture_output=True, text=True, env=environment())
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "error: config key labels: '+' and '+' are the same token"
    assert "Traceback" not in result.stderr
