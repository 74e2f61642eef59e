"""The tool as it is run: what it writes, that it grades once, and every mistake in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tt_reasoning import store
from tt_reasoning.types import Answer, Problem, Sampling, Verdict

ROOT = Path(__file__).parents[2]
PROBLEMS = [
    Problem(source="tiny", split="test", question="2 + 2?", reference="4"),
    Problem(source="tiny", split="test", question="Double k + 1.", reference="2k+2"),
    Problem(source="tiny", split="test", question="?", reference="{"),
]
TEXTS = [["The Answer is: 4", "The Answer is: 5", "So it is 4."], ["\\boxed{2(k+1)}"], ["\\boxed{\\pi}"]]
REASONS = ["match", "mismatch", "no_answer", "match", "bad_reference"]


ROOT_OF_TWO = Problem(source="tiny", split="test", question="The root of two?", reference="\\sqrt{2}")


def make_answer(number: int, index: int, text: str, prompt: str = "answer") -> Answer:
    return make_answer_to(PROBLEMS[number], index, text, prompt)


def make_answer_to(problem: Problem, index: int, text: str, prompt: str = "answer") -> Answer:
    sampling = Sampling(model="tiny", prompt=prompt)
    return Answer(
        id=sampling.answer_id(problem.id, index), problem_id=problem.id, sample_index=index, text=text,
        num_tokens=1, finish_reason="stop", sampling=sampling,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "demo"
    with store.open_run(path, "generate_answers", {"seed": 1}):
        store.write_records(path / "problems.jsonl", PROBLEMS)
        answers = [make_answer(n, i, text) for n, texts in enumerate(TEXTS) for i, text in enumerate(texts)]
        store.append_records(path / "answers.jsonl", answers)
    return path


def check(folder: Path, *options: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/check_answers.py"), "--answers", folder.name, *options]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=120, env=environment)


def reasons(folder: Path) -> list[str]:
    return [verdict.reason for verdict in store.read_records(folder / "verdicts.jsonl", Verdict)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def assert_refused(folder: Path, *options: str, says: str) -> None:
    before = contents(folder) if folder.exists() else None
    done = check(folder, *options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert says in done.stderr
    assert before == (contents(folder) if folder.exists() else None)


def test_every_answer_gets_its_verdict_and_the_summary_counts_them(folder: Path) -> None:
    done = check(folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "graded 5 answers: 2 match, 1 mismatch, 1 no_answer, 1 bad_reference, 0 timeout, 0 error; "
        "accuracy 50.0 % [25.0, 75.0] of 4 judged, 1 not judged and left out -> demo/verdicts.jsonl\n"
    )
    assert reasons(folder) == REASONS
    answers = store.read_records(folder / "answers.jsonl", Answer)
    verdicts = store.read_records(folder / "verdicts.jsonl", Verdict)
    assert [answer.id for answer in answers] == [verdict.answer_id for verdict in verdicts]
    settings = json.loads((folder / "verdicts.json").read_text())
    assert settings["arguments"] == {"timeout_s": 5.0, "fallback": "none", "percent_as_fraction": False}
    # Two problems with 1 of 3 and 1 of 1: 1/2 + (1 - 3/2) / 2 = 1/4 and 1/2 + (1 - 1/2) / 2 = 3/4 have the mean 1/2.
    low, high = settings["report"].pop("interval")
    assert (low, high) == pytest.approx((0.25, 0.75))
    assert settings["report"] == {
        "counts": {"match": 2, "mismatch": 1, "no_answer": 1, "bad_reference": 1, "timeout": 0, "error": 0},
        "judged": 4, "not_judged": 1, "problems": 2, "accuracy": 0.5,
    }  # fmt: skip


def test_only_what_has_no_verdict_is_graded(folder: Path) -> None:
    check(folder)
    path = folder / "verdicts.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    marked = lines[1].replace("mismatch", "timeout").replace("false", "null")  # shows that it is not graded again
    path.write_text(lines[0] + marked + lines[2] + lines[3][:20])  # a kill tore the fourth
    assert check(folder, "--num-workers", "2").returncode == 0
    assert path.read_text() == lines[0] + marked + lines[2] + lines[3] + lines[4]
    before = contents(folder)
    assert check(folder).stdout.startswith("graded 5 answers: ")
    assert contents(folder) == before


def test_a_completion_is_read_from_its_prefill_on(folder: Path) -> None:
    store.append_records(folder / "answers.jsonl", [make_answer(0, 0, "4</answer>", prompt="ssa_no_think")])
    check(folder)
    assert reasons(folder) == [*REASONS, "match"]


def test_other_settings_want_regrade_and_then_replace_all(folder: Path) -> None:
    check(folder)
    assert_refused(folder, "--fallback", "last_number", says="pass --regrade")
    assert_refused(
        folder,
        "--timeout-s",
        "9",
        says="--timeout-s 5.0 --fallback none --no-percent-as-fraction, now --timeout-s 9.0",
    )
    done = check(folder, "--fallback", "last_number", "--regrade")
    assert done.returncode == 0, done.stderr
    assert reasons(folder) == ["match", "mismatch", "match", "match", "bad_reference"]
    assert check(folder, "--fallback", "last_number").returncode == 0


def test_verdicts_of_unknown_settings_want_regrade(folder: Path) -> None:
    check(folder)
    (folder / "verdicts.json").unlink()
    assert_refused(folder, says="pass --regrade")
    assert check(folder, "--regrade").returncode == 0
    assert check(folder).returncode == 0


def test_mistakes_are_named_in_one_line(folder: Path, tmp_path: Path) -> None:
    assert_refused(tmp_path / "none", says="no such folder: none")
    (tmp_path / "other").mkdir()
    assert_refused(tmp_path / "other", says="manifest.json")
    assert_refused(folder, "--num-workers", "0", says="--num-workers 0: give at least 1")
    assert_refused(folder, "--timeout-s", "0", says="--timeout-s 0")
    store.write_records(folder / "problems.jsonl", PROBLEMS[1:])
    assert_refused(folder, says=f"belongs to problem {PROBLEMS[0].id}")
    (folder / "problems.jsonl").unlink()
    assert_refused(folder, says="has no problems.jsonl")


def test_a_folder_without_answers_is_refused(folder: Path) -> None:
    (folder / "answers.jsonl").unlink()
    assert_refused(folder, says="has no answers yet")


def test_a_malformed_answer_is_named_by_file_and_line(folder: Path) -> None:
    with (folder / "answers.jsonl").open("a") as file:
        file.write("{}\n")
    assert_refused(folder, says="answers.jsonl:6")


def disagreements(folder: Path) -> list[dict]:
    return list(store.read_rows(folder / "disagreements.jsonl"))


def test_the_audit_writes_what_the_two_rule_sets_grade_differently(folder: Path) -> None:
    # Correct to nine digits is enough for the audit, and no decimal is a root of two for the grader.
    store.append_records(folder / "problems.jsonl", [ROOT_OF_TWO])
    text = "Let us see. " * 100 + "\\boxed{1.41421356237}"
    store.append_records(folder / "answers.jsonl", [make_answer_to(ROOT_OF_TWO, 0, text)])
    done = check(folder, "--audit")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == (
        "audit: 1 graded differently by the second rule set -> demo/disagreements.jsonl"
    )
    [row] = disagreements(folder)
    assert row == {
        "answer_id": make_answer_to(ROOT_OF_TWO, 0, text).id, "problem_id": ROOT_OF_TWO.id, "kind": "math",
        "reference": "\\sqrt{2}",
        "grader": {"extracted": "1.41421356237", "correct": False, "reason": "mismatch"},
        "audit": {"extracted": "1.41421356237", "correct": True, "reason": "match"},
        "text_end": text[-600:],
    }  # fmt: skip
    before = contents(folder)
    assert check(folder, "--audit").returncode == 0
    assert contents(folder) == before


def test_an_audited_folder_is_audited_whenever_it_is_graded(folder: Path) -> None:
    assert "audit" not in check(folder).stdout
    assert not (folder / "disagreements.jsonl").exists()
    check(folder, "--audit")
    assert disagreements(folder) == []
    store.append_records(folder / "problems.jsonl", [ROOT_OF_TWO])
    store.append_records(folder / "answers.jsonl", [make_answer_to(ROOT_OF_TWO, 0, "\\boxed{1.41421356237}")])
    assert "audit: 1 graded differently" in check(folder).stdout
    assert len(disagreements(folder)) == 1
    assert "audit: 1 graded differently" in check(folder, "--regrade").stdout


def test_an_answer_that_no_file_can_hold_is_audited(folder: Path) -> None:
    store.append_records(folder / "problems.jsonl", [ROOT_OF_TWO])
    answer = store.dump_record(make_answer_to(ROOT_OF_TWO, 0, "SURROGATE \\boxed{1.41421356237}"))
    with (folder / "answers.jsonl").open("a") as file:
        file.write(answer.replace("SURROGATE", "\\ud800") + "\n")
    done = check(folder, "--audit")
    assert done.returncode == 0, done.stderr
    assert disagreements(folder)[0]["text_end"].startswith("? ")


def test_settings_from_before_percent_as_fraction_are_understood(folder: Path) -> None:
    check(folder)
    path = folder / "verdicts.json"
    settings = json.loads(path.read_text())
    del settings["arguments"]["percent_as_fraction"]
    store.write_json(path, settings)
    assert check(folder).returncode == 0
    assert_refused(folder, "--percent-as-fraction", says="now --timeout-s 5.0 --fallback none --percent-as-fraction;")


def test_the_first_samples_are_checked_now_and_the_others_later(folder: Path) -> None:
    done = check(folder, "--first", "1")
    assert done.returncode == 0, done.stderr
    assert reasons(folder) == ["match", "match", "bad_reference"]
    assert done.stdout.endswith("2 answers are not checked yet; the same command without --first checks them\n")
    evaluate = [sys.executable, str(ROOT / "tools/evaluate.py"), "--answers", folder.name, "--out", "results"]
    run = {"cwd": folder.parent, "capture_output": True, "text": True, "timeout": 120}
    refused = subprocess.run(evaluate, **run)
    assert refused.returncode == 2 and "2 answers have no verdict yet" in refused.stderr
    measured = subprocess.run([*evaluate, "--first", "1"], **run)
    assert measured.returncode == 0, measured.stderr
    report = json.loads((folder.parent / "results" / "results.json").read_text())
    assert (report["num_samples"], report["most_samples"]) == (1, 1)
    assert check(folder).returncode == 0
    assert sorted(reasons(folder)) == sorted(REASONS)
    assert check(folder, "--first", "0").returncode == 2


# --- programs --------------------------------------------------------------------------------------------

DOUBLE = Problem(
    source="apps", split="test", question="Print twice the number.", kind="code",
    reference='{"inputs":["1","21"],"outputs":["2","42"]}',
)  # fmt: skip
ADD = Problem(
    source="apps", split="test", question="Add two numbers.", kind="code",
    reference='{"fn_name":"add","inputs":[[1,2]],"outputs":[3]}',
)  # fmt: skip
NO_TESTS = Problem(source="apps", split="test", question="?", kind="code", reference='{"inputs":[],"outputs":[]}')
PROGRAMS = [
    (DOUBLE, "print(2 * int(input()))", "match"),
    (DOUBLE, "print(2)", "mismatch"),
    (DOUBLE, "print(1 / 0)", "error"),
    (DOUBLE, "while True: pass", "timeout"),
    (ADD, "class Solution:\n    def add(self, a: int, b: int) -> int:\n        return a + b", "match"),
    (ADD, "def plus(a, b): return a + b", "error"),
    (NO_TESTS, "print(1)", "bad_reference"),
]


def write_programs(path: Path, programs: list[tuple[Problem, str, str]]) -> Path:
    problems = list(dict.fromkeys(problem for problem, _, _ in programs))
    with store.open_run(path, "generate_answers", {"seed": 1}):
        store.write_records(path / "problems.jsonl", problems)
        answers = [
            make_answer_to(problem, index, f"So:\n```python\n{code}\n```\nDone.")
            for index, (problem, code, _) in enumerate(programs)
        ]
        store.append_records(path / "answers.jsonl", answers)
    return path


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    return write_programs(tmp_path / "programs", PROGRAMS)


def test_programs_are_run_and_a_slow_one_or_a_crash_is_wrong(programs: Path) -> None:
    store.append_records(programs / "answers.jsonl", [make_answer_to(DOUBLE, 99, "It is 2.")])
    done = check(programs, "--num-workers", "2", "--test-timeout-s", "1.5")
    assert done.returncode == 0, done.stderr
    # Of the two problems with tests: 1 of 5 and 1 of 2 right.
    assert done.stdout.startswith(
        "graded 8 answers: 2 match, 1 mismatch, 1 no_answer, 1 bad_reference, 1 timeout, 2 error; accuracy 28.6 % "
    )
    assert "of 7 judged, 1 not judged and left out" in done.stdout
    assert reasons(programs) == [*(reason for _, _, reason in PROGRAMS), "no_answer"]
    first, *_ = store.read_records(programs / "verdicts.jsonl", Verdict)
    assert first.extracted == "print(2 * int(input()))\n"
    assert json.loads((programs / "verdicts.json").read_text())["arguments"] == {
        "timeout_s": 5.0, "fallback": "none", "percent_as_fraction": False, "test_timeout_s": 1.5,
        "total_timeout_s": 60.0, "memory_mb": 1024, "unsafe_no_sandbox": False,
    }  # fmt: skip
    assert_refused(programs, "--test-timeout-s", "2", says="--test-timeout-s 1.5")
    assert_refused(programs, "--test-timeout-s", "1.5", "--memory-mb", "512", says="now --timeout-s 5.0")
    before = contents(programs)
    assert check(programs, "--test-timeout-s", "1.5", "--audit").returncode == 0  # without an opinion on programs
    assert contents(programs) == before | {"disagreements.jsonl": b""}


def test_programs_and_mathematics_may_stand_in_one_folder(programs: Path) -> None:
    write_programs(programs.with_name("mixed"), [PROGRAMS[0]])
    store.append_records(programs.with_name("mixed") / "problems.jsonl", PROBLEMS)
    store.append_records(programs.with_name("mixed") / "answers.jsonl", [make_answer(0, 0, "The Answer is: 4")])
    assert check(programs.with_name("mixed")).returncode == 0
    assert reasons(programs.with_name("mixed")) == ["match", "match"]


def test_without_isolation_nothing_runs_unless_it_is_asked_for(programs: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    code = f"open({str(made)!r}, 'w').close()\nprint(2 * int(input()))"
    folder = write_programs(tmp_path / "unsafe", [(DOUBLE, code, "match")])
    broken = tmp_path / "bin" / "bwrap"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho bwrap: No permissions >&2\nexit 1\n")
    broken.chmod(0o755)
    environment = {**os.environ, "PATH": f"{broken.parent}:{os.environ['PATH']}"}
    before = contents(folder)
    done = check(folder, environment=environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "bwrap: No permissions" in done.stderr and "--unsafe-no-sandbox" in done.stderr
    assert contents(folder) == before and not made.exists()
    done = check(folder, "--unsafe-no-sandbox", environment=environment)
    assert done.returncode == 0, done.stderr
    assert reasons(folder) == ["match"] and made.exists()
    assert json.loads((folder / "verdicts.json").read_text())["arguments"]["unsafe_no_sandbox"] is True
    assert_refused(folder, says="was graded with")
    done = check(folder, "--regrade")
    assert done.returncode == 0 and reasons(folder) == ["error"]  # with a sandbox the file cannot be written


def test_limits_of_programs_that_are_none_are_named(programs: Path) -> None:
    assert_refused(programs, "--test-timeout-s", "0", says="--test-timeout-s 0: give seconds between 0 and 86400")
    assert_refused(programs, "--total-timeout-s", "-1", says="--total-timeout-s -1")
    assert_refused(programs, "--memory-mb", "8", says="--memory-mb 8: Python alone needs 64")


@pytest.mark.parametrize("written", [0, 1, 2])
def test_killed_at_any_point_the_same_command_ends_with_the_same_bytes(tmp_path: Path, written: int) -> None:
    """Killed before the first chunk of 16 verdicts is on disk, behind it, and behind the second."""
    many = [(DOUBLE, f"x = {number}\nprint((2 - x % 3 // 2) * int(input()))", "") for number in range(40)]
    whole, killed = (write_programs(tmp_path / name, many) for name in ("whole", "killed"))
    command = [sys.executable, str(ROOT / "tools/check_answers.py"), "--answers", "killed", "--num-workers", "2"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        end = time.monotonic() + 100
        while not (killed / "verdicts.json").exists() or len(reasons(killed)) < 16 * written:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.005)
        process.kill()
    kept = reasons(killed)
    assert 16 * written <= len(kept) < 40
    assert check(whole, "--num-workers", "2").returncode == 0
    done = check(killed, "--num-workers", "2")
    assert done.returncode == 0, done.stderr
    for name in ("verdicts.jsonl", "verdicts.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert set(reasons(whole)) == {"match", "mismatch"}


def test_help_says_what_it_takes() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/check_answers.py"), "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    for option in ("--num-workers", "--test-timeout-s", "--total-timeout-s", "--memory-mb", "--unsafe-no-sandbox"):
        assert option in done.stdout
