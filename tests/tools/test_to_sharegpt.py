"""The tool as it is run: what is taken of two folders and an outside set, and every mistake in one line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import tyro
from loaded_tools import load_tool

from tt_reasoning.errors import UserError
from tt_reasoning.prompts import PROMPTS, SYSTEM_PROMPTS
from tt_reasoning.store import open_run, read_rows, write_records
from tt_reasoning.types import Answer, Problem, Reason, Sampling, Verdict

ROOT = Path(__file__).parents[2]
TOOL = [sys.executable, str(ROOT / "tools/to_sharegpt.py")]


def form(thought: str, solution: str = "4") -> str:
    return (f"<|begin_of_thought|>\n{thought}\n<|end_of_thought|>\n\n"
            f"<|begin_of_solution|>\n{solution}\n<|end_of_solution|>")  # fmt: skip


def problem(question: str) -> Problem:
    return Problem(source="s", split="train", question=question, reference="4")


def write_folder(
    folder: Path, answers: list[tuple[str, str, Reason | None]], finish_reason: str = "stop", prompt: str = "answer"
) -> list[str]:
    """Answers (question, text, verdict's reason); returns their ids."""
    sampling = Sampling(model=folder.name, prompt=prompt)
    records = [
        Answer(id=sampling.answer_id(problem(question).id, n), problem_id=problem(question).id, sample_index=n,
               text=text, num_tokens=9, finish_reason=finish_reason, sampling=sampling)
        for n, (question, text, _) in enumerate(answers)
    ]  # fmt: skip
    correct = {"match": True, "mismatch": False, "no_answer": False}
    with open_run(folder, "convert_format", {"whole_texts": True}):
        questions = dict.fromkeys(question for question, _, _ in answers)
        write_records(folder / "problems.jsonl", map(problem, questions))
        write_records(folder / "answers.jsonl", records)
        write_records(
            folder / "verdicts.jsonl",
            (Verdict(answer_id=record.id, extracted=None, correct=correct.get(reason), reason=reason)
             for record, (_, _, reason) in zip(records, answers, strict=True) if reason),
        )  # fmt: skip
    return [record.id for record in records]


def run(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TOOL, *options], cwd=home, capture_output=True, text=True, timeout=120, check=False)


def mistake(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def refusal(options: list[str]) -> str:
    """What the tool says against options: in this process, which is faster than one of its own."""
    tool = load_tool("to_sharegpt")
    with pytest.raises(UserError) as error:
        tool.main(tyro.cli(tool.Arguments, args=options, use_underscores=False))
    assert "\n" not in str(error.value)
    return str(error.value)


def turns(path: Path) -> list[tuple[str, str]]:
    """Question and answer of each row of a file."""
    return [(row["conversations"][-2]["value"], row["conversations"][-1]["value"])
            for row in json.loads(path.read_text())]  # fmt: skip


def asked(question: str) -> str:
    return PROMPTS["answer"].user.replace("{question}", question)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_folder(
        tmp_path / "a",
        [
            ("1 + 3?", form("the longer thought"), "match"),
            ("1 + 3?", form("shorter"), "match"),
            ("1 + 3?", form("wrong", "5"), "mismatch"),
            ("2 + 2?", "The Answer is: 4", "match"),
            ("2 + 2?", form("again"), "bad_reference"),
            ("2 + 2?", form("never seen"), None),
        ],
    )
    write_folder(
        tmp_path / "b",
        [
            ("1  + 3?", form("brief"), "match"),  # the same question but for a blank
            ("0 + 4?", form("shorter"), "match"),  # the text of another question
            ("4 + 0?", form("zero adds nothing"), "match"),
        ],
    )
    write_folder(tmp_path / "cut", [("8 - 4?", form("cut in the solution"), "match")], finish_reason="length")
    rows = [("Why?", form("so it is"), "physics"), ("4 + 0?", form("z"), "physics"), ("Sort.", form("code"), "code"),
            ("Who?", "no tags", "puzzle")]  # fmt: skip
    still = [{"question": q, "combined_text": t, "domain": d} for q, t, d in rows]
    (tmp_path / "still2.json").write_text(json.dumps(still))
    return tmp_path


def test_each_question_is_taken_once_from_folders_and_outside_sets_and_the_rest_has_its_reason(home: Path) -> None:
    options = ["--answers", "a", "b", "cut", "--merge", "still2.json", "--out", "data/train.json"]
    done = run(home, *options, "--rejected", "data/rejected.jsonl")
    assert done.returncode == 0, done.stderr
    # Of "1 + 3?" that of b is the shortest, so "0 + 4?" has the text "shorter" to itself; of "4 + 0?" the outside one.
    expected = {(asked("1  + 3?"), form("brief")), (asked("0 + 4?"), form("shorter")), ("4 + 0?", form("z")),
                ("Why?", form("so it is"))}  # fmt: skip
    found = turns(home / "data" / "train.json")
    assert set(found) == expected and len(found) == 4
    for row in json.loads((home / "data" / "train.json").read_text()):
        system = SYSTEM_PROMPTS["thought_solution"]
        assert row["system"] == system and row["conversations"][0] == {"from": "system", "value": system}
        assert [turn["from"] for turn in row["conversations"]] == ["system", "human", "gpt"]
    rejected = list(read_rows(home / "data" / "rejected.jsonl"))
    assert Counter(row["reason"] for row in rejected) == {
        "surplus": 3, "wrong": 1, "tags": 2, "unjudged": 1, "no_verdict": 1, "truncated": 1,
    }  # fmt: skip
    assert rejected[0]["assistant"] == form("the longer thought") and rejected[0]["answers"] == "a"
    assert rejected[-1] == {"reason": "tags", "detail": "there are no tags", "merged": "still2.json", "row": "3",
                            "domain": "puzzle", "user": "Who?", "assistant": "no tags"}  # fmt: skip
    assert done.stdout.splitlines() == [
        "data/train.json: 4 conversations on 4 questions, 2 of them from outside sets",
        "not taken 9: surplus 3, tags 2, wrong 1, unjudged 1, no_verdict 1, truncated 1 (see data/rejected.jsonl); "
        "run tools/check_answers.py on the folders with answers that have no verdict",
        "left out by domain: code 1",
    ]

    # The same again changes nothing; anything else is not written over it.
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (home / "data").iterdir()}
    done = run(home, *options, "--rejected", "data/rejected.jsonl")
    assert done.returncode == 0 and "on 4 questions, 2 of them from outside sets (was there already)" in done.stdout
    for more in (["--seed", "1"], ["--keep", "2"], ["--roles", "user-assistant"]):
        line = mistake(run(home, *options, *more))
        assert line == "error: data/train.json is there already with other content; name another file, or delete it"
    assert before == {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (home / "data").iterdir()}


