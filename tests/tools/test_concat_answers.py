"""The tool as it is run: what it writes, that it writes it once, and every mistake in one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tt_reasoning import store
from tt_reasoning.answer_sets import Dropped
from tt_reasoning.types import Answer, AnswerSet, Problem, Sampling, Verdict

ROOT = Path(__file__).parents[2]
SAMPLING = Sampling(model="tiny", prompt="answer")
# Six problems with three answers each, "" where nothing can be extracted. The text around two answers has 12 words.
TEXTS = [["4", "5", "6"], ["4 4", "5", "6"], ["", "5", "6"], ["", "", "6"], ["4 " * 50, "5", "6"], ["4"]]


@pytest.fixture
def home(tmp_path) -> Path:
    """A folder to run in, with answers/demo graded and a tokenizer that counts words."""
    write_answers(tmp_path / "answers/demo", range(len(TEXTS)))
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (tmp_path / "models/tiny").mkdir(parents=True)
    tokenizer.save(str(tmp_path / "models/tiny/tokenizer.json"))
    return tmp_path


def write_answers(folder: Path, numbers: range) -> None:
    problems = [Problem(source="tiny", split="train", question=f"question {n}", reference="4") for n in numbers]
    answers = [
        Answer(
            id=SAMPLING.answer_id(problem.id, index), problem_id=problem.id, sample_index=index, text=text,
            num_tokens=1, finish_reason="stop", sampling=SAMPLING,
        )
        for number, problem in zip(numbers, problems, strict=True)
        for index, text in enumerate(TEXTS[number])
    ]  # fmt: skip
    with store.open_run(folder, "generate_answers", {"seed": 1}):
        store.append_records(folder / "problems.jsonl", problems)
        store.append_records(folder / "answers.jsonl", answers)
        store.append_records(folder / "verdicts.jsonl", [grade(answer) for answer in answers])


def grade(answer: Answer) -> Verdict:
    if not answer.text:
        return Verdict(answer_id=answer.id, extracted=None, correct=False, reason="no_answer")
    return Verdict(answer_id=answer.id, extracted=answer.text, correct=True, reason="match")


def concat(home: Path, **changes: object) -> subprocess.CompletedProcess[str]:
    options = {
        "answers": "answers/demo", "num_answers": 2, "max_length": 20, "max_none": 1,
        "tokenizer": "models/tiny", "out": "sets/demo",
    } | changes  # fmt: skip
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tools/concat_answers.py"), *flags]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=120)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file but the lock with its bytes and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def mistake(done: subprocess.CompletedProcess[str]) -> str:
    """The error line of a run that failed as a user's mistake should: status 2, one line, no output."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_sets_dropped_and_stats_are_written_and_summarised(home):
    done = concat(home)
    assert done.returncode == 0, done.stderr
    sets = list(store.read_records(home / "sets/demo/sets.jsonl", AnswerSet))
    assert [s.problem.question for s in sets] == ["question 0", "question 1", "question 2"]
    assert [sorted(answer.text for answer in s.answers) for s in sets] == [["4", "5"], ["4 4", "5"], ["", "5"]]
    assert all(s.id == AnswerSet.make_id(s.problem, s.answers, s.order_seed) for s in sets)
    assert [(d.reason, d.detail) for d in store.read_records(home / "sets/demo/dropped.jsonl", Dropped)] == [
        ("none_answers", "2 of 2 answers have no extractable result, 1 allowed"),
        ("too_long", "63 tokens, 20 allowed"),
        ("too_few_answers", "1 answers, 2 needed"),
    ]
    stats = json.loads((home / "sets/demo/stats.json").read_text())
    assert (stats["num_problems"], stats["num_sets"], stats["share_kept"]) == (6, 3, 0.5)
    assert stats["sets_by_num_tokens"] == {"13": 1, "14": 1, "15": 1}
    assert stats["num_tokens"] == pytest.approx({"mean": 14, "median": 14, "min": 13, "max": 15, "std": (2 / 3) ** 0.5})
    assert done.stdout.splitlines() == [
        "sets/demo is finished: 3 answer sets of 2 answers, 50.0 % of 6 problems",
        "tokens a set: mean 14.0, median 14, min 13, max 15, std 0.8",
        "dropped: none_answers 1, too_long 1, too_few_answers 1 (see sets/demo/dropped.jsonl)",
    ]


