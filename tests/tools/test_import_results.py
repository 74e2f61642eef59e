"""The tool as it is run: an old file becomes a folder that the next tools take, and every mistake is one line."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tyro
from loaded_tools import load_tool

from tt_reasoning.errors import UserError
from tt_reasoning.store import read_manifest, read_records, read_rows
from tt_reasoning.types import Answer, Problem

ROOT = Path(__file__).parents[2]
NAME = "Qwen2-7B_MATH500_test_None_0_-1.json"


def response(text: str, correct: bool) -> dict[str, object]:
    return {"content": text, "correctness": correct, "reason": "" if correct else "Solution is incorrect."}


def rows(count: int = 2) -> dict[str, dict]:
    """What inference with --n 2 leaves: the old verdict of the second sample is wrong."""
    return {
        f"What is ${n}+{n}$?": {
            "problem": f"What is ${n}+{n}$?", "answer": str(2 * n), "subject": "Algebra",
            "prompt": f"Return your final response within \\boxed{{{{}}}}. What is ${n}+{n}$?",
            "responses": {"0.7": [response(f"So \\boxed{{{2 * n}}}.", True), response("\\boxed{7}", True)]},
            "token_usages": {"0.7": [{"completion_tokens": 5, "prompt_tokens": 9}] * 2},
        }
        for n in range(1, count + 1)
    }  # fmt: skip


def run(home: Path, *options: str, tool: str = "import_results") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / f"tools/{tool}.py"), *options]
    return subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=120, check=False)


def mistake(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def refusal(options: list[str]) -> str:
    """What the tool says against options: in this process, which is faster than one of its own."""
    tool = load_tool("import_results")
    with pytest.raises(UserError) as error:
        tool.main(tyro.cli(tool.Arguments, args=options, use_underscores=False))
    assert "\n" not in str(error.value)
    return str(error.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


def test_an_old_file_is_imported_checked_and_trained_on(tmp_path: Path) -> None:
    found = rows()
    found["broken"] = {"problem": "?", "answer": "1"}
    (tmp_path / NAME).write_text(json.dumps(found))
    options = ("--results", NAME, "--dataset", "MATH500", "--out", "answers/imported")
    done = run(tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "answers/imported: 2 problems, 4 answers (4 at temperature 0.7)",
        "the file calls 4 of 4 correct, crashed and hung programs among them: kept in "
        "answers/imported/old_verdicts.jsonl, not used",
        "1 rows left out, see answers/imported/rejected.jsonl",
        "now run: python tools/check_answers.py --answers answers/imported",
    ]
    assert f"{NAME}: row 'broken' is left out: responses=None should be" in done.stderr
    out = tmp_path / "answers" / "imported"
    problems = list(read_records(out / "problems.jsonl", Problem))
    assert [(p.source, p.split, p.reference) for p in problems] == [("math500", "test", "2"), ("math500", "test", "4")]
    answer = next(read_records(out / "answers.jsonl", Answer))
    assert (answer.sampling.model, answer.sampling.temperature, answer.num_tokens) == ("Qwen2-7B", 0.7, 5)
    assert read_manifest(out)["arguments"]["template"]["user"] == (
        "Return your final response within \\boxed{{}}. {question}"
    )
    assert list(read_rows(out / "old_verdicts.jsonl"))[1]["correct"] is True
    before = contents(out)
    assert run(tmp_path, *options).returncode == 0 and contents(out) == before
    assert "model was 'Qwen2-7B', now 'other'" in mistake(run(tmp_path, *options, "--model", "other"))

    done = run(tmp_path, "--answers", "answers/imported", tool="check_answers")
    assert done.stdout.startswith("graded 4 answers: 2 match, 2 mismatch"), done.stderr
    done = run(tmp_path, "--answers", "answers/imported", "--any-format", "--out", "train.json", tool="to_sharegpt")
    assert done.returncode == 0, done.stderr
    said = {row["conversations"][1]["value"] for row in json.loads((tmp_path / "train.json").read_text())}
    assert said == {row["prompt"] for row in rows().values()}


def test_the_later_shape_takes_its_settings_from_the_summary_beside_it(tmp_path: Path) -> None:
    row = next(iter(rows().values()))
    flat = row | {"responses": row["responses"]["0.7"], "token_usages": row["token_usages"]["0.7"]}
    flat["input_conversation"] = [{"role": "user", "content": flat["problem"]}]
    (tmp_path / "results.json").write_text(json.dumps({"0": flat}))
    line = mistake(run(tmp_path, "--results", "results.json", "--out", "answers"))
    assert line == "error: --results results.json: none of 1 rows could be read"
    summary = {"configuration": {"model_config": {"model_id": "org/M"},
                                 "sampling_params": {"params": {"temperature": 0.6, "max_tokens": 5}}}}  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    done = run(tmp_path, "--results", "results.json", "--out", "answers")
    assert done.returncode == 0, done.stderr
    answers = list(read_records(tmp_path / "answers" / "answers.jsonl", Answer))
    assert [(a.sampling.model, a.sampling.temperature, a.finish_reason) for a in answers] == [
        ("org/M", 0.6, "length")
    ] * 2  # fmt: skip
    assert answers[0].sampling.prompt == "question"


def test_a_run_killed_at_three_points_ends_with_the_same_files(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps(rows(1500)))
    command = [sys.executable, str(ROOT / "tools/import_results.py"), "--results", NAME, "--dataset", "math500"]
    subprocess.run([*command, "--out", "whole"], cwd=tmp_path, capture_output=True, check=True)
    whole = contents(tmp_path / "whole")
    for file in ("manifest.json", "problems.jsonl", "old_verdicts.jsonl"):
        out = tmp_path / file.partition(".")[0]
        process = subprocess.Popen([*command, "--out", out.name], cwd=tmp_path)
        deadline = time.monotonic() + 60
        while process.poll() is None and not (out / file).exists() and time.monotonic() < deadline:
            pass
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and not (out / "answers.jsonl").exists()
        done = subprocess.run([*command, "--out", out.name], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0 and contents(out) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--results", "none.json"], "--results none.json: no such file"),
        (["--results", "."], "--results . is a folder; name the file of results in it"),
        (["--results", "list.json"], "--results list.json: not an object with a row for every problem"),
        (["--results", "torn.json"], "--results torn.json: not JSON"),
        (["--results", "usage.json"], "--results usage.json: none of 2 rows could be read"),
        (["--results", NAME, "--dataset", "math50"], "unknown dataset 'math50': did you mean 'math500'?"),
        (["--results", NAME, "--temperature", "-1"], "--temperature -1: give a number from 0 on"),
        (["--results", NAME, "--out", "taken"], "the output taken holds files but no manifest.json"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).write_text(json.dumps(rows()))
    for name, text in (("list.json", "[]"), ("torn.json", "{"), ("usage.json", '{"completion_tokens": 3, "a": {}}')):
        (tmp_path / name).write_text(text)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    assert message in refusal([*([] if "--out" in options else ["--out", "out"]), *options])
    assert not (tmp_path / "out").exists() and [path.name for path in (tmp_path / "taken").iterdir()] == ["mine.txt"]


def test_help_names_the_options(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert done.returncode == 0 and "--max-new-tokens" in done.stdout and "--content" in done.stdout
