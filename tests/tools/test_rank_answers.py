"""The tool as it is run: what it writes, that nothing is scored twice, and every mistake in one line."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from loaded_tools import load_tool
from safetensors.torch import load_file, save_file
from set_folders import write_folder
from tiny import write_tiny_model
from tiny_judges import write_card_judge, write_value_judge

from tt_reasoning import store
from tt_reasoning.answer_sets import open_answers
from tt_reasoning.errors import UserError
from tt_reasoning.judges.forms import find_form
from tt_reasoning.judges.native import NativeJudge
from tt_reasoning.judges.ranking import Reader, score_answers
from tt_reasoning.scores import Skipped, read_scores
from tt_reasoning.steps import read_steps
from tt_reasoning.types import Answer, Score

TOOL = Path(__file__).parents[2] / "tools" / "rank_answers.py"
FILES = ("steps.jsonl", "skipped.jsonl", "scores.jsonl")


def texts(num_problems: int) -> list[list[str]]:
    """Answers of two steps; the first problem has a blank and a long one beside them."""
    rows = [[f"{n} + {i} = 4\nso {n} * {i}" for i in range(4)] for n in range(num_problems)]
    rows[0] += [" \n", "1\n" * 600]
    return rows


tool = load_tool("rank_answers")


def rank(home: Path, out: str = "scores", **options: object) -> str:
    """What the tool says, of the folders of ``home`` unless others are named."""
    given = {"answers": home / "demo", "judge": home / "judge", "max_length": 900, "device": "cpu"}
    return tool.main(tool.Arguments(out=home / out, **given | options))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge, answers of which some cannot be scored, and their scores."""
    path = tmp_path_factory.mktemp("home")
    write_card_judge(path / "judge")
    write_folder(path / "demo", texts(20), graded=False)
    assert rank(path) == (
        "scored 80 answers by the min of their steps, 2 skipped: 1 no_steps, 1 too_long -> "
        f"{path / 'scores/scores.jsonl'}"
    )
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


def test_every_answer_has_a_score_or_a_reason(home: Path) -> None:
    answers = {answer.id: answer for answer in store.read_records(home / "demo/answers.jsonl", Answer)}
    steps = read_steps(home / "scores/steps.jsonl")
    skipped = {row.answer_id: row.reason for row in store.read_records(home / "scores/skipped.jsonl", Skipped)}
    assert steps.keys() | skipped.keys() == answers.keys()
    assert {answers[name].text[:2]: reason for name, reason in skipped.items()} == {
        " \n": "no_steps",
        "1\n": "too_long",
    }
    for name, of_answer in steps.items():
        assert [answers[name].text[step.start : step.end] for step in of_answer] == answers[name].text.split("\n")
        assert all(step.rating is None and 0 < step.score < 1 for step in of_answer)
    scores = {row.answer_id: row.score for row in store.read_records(home / "scores/scores.jsonl", Score)}
    assert scores == {name: min(step.score for step in of_answer) for name, of_answer in steps.items()}


def run_tool(*commands: list[str], check: str = "") -> subprocess.CompletedProcess[str]:
    """The tool's commands one after another in one new process, and then a check there."""
    code = f"import runpy, sys\nfor sys.argv in {commands!r}:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
    run = [sys.executable, "-c", code + check]
    return subprocess.run(run, capture_output=True, text=True, timeout=300)


def command(home: Path, out: str, *options: str) -> list[str]:
    folders = ["--answers", str(home / "demo"), "--judge", str(home / "judge"), "--out", str(home / out)]
    return [str(TOOL), *folders, "--max-length", "900", "--device", "cpu", *options]


def test_another_aggregate_is_made_from_the_stored_steps_without_a_model(home: Path) -> None:
    before = contents(home / "scores")
    check = "assert 'tt_reasoning.judges.native' not in sys.modules, 'the model was loaded'"
    done = run_tool(command(home, "scores", "--aggregate", "prod"), check=check)
    assert done.returncode == 0, done.stderr
    after = contents(home / "scores")
    assert after["steps.jsonl"] == before["steps.jsonl"] and after["skipped.jsonl"] == before["skipped.jsonl"]
    scores = {row.answer_id: row.score for row in store.read_records(home / "scores/scores.jsonl", Score)}
    for name, of_answer in read_steps(home / "scores/steps.jsonl").items():
        assert scores[name] == pytest.approx(math.prod(step.score for step in of_answer))
    assert read_scores(home / "scores").aggregate == "prod"
    rank(home)
    assert contents(home / "scores") == before


def test_a_killed_run_goes_on_to_the_same_bytes(home: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "demo", texts(100), graded=False)
    (tmp_path / "judge").symlink_to(home / "judge")
    options = ("--batch-tokens", "64")
    run = [sys.executable, *command(tmp_path, "killed", *options)]
    process = subprocess.Popen(run, stderr=subprocess.DEVNULL)
    stored = tmp_path / "killed" / "steps.jsonl"
    while not stored.exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert stored.exists() and not (tmp_path / "killed" / "scores.jsonl").exists()
    done = run_tool(command(tmp_path, "killed", *options), command(tmp_path, "whole", *options))
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("share", [0.001, 0.2, 0.41, 0.63, 0.995])
def test_files_torn_at_any_byte_are_made_whole_again(home: Path, share: float, tmp_path: Path) -> None:
    form, tokenizer = find_form(home / "judge")
    reader = Reader(form=form, tokenizer=tokenizer, style="auto", max_length=900)
    whole = contents(home / "scores")
    (tmp_path / "skipped.jsonl").write_bytes(whole["skipped.jsonl"])
    (tmp_path / "steps.jsonl").write_bytes(whole["steps.jsonl"][: int(share * len(whole["steps.jsonl"]))])
    score_answers(
        open_answers(home / "demo"), tmp_path, reader, lambda: NativeJudge(str(home / "judge"), form, device="cpu")
    )
    found = contents(tmp_path)
    assert found["steps.jsonl"] == whole["steps.jsonl"] and found["skipped.jsonl"] == whole["skipped.jsonl"]