def test_options_decide_form_number_order_and_domains(home: Path) -> None:
    (home / "own.txt").write_text("Think, then answer.\n")
    one = ["--answers", "a", "--out"]
    run(home, *one, "any.json", "--any-format", "--keep", "5", "--system-prompt", "own.txt", "--roles",
        "user-assistant")  # fmt: skip
    rows = json.loads((home / "any.json").read_text())
    assert {row["system"] for row in rows} == {"Think, then answer."}
    assert [turn["from"] for turn in rows[0]["conversations"]] == ["user", "assistant"]
    assert sorted(turns(home / "any.json")) == sorted(
        [(asked("1 + 3?"), form("the longer thought")), (asked("1 + 3?"), form("shorter")),
         (asked("2 + 2?"), "The Answer is: 4")]
    )  # fmt: skip
    run(home, *one, "first.json", "--choice", "first")
    assert turns(home / "first.json") == [(asked("1 + 3?"), form("the longer thought"))]
    run(home, *one, "code.json", "--merge", "still2.json", "--merge-domains", "code")
    assert set(turns(home / "code.json")) == {(asked("1 + 3?"), form("shorter")), ("Sort.", form("code"))}
    orders = []
    for seed in ("1", "2"):
        run(home, "--answers", "a", "b", "--merge", "still2.json", "--seed", seed, "--out", f"{seed}.json")
        orders.append(turns(home / f"{seed}.json"))
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_a_run_killed_while_it_writes_leaves_no_file_and_the_next_writes_the_whole(tmp_path: Path) -> None:
    answers = [(f"{n} + 0?", form(f"thought {n} " * 40), "match") for n in range(1500)]
    write_folder(tmp_path / "big", answers)
    command = [*TOOL, "--answers", "big", "--out"]
    assert subprocess.run([*command, "whole.json"], cwd=tmp_path, capture_output=True, check=False).returncode == 0
    whole = (tmp_path / "whole.json").read_bytes()
    for least in (0, 1, 500_000):  # bytes that are written when it is killed: none yet, the first, a good part
        process = subprocess.Popen([*command, "killed.json"], cwd=tmp_path, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            written = [path.stat().st_size for path in tmp_path.glob(f".killed.json.{process.pid}.tmp")]
            if least == 0 or (written and written[0] >= least):
                break
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed.json").exists()
    assert subprocess.run([*command, "killed.json"], cwd=tmp_path, capture_output=True, check=False).returncode == 0
    assert (tmp_path / "killed.json").read_bytes() == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--answers", "nowhere"], "no such folder: nowhere"),
        (["--answers", "raw"], "raw has no verdicts.jsonl; run: python tools/check_answers.py --answers raw"),
        (["--answers", "bare"], "bare has no answers yet"),
        (["--answers", "lost"], "which lost/problems.jsonl lacks; restore that file"),
        (["--answers", "a", "a"], "--answers names a twice"),
        (["--answers", "a", "--keep", "0"], "--keep 0: give at least 1"),
        (["--answers", "a", "--merge", "none.json"], "--merge none.json: no such file"),
        (["--answers", "a", "--merge-domains", "math"], "--merge-domains is about --merge FILE"),
        (["--answers", "a", "--merge", "still2.json", "--merge-domains", "chem"], "unknown domain of --merge-domains"),
        (["--answers", "a", "--system-prompt", "thought"], "unknown system prompt 'thought': did you mean "
         "'thought_solution'?"),
        (["--answers", "a", "--out", "b"], "--out b is a folder; name a file"),
        (["--answers", "a", "--rejected", "out.json"], "--rejected out.json is --out too"),
        (["--answers", "plain"], "none of 1 answers can be taken: tags 1; tools/convert_format.py gives answers"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_writes_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(home)
    write_folder(home / "raw", [("1?", "1", None)])
    write_folder(home / "bare", [])
    write_folder(home / "plain", [("4?", "The Answer is: 4", "match")])
    write_folder(home / "lost", [("4?", form("4"), "match")])
    (home / "lost" / "problems.jsonl").write_text("")
    assert message in refusal([*([] if "--out" in options else ["--out", "out.json"]), *options])
    assert not (home / "out.json").exists()


def test_help_names_the_options(home: Path) -> None:
    done = run(home, "--help")
    assert done.returncode == 0 and "--merge-domains" in done.stdout and "--any-format" in done.stdout
