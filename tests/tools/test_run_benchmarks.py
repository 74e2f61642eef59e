"""tools/run_benchmarks.py with the scripted engine: every number by hand, kills, failures that others survive."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tt_reasoning.store import read_records
from tt_reasoning.types import Answer

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "run_benchmarks.py"
GSM8K = [("One and one?", "2"), ("Two and two?", "4"), ("Three and three?", "6"), ("Four and four?", "8")]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A script that knows three of four sums and one of two choices, and local files with them."""
    answers = {question: [f"The Answer is: {gold}"] for question, gold in GSM8K[:3]}
    (tmp_path / "script.json").write_text(json.dumps({"answers": answers, "fallback": ["The Answer is: B"]}))
    rows = [{"question": question, "answer": f"So it is {gold}.\n#### {gold}"} for question, gold in GSM8K]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [
        {"question": f"Question {n}?", "choices": ["x", "y", "z", "w"], "answer": n, "subject": "logic"} for n in (0, 1)
    ]
    (tmp_path / "mmlu.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def command(home: Path, *words: str, evals: str = "GSM8K,MMLU", out: str = "run") -> list[str]:
    return [
        sys.executable, str(TOOL), "--engine", "scripted", "--model", str(home / "script.json"), "--evals", evals,
        "--out", str(home / out), "--max-new-tokens", "64", "--data-files", f"GSM8K={home}/gsm8k.jsonl",
        *([f"MMLU={home}/mmlu.jsonl"] if "MMLU" in evals else []), *words,
    ]  # fmt: skip


def run(home: Path, *words: str, **options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(home, *words, **options), capture_output=True, text=True, timeout=120, check=False)


def results(home: Path, out: str = "run") -> dict:
    return json.loads((home / out / "benchmarks.json").read_text())


def test_every_benchmark_gets_its_accuracy_with_an_interval(home: Path) -> None:
    done = run(home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"GSM8K": 0.75, "MMLU": 0.5}
    found = results(home)
    assert (found["GSM8K"], found["MMLU"], found["failed"]) == (0.75, 0.5, {})
    details = found["details"]["GSM8K"]
    assert (details["problems"], details["num_samples"], details["majority_at"]) == (4, 1, {})
    assert 0 <= details["interval"][0] < 0.75 < details["interval"][1] <= 1
    assert details["reasons"] | {"match": 3, "mismatch": 1} == details["reasons"]
    settings = details["settings"]
    assert [settings[name] for name in ("dataset", "split", "temperature", "seed")] == ["gsm8k", "test", 0, 0]
    assert settings["template"]["user"].startswith("{question}") and "torch" in found["versions"]


def test_samples_give_pass_at_k_and_the_majority(home: Path) -> None:
    texts = {"One and one?": ["The Answer is: 2", "The Answer is: 3"]}
    (home / "script.json").write_text(json.dumps({"answers": texts, "fallback": ["none"]}))
    done = run(home, "--n", "4", "--temperatures", "0.7", evals="GSM8K")
    assert done.returncode == 0, done.stderr
    found = results(home)["details"]["GSM8K"]
    answers = [a for a in read_records(home / "run" / "GSM8K" / "answers.jsonl", Answer) if a.text.endswith("2")]
    assert len(answers) in (1, 2, 3)  # of four; seeds decide
    assert found["accuracy"] == len(answers) / 16
    assert found["pass_at"]["4"][0] == 0.25 and found["pass_at"]["1"][0] == found["accuracy"]
    assert set(found["majority_at"]) == {"1", "2", "4"}


def test_one_that_fails_is_reported_and_the_others_go_on(home: Path) -> None:
    (home / "gsm8k.jsonl").write_text('{"question": "?"}\n')
    done = run(home)
    assert done.returncode == 2
    assert json.loads(done.stdout.splitlines()[-1]) == {"MMLU": 0.5}
    assert done.stderr.splitlines()[-1].startswith("error: 1 of 2 benchmarks failed: GSM8K (the reasons are in ")
    found = results(home)
    assert "not a row of gsm8k" in found["failed"]["GSM8K"] and "GSM8K" not in found


@pytest.mark.parametrize("kill_at", [1, 3, 5])
def test_a_killed_run_goes_on_to_the_same_numbers(home: Path, kill_at: int) -> None:
    assert run(home, out="whole").returncode == 0
    script = json.loads((home / "script.json").read_text()) | {"delay_s": 0.3}
    (home / "script.json").write_text(json.dumps(script))
    process = subprocess.Popen(command(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while sum(len(path.read_text().splitlines()) for path in home.glob("run/*/answers.jsonl")) < kill_at:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (home / "run" / "benchmarks.json").exists()
    assert run(home).returncode == 0
    for name in ("GSM8K", "MMLU"):
        whole, again = (home / out / name / "answers.jsonl" for out in ("whole", "run"))
        assert whole.read_bytes() == again.read_bytes()
    assert results(home)["details"] == results(home, "whole")["details"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--evals", "GSM9K"], "unknown benchmark 'gsm9k': did you mean 'gsm8k'?"),
        (["--evals", "GSM8K,gsm8k"], "--evals names gsm8k twice"),
        (["--evals", ","], "--evals names none"),
        (["--data-files", "gsm8k.jsonl"], "give NAME=FILE"),
        (["--data-files", "AIME=aime.jsonl"], "--evals does not name aime24"),
        (["--num-samples", "4"], "--num-samples 4 at temperature 0 are all the same"),
        (["--limit", "0"], "--limit 0: give at least 1"),
        (["--output-file", "nowhere/there/x.json"], "there is no folder"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_made(home: Path, words: list[str], says: str) -> None:
    done = run(home, *words)
    assert done.returncode == 2 and not (home / "run").exists()
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1 and says in done.stderr


def test_another_setup_is_refused_and_nothing_is_overwritten(home: Path) -> None:
    assert run(home).returncode == 0
    before = (home / "run" / "GSM8K" / "answers.jsonl").read_bytes()
    done = run(home, "--seed", "5")
    assert done.returncode == 2 and "seed was 0, now 5" in results(home)["failed"]["GSM8K"]
    assert (home / "run" / "GSM8K" / "answers.jsonl").read_bytes() == before


def test_help_shows_an_example() -> None:
    done = subprocess.run([sys.executable, str(TOOL), "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "python tools/run_benchmarks.py --model" in " ".join(done.stdout.split())