def test_answers_that_came_later_are_scored_and_no_others(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "demo", tmp_path / "demo")
    rank(tmp_path, judge=home / "judge")
    before = contents(tmp_path / "scores")["steps.jsonl"]
    first = next(store.read_records(tmp_path / "demo/answers.jsonl", Answer))
    late = replace(first, id="late", sample_index=9, text="a\nb\nc")
    store.append_records(tmp_path / "demo/answers.jsonl", [late])
    rank(tmp_path, judge=home / "judge")
    after = contents(tmp_path / "scores")["steps.jsonl"]
    assert after.startswith(before)
    assert [json.loads(line)["answer_id"] for line in after[len(before) :].splitlines()] == ["late"] * 3


def test_the_first_problems_alone_are_scored_and_the_rest_made_up_for(home: Path) -> None:
    rank(home, "limited", limit=10)
    assert len(read_steps(home / "limited/steps.jsonl")) == 40
    rank(home, "limited")
    assert contents(home / "limited") == contents(home / "scores")


def test_mistakes_change_nothing(home: Path) -> None:
    before = contents(home / "scores")
    write_tiny_model(home / "plain")
    for options, says in (
        ({"answers": home / "nowhere"}, "no such folder: .*nowhere"),
        ({"judge": home / "nowhere"}, "no such model folder: .*nowhere"),
        ({"judge": home / "plain"}, "plain is no judge by its judge.json"),
        ({"max_length": 9000}, "--max-length 9000 is above what this judge reads, 2048 tokens"),
        ({"split_style": "lines"}, "holds another run .split_style was 'auto', now 'lines'"),
        ({"limit": 0}, "--limit 0: give at least 1"),
    ):
        with pytest.raises(UserError, match=says):
            rank(home, **options)
    assert contents(home / "scores") == before


def test_a_judge_that_gives_no_number_is_refused(home: Path, tmp_path: Path) -> None:
    folder = write_card_judge(tmp_path / "judge")
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight * float("nan") for name, weight in weights.items()}, folder / "model.safetensors")
    with pytest.raises(UserError, match="score of answer .* is nan; try --dtype fp32"):
        rank(tmp_path, answers=home / "demo", judge=folder)


def tooltips(page: Path) -> list[tuple[str, float]]:
    """What a page says of each piece: its text and its score."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r'<span style="[^"]*" title="\w+ \d+: ([\d.]+)">([^<]*)</span>', text)
    return [(unescape(text), float(score)) for score, text in found]


def test_an_answer_is_drawn_step_by_step_as_it_was_scored_and_no_model_is_loaded_for_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "_start_judge", lambda *_: pytest.fail("the scores are there"))
    (answer_id, steps), *_ = read_steps(home / "scores" / "steps.jsonl").items()
    said = rank(home, plot=tmp_path / "a.html", plot_answer=answer_id)
    assert said.endswith(f"\n{answer_id} -> {tmp_path / 'a.html'}")
    assert [score for _, score in tooltips(tmp_path / "a.html")] == pytest.approx([s.score for s in steps], abs=1e-3)


def test_an_answer_is_drawn_token_by_token_where_the_judge_has_a_value_head(home: Path, tmp_path: Path) -> None:
    options = {"judge": write_value_judge(tmp_path / "judge"), "plot": tmp_path / "a.html"}
    answer = next(store.read_records(home / "demo/answers.jsonl", Answer))
    rank(tmp_path, "scores", **options | {"answers": home / "demo", "plot_answer": answer.id, "limit": 1})
    drawn, (step,) = tooltips(tmp_path / "a.html"), read_steps(tmp_path / "scores" / "steps.jsonl")[answer.id]
    assert [text for text, _ in drawn] == list(answer.text)
    assert drawn[-1][1] == pytest.approx(step.score, abs=1e-3) and len({score for _, score in drawn}) > 3
    assert (step.start, step.end) == (0, len(answer.text))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plot": "a.html"}, "--plot FILE and --plot-answer ID go together"),
        ({"plot": "a.txt", "plot_answer": "x"}, "--plot a.txt: name a file that ends in .html"),
        ({"plot": "a.html", "plot_answer": "x"}, "--plot-answer x: .* has no such answer"),
    ],
    ids=["no answer named", "no picture", "no such answer"],
)
def test_what_cannot_be_drawn_is_told_before_anything_is_scored(home: Path, options: dict, message: str) -> None:
    options = {name: Path(value) if name == "plot" else value for name, value in options.items()}
    with pytest.raises(UserError, match=message):
        rank(home, "nothing", **options)
    assert not (home / "nothing").exists()


def test_an_answer_without_a_score_is_not_drawn(home: Path, tmp_path: Path) -> None:
    blank = next(a for a in store.read_records(home / "demo/answers.jsonl", Answer) if not a.text.strip())
    with pytest.raises(UserError, match=f"--plot-answer {blank.id} has no score: no_steps"):
        rank(home, plot=tmp_path / "a.html", plot_answer=blank.id)
