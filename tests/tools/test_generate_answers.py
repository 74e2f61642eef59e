"""tools/generate_answers.py with the scripted engine: kills, resumes, growth and mistakes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tt_reasoning.store import read_manifest, read_records
from tt_reasoning.types import Answer, Problem

TOOL = Path(__file__).parents[2] / "tools" / "generate_answers.py"
NUM_ANSWERS = 12 * 3


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.json"
    path.write_text(json.dumps({"fallback": ["I drew {seed}.\nThe Answer is: 7"], "delay_s": 0.01}))
    return path


def command(script: Path, out: Path, **options: object) -> list[str]:
    given = {
        "engine": "scripted",
        "model": script,
        "dataset": "quickstart",
        "limit": 12,
        "num_samples": 3,
        "chunk_size": 2,
        "out": out,
    } | options
    return [sys.executable, str(TOOL)] + [
        word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def run(script: Path, out: Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(script, out, **options), capture_output=True, text=True, timeout=120, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_writes_problems_answers_and_manifest(script: Path, tmp_path: Path) -> None:
    done = run(script, tmp_path / "run", max_new_tokens=5)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{NUM_ANSWERS} answers written, 100.0% cut at the token limit, 180 tokens, ")
    problems = list(read_records(tmp_path / "run" / "problems.jsonl", Problem))
    answers = list(read_records(tmp_path / "run" / "answers.jsonl", Answer))
    assert [(a.problem_id, a.sample_index) for a in answers] == [(p.id, i) for p in problems for i in range(3)]
    assert len(problems) == 12 and len({a.text for a in answers}) == NUM_ANSWERS
    arguments = read_manifest(tmp_path / "run")["arguments"]
    assert arguments["seed"] == 0 and arguments["chunk_size"] == 2 and arguments["max_new_tokens"] == 5


def test_a_run_killed_again_and_again_ends_with_the_file_of_one_never_killed(script: Path, tmp_path: Path) -> None:
    assert run(script, tmp_path / "whole").returncode == 0
    path = tmp_path / "killed" / "answers.jsonl"
    sizes = []
    for num_lines in (1, 10, 20, 30):
        process = subprocess.Popen(command(script, tmp_path / "killed"), stderr=subprocess.DEVNULL)
        while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= num_lines):
            time.sleep(0.002)
        assert process.poll() is None, "the run ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        sizes.append(path.stat().st_size)
        with path.open("ab") as file:
            file.write(b'{"id":"torn')
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    done = run(script, tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    assert "were there" in done.stdout
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_complete_run_says_so_and_changes_nothing(script: Path, tmp_path: Path) -> None:
    run(script, tmp_path / "run")
    before = contents(tmp_path / "run")
    done = run(script, tmp_path / "run")
    assert done.returncode == 0 and f"already complete: {NUM_ANSWERS} answers" in done.stdout
    assert contents(tmp_path / "run") == before


def test_more_samples_and_problems_are_added(script: Path, tmp_path: Path) -> None:
    run(script, tmp_path / "run", limit=3, num_samples=1)
    done = run(script, tmp_path / "run")
    assert done.returncode == 0 and f"{NUM_ANSWERS - 3} answers written (3 were there)" in done.stdout
    run(script, tmp_path / "fresh")
    grown, fresh = (set(read_records(tmp_path / name / "answers.jsonl", Answer)) for name in ("run", "fresh"))
    assert grown == fresh


def test_a_malformed_line_is_named_and_nothing_is_overwritten(script: Path, tmp_path: Path) -> None:
    run(script, tmp_path / "run")
    path = tmp_path / "run" / "answers.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:4], "not json\n", *lines[5:20]]))
    before = contents(tmp_path / "run")
    done = run(script, tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {path}:5: not JSON")
    assert contents(tmp_path / "run") == before


def test_the_folder_of_another_run_is_refused_and_not_overwritten(script: Path, tmp_path: Path) -> None:
    run(script, tmp_path / "run")
    before = contents(tmp_path / "run")
    for changed, words in [({"seed": 5}, "seed was 0, now 5"), ({"start": 1}, "start was 0, now 1")]:
        done = run(script, tmp_path / "run", **changed)
        assert done.returncode == 2 and words in done.stderr
        assert contents(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "vlm"}, "unknown engine 'vlm': did you mean 'vllm'?"),
        ({"prompt": "anser"}, "unknown prompt 'anser': did you mean 'answer'?"),
        ({"dataset": "quikstart"}, "unknown dataset 'quikstart': did you mean 'quickstart'?"),
        ({"engine": "vllm", "model": "tests/nothing"}, "no such model folder: tests/nothing"),
        ({"engine": "vllm", "model": "tests"}, "tests has no config.json"),
        ({"max_model_len": 100}, "unknown option of engine scripted 'max_model_len'"),
        ({"num_samples": 0}, "--num-samples 0: give at least 1"),
        ({"limit": 0}, "limit=0"),
        ({"temperature": 0}, "--temperature 0 is greedy and gives --num-samples 3 equal"),
        ({"top_p": 0}, "--top-p 0.0"),
    ],
)
def test_a_mistake_is_one_line_and_makes_no_folder(
    script: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    done = run(script, tmp_path / "run", **options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "run").exists()
