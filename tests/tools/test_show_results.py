"""tools/show_results.py on folders of small reports."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from matplotlib.image import imread

from tt_reasoning import store
from tt_reasoning.evaluation import Report, Result

TOOL = Path(__file__).parents[2] / "tools" / "show_results.py"


def write_report(folder: Path, *, num_answers: int, aggregator: float | None = None) -> None:
    values = {"pass@1": 0.25, f"majority@{num_answers}": 0.5, f"pass@{num_answers}": 1.0}
    if aggregator is not None:
        values["aggregator"] = aggregator
    results = tuple(
        Result(method=method, value=value, low=max(0.0, value - 0.1), high=min(1.0, value + 0.1), num_problems=20)
        for method, value in values.items()
    )
    report = Report(
        answers="answers/demo", model="models/tiny", dataset="gsm8k", split="test", num_problems=20,
        num_answers=num_answers, aggregator=None, prompt=None, results=results, differences=(), counts={}, tokens={},
        versions={},
    )  # fmt: skip
    folder.mkdir(parents=True)
    store.write_json(folder / "results.json", asdict(report))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_report(tmp_path / "results" / "votes", num_answers=8)
    write_report(tmp_path / "results" / "deep" / "down", num_answers=4, aggregator=0.625)
    return tmp_path / "results"


def show(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOL, "--results", folder.name, *more]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=120, check=False)


def test_every_run_at_any_depth_is_one_row(results: Path) -> None:
    done = show(results)
    assert done.returncode == 0, done.stderr
    header, _, deep, votes, summary = done.stdout.splitlines()
    columns = ["run", "model", "dataset", "k", "problems", "pass@1", "majority@k", "pass@k", "aggregator"]
    assert header.split() == columns
    first = "deep/down tiny gsm8k/test 4 20 25.0 [15.0, 35.0] 50.0 [40.0, 60.0] 100.0 [90.0, 100.0] 62.5 [52.5, 72.5]"
    assert deep.split() == first.split()
    assert votes.split()[:5] == ["votes", "tiny", "gsm8k/test", "8", "20"] and votes.split()[-1] == "-"
    assert summary == "2 runs under results"


def test_one_runs_own_folder_is_shown_by_its_name(results: Path) -> None:
    done = show(results / "votes")
    assert done.stdout.splitlines()[2].startswith("votes ")
    assert done.stdout.splitlines()[-1] == "1 run under votes"


def test_markdown_has_one_cell_a_column(results: Path) -> None:
    lines = show(results, "--format", "markdown").stdout.splitlines()[:-1]
    assert {line.count("|") for line in lines} == {10}
    assert set(lines[1]) <= set("|-: ")


def test_the_plot_is_a_picture_with_every_methods_colour(results: Path) -> None:
    done = show(results, "--plot", "new/plot.png")
    assert done.returncode == 0, done.stderr
    pixels = (imread(results.parent / "new" / "plot.png")[..., :3] * 255).round().astype(int)
    for color in ("0072b2", "e69f00", "009e73", "d5d5d5"):
        rgb = [int(color[i : i + 2], 16) for i in (0, 2, 4)]
        assert (pixels == rgb).all(axis=-1).sum() > 1000, color


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "no such folder: results"),
        (lambda folder: folder.mkdir(), "results holds no results.json"),
    ],
)
def test_a_missing_or_empty_folder_is_refused(tmp_path: Path, make, words: str) -> None:
    make(tmp_path / "results")
    done = show(tmp_path / "results")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert words in done.stderr and "tools/evaluate.py" in done.stderr


def test_a_malformed_file_is_named_and_nothing_is_drawn(results: Path) -> None:
    (results / "votes" / "results.json").write_text('{"answers": 3}')
    done = show(results, "--plot", "plot.png")
    assert done.returncode == 2
    assert "results/votes/results.json" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (results.parent / "plot.png").exists()


def test_a_plot_of_no_known_format_is_refused(results: Path) -> None:
    done = show(results, "--plot", "plot.txt")
    assert done.returncode == 2
    assert "plot.txt: name a file that ends in .png" in done.stderr