def test_a_finished_run_says_so_and_writes_nothing(home):
    concat(home)
    before = contents(home / "sets/demo")
    done = concat(home)
    assert done.returncode == 0
    assert done.stdout.startswith("sets/demo was finished before, nothing done: 3 answer sets")
    assert contents(home / "sets/demo") == before


def test_a_run_cut_off_before_its_stats_is_done_again_to_the_same_bytes(home):
    concat(home)
    before = {name: data for name, (data, _) in contents(home / "sets/demo").items()}
    (home / "sets/demo/stats.json").unlink()
    (home / "sets/demo/sets.jsonl").write_bytes(b'{"torn')
    assert concat(home).returncode == 0
    assert {name: data for name, (data, _) in contents(home / "sets/demo").items()} == before


def test_the_seed_decides_the_order_alone(home):
    concat(home)
    concat(home, order_seed=1, out="sets/other")
    one, other = (list(store.read_records(home / f"sets/{name}/sets.jsonl", AnswerSet)) for name in ("demo", "other"))
    assert [set(s.answers) for s in one] == [set(s.answers) for s in other]
    assert [s.answers for s in one] != [s.answers for s in other]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_of_the_lengths_is_drawn_also_of_a_finished_run(home, suffix):
    plot = home / f"pictures/lengths.{suffix}"
    for _ in range(2):
        done = concat(home, plot=plot)
        assert done.returncode == 0, done.stderr
        assert plot.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
        plot.unlink()
    assert list(plot.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"answers": "answers/absent"}, "no such folder: answers/absent"),
        ({"tokenizer": "models/absent"}, "no tokenizer at models/absent/tokenizer.json; name a model's folder"),
        (
            {"num_answers": 4},
            "num_answers=4 is above the 3 samples a problem has in answers/demo; generate more or lower it",
        ),
        (
            {"max_length": 12},
            "no answer set is left of 6 problems: too_long 4, none_answers 1, too_few_answers 1; raise --max-length",
        ),
        ({"plot": "lengths.doc"}, "--plot lengths.doc: name a file that ends in .png, .pdf, .svg"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(home, changes, why):
    assert mistake(concat(home, **changes)).startswith(f"error: {why}")
    assert not (home / "sets").exists()
    assert concat(home).returncode == 0  # the mended command runs into the same folder


def test_ungraded_answers_name_the_tool_to_run(home):
    (home / "answers/demo/verdicts.jsonl").unlink()
    assert mistake(concat(home)).endswith("run: python tools/check_answers.py --answers answers/demo")


def test_a_folder_of_other_arguments_is_refused_untouched(home):
    concat(home)
    before = contents(home / "sets/demo")
    assert "max_none was 1, now 0" in mistake(concat(home, max_none=0))
    assert contents(home / "sets/demo") == before


def test_a_folder_that_answers_have_grown_past_is_refused_untouched(home):
    write_answers(home / "answers/growing", range(3))
    concat(home, answers="answers/growing")
    before = contents(home / "sets/demo")
    write_answers(home / "answers/growing", range(3, 6))
    line = mistake(concat(home, answers="answers/growing"))
    assert re.search(r"answers.jsonl was '9 records, sha256 \w{16}', now '16 records, sha256 \w{16}'", line)
    assert contents(home / "sets/demo") == before


def test_a_folder_of_something_else_is_refused_untouched(home):
    (home / "sets/demo").mkdir(parents=True)
    (home / "sets/demo/stats.json").write_text("mine")
    assert "holds files but no manifest.json" in mistake(concat(home))
    assert contents(home / "sets/demo").keys() == {str(home / "sets/demo/stats.json")}
