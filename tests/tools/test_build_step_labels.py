"""The tool on files in the published form: what it says, kills at every place where a file appears, mistakes."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prm800k_rows import FOUND_ERROR, PHASE_1, SOLVED, write_rows

from tt_reasoning.prm800k import Rules, build_labels
from tt_reasoning.steps import read_step_groups
from tt_reasoning.store import read_manifest

ROOT = Path(__file__).parents[2]
TOOL = str(ROOT / "tools" / "build_step_labels.py")


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_tool(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The tool in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", [TOOL, "prm800k", *words])
    try:
        runpy.run_path(TOOL, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def build_killed(number: int, files: list[Path], rules: Rules, folder: Path) -> None:
    """Build in a process of its own that is killed when it would rename a file for the ``number``-th time."""
    child = os.fork()
    if child == 0:
        try:
            left, replace = [number], os.replace

            def count_down(*paths: Path) -> None:
                left[0] -= 1
                os.kill(os.getpid(), signal.SIGKILL) if left[0] == 0 else replace(*paths)

            os.replace = count_down
            build_labels(files, rules, folder)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def write_phases(home: Path) -> list[str]:
    """Both phases in two files, with a row that is left out; the second repeats a row of its own."""
    write_rows(home / "phase1.jsonl", [PHASE_1, PHASE_1 | {"is_quality_control_question": True}])
    write_rows(home / "phase2.jsonl", [FOUND_ERROR, SOLVED, SOLVED])
    return ["--data-files", "phase1.jsonl", "phase2.jsonl"]


def contents(folder: Path) -> dict[str, bytes]:
    """All but what names the versions and the lock."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("manifest.json", ".lock")}


def test_both_phases_become_a_folder_of_steps_and_the_summary_counts_what_is_not_in_it(tmp_path: Path) -> None:
    command = [sys.executable, TOOL, "prm800k", *write_phases(tmp_path), "--mode", "candidates", "--out", "steps"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    # Phase 1: 7 ratings, FOUND_ERROR: 6, SOLVED twice 2; answers: 6, 4, and the first SOLVED.
    assert done.stdout.splitlines() == [
        "steps is finished: 11 answers to 1 problems, from 4 of 5 rows; 26 steps, labelled -1 6, 0 4, 1 5",
        "rows left out: quality control 1, initial screening 0, bad problem 0, give up 0, generation 0, unrated 0",
        "ratings read: 17, of them repeated 2, behind a step rated -1 0; without a rating: candidates 1, "
        "human written 1",
    ]
    ((_, group),) = read_step_groups(tmp_path / "steps")
    assert [len(steps) for _, steps in group] == [3, 1, 1, 2, 2, 3, 3, 3, 3, 3, 2]


def test_a_finished_folder_stays_as_it_is_and_another_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*write_phases(tmp_path), "--out", "steps"]
    assert run_tool(monkeypatch, *words) == 0
    before = contents(tmp_path / "steps")
    assert run_tool(monkeypatch, *words) == 0
    assert "steps was finished before, nothing done: 11 answers" in capsys.readouterr().out
    arguments = read_manifest(tmp_path / "steps")["arguments"]
    assert [name.split(",")[0] for name in arguments["data_files"]] == ["phase1.jsonl", "phase2.jsonl"]
    for changed, message in (
        (["--mode", "single-path"], "mode was 'candidates', now 'single-path'"),
        (["--data-files", "phase2.jsonl"], "data_files was ["),
    ):
        assert run_tool(monkeypatch, *words, *changed) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert contents(tmp_path / "steps") == before


@pytest.mark.parametrize("rules", [Rules(), Rules(mode="product")], ids=["candidates", "product"])
def test_killed_before_any_of_its_files_appears_the_same_command_makes_the_same_bytes(
    tmp_path: Path, rules: Rules
) -> None:
    write_phases(tmp_path)
    files = [Path("phase1.jsonl"), Path("phase2.jsonl")]
    build_labels(files, rules, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    assert sorted(whole) == ["answers.jsonl", "problems.jsonl", "stats.json", "steps.jsonl"]
    for number in range(1, 6):  # the manifest and these four
        out = tmp_path / f"killed{number}"
        build_killed(number, files, rules, out)
        assert not (out / "stats.json").exists() and list(out.glob(".*.tmp"))
        assert build_labels(files, rules, out)[1] is False
        assert contents(out) == whole


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data-files", "phase3.jsonl"], "error: --data-files phase3.jsonl: no such file"),
        (["--data-files", "."], "error: --data-files .: no such file"),
        (["--data-files"], "error: --data-files: name at least one file of PRM800K"),
        (["--max-paths", "0"], "error: --max-paths 0: give at least 1"),
        (["--out", "phase1.jsonl"], "error: the output phase1.jsonl is a file; name a folder"),
        (["--data-files", "torn.jsonl"], "error: torn.jsonl:3: the file ends within this line; fetch the file again"),
        (["--data-files", "out.jsonl"], "error: out.jsonl: no rated step in 1 rows (give_up 1)"),
    ],
)
def test_a_mistake_is_one_line_and_makes_no_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    files = write_phases(tmp_path)
    (tmp_path / "torn.jsonl").write_bytes((tmp_path / "phase2.jsonl").read_bytes()[:-9])
    write_rows(tmp_path / "out.jsonl", [SOLVED | {"label": {"steps": [], "finish_reason": "give_up"}}])
    assert run_tool(monkeypatch, *files, "--out", "steps", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)
    assert not (tmp_path / "steps").exists()


@pytest.mark.parametrize(
    ("words", "hint"),
    [(["--mod", "product"], "--mode"), (["--mode", "candidate"], "candidates"), (["--out"], "--out")],
)
def test_a_mistyped_option_ends_with_status_2_and_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], hint: str
) -> None:
    assert run_tool(monkeypatch, *write_phases(tmp_path), "--out", "steps", *words) == 2
    assert hint in capsys.readouterr().err
    assert not (tmp_path / "steps").exists()
