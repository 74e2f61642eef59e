"""The tool as it is run: what it writes, that it writes it once, and every mistake in one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import psutil
import pytest
from guided_folders import write_guided
from set_folders import problem, write_folder
from tokenizers import Tokenizer, models, pre_tokenizers

from tt_reasoning import store
from tt_reasoning.answer_sets import Dropped
from tt_reasoning.types import AnswerSet, Sampling

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
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
    write_folder(folder, [TEXTS[n] for n in numbers], problems=[problem(n) for n in numbers])


def command(changes: dict[str, object]) -> list[str]:
    options = {
        "answers": "answers/demo", "num_answers": 2, "max_length": 20, "max_none": 1,
        "tokenizer": "models/tiny", "out": "sets/demo",
    } | changes  # fmt: skip
    flags = [
        part
        for name, value in options.items()
        for part in (f"--{name.replace('_', '-')}", *str(value).split()) if value is not False and part != "True"
    ]  # fmt: skip
    return [sys.executable, str(ROOT / "tools/concat_answers.py"), *flags]


def concat(home: Path, **changes: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(changes), cwd=home, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


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
        "answers of a set: all correct 0.0 %, mixed 66.7 %, all wrong 33.3 %",
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


def test_a_picture_is_drawn_also_of_a_finished_run(home):
    for name, start in (("sets.png", b"\x89PNG"), ("sets.svg", b"<?xml")):
        done = concat(home, plot=home / "pictures" / name)
        assert done.returncode == 0, done.stderr
        assert (home / "pictures" / name).read_bytes().startswith(start)
    assert len(list((home / "pictures").iterdir())) == 2


def test_several_folders_are_mixed_balanced_and_published(home):
    """Six problems whose answers are all right, one of them in both folders, and three that are mixed."""
    easy = [problem(number, source="easy") for number in range(10, 16)]
    hard = [problem(number, source="hard") for number in range(20, 23)]
    large = Sampling(model="large", prompt="answer")
    write_folder(home / "answers/easy", [["4"] * 5] * 6, problems=easy)
    rows = [["4"] * 3, *[["4", "5", "4", "5", "5"]] * 3]
    write_folder(home / "answers/hard", rows, problems=[easy[0], *hard], sampling=large)
    mixed = {
        "answers": "answers/easy answers/hard", "num_answers": "3 5", "max_share_all_correct": 0.4, "format": "parquet",
        "max_length": 100,
    }  # fmt: skip
    done = concat(home, **mixed)
    assert done.returncode == 0, done.stderr
    sets = list(store.read_records(home / "sets/demo/sets.jsonl", AnswerSet))
    # Two easy ones beside three mixed ones: 2 / 5 <= 0.4.
    assert [s.problem.source for s in sets] == ["easy", "easy", "hard", "hard", "hard"]
    assert {len(s.answers) for s in sets} <= {3, 4, 5}
    lines = done.stdout.splitlines()
    assert lines[0].startswith("sets/demo is finished: 5 answer sets of 3 to 5 answers, 55.6 % of 9 problems")
    assert "answers of a set: all correct 40.0 %, mixed 60.0 %, all wrong 0.0 %" in lines
    assert "easy: 2 sets of 6 problems: all correct 100.0 %, mixed 0.0 %, all wrong 0.0 %" in lines
    assert "1 problems have answers in several folders and draw from all" in lines
    assert "dropped: all_correct_surplus 4 (see sets/demo/dropped.jsonl)" in lines
    assert lines[-1] == "table: sets/demo/data"
    surplus = list(store.read_records(home / "sets/demo/dropped.jsonl", Dropped))
    assert {(d.source, d.detail) for d in surplus} == {("easy", "one of 6 all-correct sets, 2 allowed")}
    loaded = datasets.load_dataset(str(home / "sets/demo"), cache_dir=str(home / "cache"))["train"]
    assert loaded["id"] == [s.id for s in sets] and loaded["num_answers"] == [len(s.answers) for s in sets]
    before = contents(home / "sets/demo")
    assert "was finished before, nothing done" in concat(home, **mixed).stdout
    assert contents(home / "sets/demo") == before


def test_held_out_problems_are_refused_or_left_out(home):
    write_folder(home / "answers/test", [["4", "5"]], problems=[problem(1)])
    line = mistake(concat(home, exclude="answers/test"))
    assert line == (
        f"error: 1 of the problems with answers are in answers/test too, such as {problem(1).id}; "
        "pass --drop-excluded to leave them out"
    )
    assert not (home / "sets").exists()
    done = concat(home, exclude="answers/test", drop_excluded=True)
    assert done.returncode == 0, done.stderr
    assert [d.reason for d in store.read_records(home / "sets/demo/dropped.jsonl", Dropped)].count("excluded") == 1
    assert "other run (drop_excluded was True, now None; exclude answers/test was" in mistake(concat(home))


def test_a_killed_run_is_done_again_to_the_same_bytes(home):
    """Killed while its sets are being built, by two processes: the next run removes what it left."""
    texts = [["4 " * 300, "5", "6"]] * 1500
    write_folder(home / "answers/large", texts)
    options = {"answers": "answers/large", "max_length": 9000, "num_workers": 2, "out": "sets/large"}
    process = subprocess.Popen(command(options), cwd=home, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    while not list((home / "sets/large").glob(".*.tmp")):  # a set has been written
        assert process.poll() is None
    children = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert len(children) == 2
    assert not (home / "sets/large/stats.json").exists()
    assert concat(home, **options).returncode == 0
    assert concat(home, **options | {"out": "sets/whole", "num_workers": 1}).returncode == 0
    names = ["dropped.jsonl", "manifest.json", "sets.jsonl", "stats.json"]
    for out in ("large", "whole"):
        assert sorted(path.name for path in (home / "sets" / out).iterdir() if path.name != ".lock") == names
    assert (home / "sets/large/sets.jsonl").read_bytes() == (home / "sets/whole/sets.jsonl").read_bytes()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert all(child.status() == psutil.STATUS_ZOMBIE for child in alive)  # ended, whoever has to take note of it


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
        ({"num_answers": "2 3 4"}, "--num-answers 2 3 4: give one number, or the fewest and the most"),
        ({"num_answers": "3 2"}, "num_answers=3 2: the fewest come first"),
        ({"max_share_all_correct": 40}, "--max-share-all-correct 40: give a share between 0 and 1"),
        ({"temperature": 0.2}, "answers/demo has no answers of temperature 0.2; there are: 0.7"),
        ({"exclude": "answers/absent"}, "answers/absent holds no problems: name a folder of answers or of sets"),
        ({"drop_excluded": True}, "--drop-excluded without --exclude: name what to leave out"),
        ({"answers": "answers/demo answers/demo"}, "answers/demo is given twice"),
        ({"plot": "lengths.doc"}, "--plot lengths.doc: name a file that ends in .png, .pdf, .svg"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(home, changes, why):
    assert mistake(concat(home, **changes)).startswith(f"error: {why}")
    assert not (home / "sets").exists()


def test_a_run_that_balance_leaves_nothing_of_can_be_mended(home):
    write_folder(home / "answers/easy", [["4", "4"]] * 3)
    line = mistake(concat(home, answers="answers/easy", max_share_all_correct=0.5))
    assert line.startswith("error: no answer set is left of 3 problems: all_correct_surplus 3; raise --max-length, ")
    assert concat(home, answers="answers/easy").returncode == 0  # into the same folder


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


def test_answers_of_several_etas_are_not_mixed_in_sets(home):
    write_guided(home / "answers/guided")
    line = mistake(concat(home, answers="answers/guided"))
    assert line == "error: answers/guided holds answers of several etas, a set is of one: draw it into a new folder"
