"""tools/show_results.py on folders of small reports."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from matplotlib.image import imread

from tt_reasoning import store
from tt_reasoning.evaluation import CategoryResult, Comparison, Report, Result

TOOL = Path(__file__).parents[2] / "tools" / "show_results.py"


def write_report(
    folder: Path,
    values: dict[tuple[str, int], float],
    *,
    categories: tuple = (),
    p: float = 0.2,
    settings: dict | None = None,
) -> None:
    """Accuracies by method and k, each with an interval of 10 points to either side, all ``p`` from the majority."""
    results = tuple(
        Result(
            method=method, k=k, value=value, low=max(0.0, value - 0.1), high=min(1.0, value + 0.1), num_problems=20,
            answer_tokens=100.0 * k,
        )
        for (method, k), value in values.items()
    )  # fmt: skip
    differences = tuple(
        Comparison(
            method=f"{method}@{k}", baseline=f"majority@{k}", difference=0.1, low=0.0, high=0.2, p_value=p,
            num_problems=20,
        )
        for method, k in values if method != "majority"
    )  # fmt: skip
    report = Report(
        answers="answers/demo", model="models/tiny", dataset="gsm8k", split="test", num_problems=20, num_samples=8,
        most_samples=8, num_answers=tuple(sorted({k for _, k in values})), aggregator=None, prompt=None,
        usc_model=None, results=results, differences=differences, categories=categories, counts={},
        settings=settings or {}, versions={},
    )  # fmt: skip
    folder.mkdir(parents=True)
    store.write_json(folder / "results.json", asdict(report))


def rows_of(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    assert done.returncode == 0, done.stderr
    return [re.split(r"  +", line.strip()) for line in done.stdout.splitlines()]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two runs with one k each."""
    write_report(tmp_path / "results" / "votes", {("pass", 1): 0.25, ("pass", 8): 1.0, ("majority", 8): 0.5})
    values = {("pass", 1): 0.25, ("pass", 4): 1.0, ("majority", 4): 0.5, ("aggregator", 4): 0.625}
    write_report(tmp_path / "results" / "deep" / "down", values)
    return tmp_path / "results"


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """A run with k = 1, 2, 4, categories, and an aggregator that differs from the majority."""
    values = {(m, k): (0.2 + 0.1 * k) for k in (1, 2, 4) for m in ("pass", "oracle", "majority", "aggregator")}
    categories = tuple(
        CategoryResult(category=name, method=method, k=k, value=0.5, low=0.25, high=0.75, num_problems=number)
        for name, number in (("law", 12), ("art", 8))
        for method, k in values
    )
    write_report(tmp_path / "several" / "run", values, categories=categories, p=0.01)
    return tmp_path / "several"


def show(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOL, "--results", folder.name, *more]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=120, check=False)


def test_every_run_at_any_depth_has_a_row_a_method_and_a_column_a_k(results: Path) -> None:
    assert rows_of(show(results)) == [
        ["run", "model", "dataset", "problems", "method", "k = 1", "k = 4", "k = 8"],
        ["-" * n for n in (9, 5, 10, 8, 10, 17, 19, 19)],
        ["deep/down", "tiny", "gsm8k/test", "20", "pass", "25.0 [15.0, 35.0]", "100.0 [90.0, 100.0]", "-"],
        ["majority", "-", "50.0 [40.0, 60.0]", "-"],
        ["aggregator", "-", "62.5 [52.5, 72.5]", "-"],
        ["votes", "tiny", "gsm8k/test", "20", "pass", "25.0 [15.0, 35.0]", "-", "100.0 [90.0, 100.0]"],
        ["majority", "-", "-", "50.0 [40.0, 60.0]"],
        ["2 runs under results"],
    ]


def test_a_star_marks_methods_but_no_bounds(several: Path) -> None:
    lines = show(several).stdout.splitlines()
    assert [line.count("*") for line in lines[2:6]] == [0, 0, 0, 3]  # pass, oracle, majority, aggregator
    assert lines[-2] == "* p < 0.05 against majority@k"


def test_methods_and_numbers_of_answers_can_be_chosen(several: Path) -> None:
    rows = rows_of(show(several, "--methods", "majority", "aggregator", "--num-answers", "2", "4"))
    assert rows[0][-2:] == ["k = 2", "k = 4"]
    assert [row[-3] for row in rows[2:4]] == ["majority", "aggregator"]
    for more, words in (
        (("--methods", "majorty"), "unknown method 'majorty': did you mean 'majority'?"),
        (("--num-answers", "3"), "--num-answers 3; k is 1 2 4"),
    ):
        done = show(several, *more)
        assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


def test_categories_have_a_row_each_at_the_largest_k(several: Path, results: Path) -> None:
    rows = rows_of(show(several, "--categories", "--methods", "majority", "aggregator"))
    assert rows[0] == ["run", "dataset", "k", "category", "problems", "majority", "aggregator"]
    assert rows[2] == ["run", "gsm8k/test", "4", "law", "12", "50.0 [25.0, 75.0]", "50.0 [25.0, 75.0]"]
    assert rows[3] == ["art", "8", "50.0 [25.0, 75.0]", "50.0 [25.0, 75.0]"]
    assert rows_of(show(several, "--categories", "--num-answers", "2"))[2][2] == "2"
    done = show(results, "--categories")
    assert done.returncode == 2 and "no run has problems with a category" in done.stderr


def test_one_runs_own_folder_is_shown_by_its_name(results: Path) -> None:
    done = show(results / "votes")
    assert done.stdout.splitlines()[2].startswith("votes ")
    assert done.stdout.splitlines()[-1] == "1 run under votes"


def test_markdown_has_one_cell_a_column(results: Path) -> None:
    lines = show(results, "--format", "markdown").stdout.splitlines()[:-1]
    assert {line.count("|") for line in lines} == {9}
    assert set(lines[1]) <= set("|-: ")


def count_pixels(picture: Path, color: str) -> int:
    pixels = (imread(picture)[..., :3] * 255).round().astype(int)
    distance = abs(pixels - [int(color[i : i + 2], 16) for i in (0, 2, 4)])
    return int((distance <= 1).all(axis=-1).sum())  # a band's colour is mixed, and rounded


def test_runs_of_one_k_are_bars_of_every_methods_colour(results: Path) -> None:
    done = show(results, "--plot", "new/plot.png")
    assert done.returncode == 0, done.stderr
    for color in ("5a5a5a", "e69f00", "009e73", "d5d5d5"):
        assert count_pixels(results.parent / "new" / "plot.png", color) > 1000, color


def test_runs_of_several_k_are_lines_with_bands(several: Path) -> None:
    for against in ("k", "tokens"):
        done = show(several, "--plot", "plot.png", "--against", against, "--methods", "majority")
        assert done.returncode == 0, done.stderr
        picture = several.parent / "plot.png"
        assert 300 < count_pixels(picture, "e69f00") < 10_000  # a line, no bar
        band = "".join(f"{round(255 + 0.13 * (channel - 255)):02x}" for channel in (0xE6, 0x9F, 0x00))
        assert count_pixels(picture, band) > 10_000


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """A run of 400 random subsets with one method by two aggregates of a judge, and the majority."""
    methods = ("majority", "best_of_n[prm:min]", "best_of_n[prm:prod]")
    values = {(method, k): 0.1 * (k + number) for k in (2, 4) for number, method in enumerate(methods)}
    write_report(tmp_path / "judged" / "run", values, settings={"evaluate": {"subsamples": 400}})
    return tmp_path / "judged"


def test_a_method_by_several_judges_is_shown_by_each_and_chosen_with_or_without_one(judged: Path) -> None:
    rows = rows_of(show(judged, "--methods", "best_of_n"))
    assert [row[-3] for row in rows[2:4]] == ["best_of_n[prm:min]", "best_of_n[prm:prod]"]
    assert rows[4] == ["run: means over 400 random subsets of k of its 8 answers a problem"]
    rows = rows_of(show(judged, "--methods", "best_of_n[prm:prod]", "majority"))
    assert [row[-3] for row in rows[2:4]] == ["majority", "best_of_n[prm:prod]"]
    done = show(judged, "--methods", "best_of_n[prm:last]")
    assert done.returncode == 2 and "did you mean 'best_of_n[prm:" in done.stderr


def test_judges_of_one_method_are_drawn_in_colours_of_their_own(judged: Path) -> None:
    for more, least in (((), 200), (("--num-answers", "4"), 1000)):  # lines, then bars
        assert show(judged, "--plot", "plot.png", *more).returncode == 0
        for color in ("e69f00", "882255", "ad678a"):
            assert count_pixels(judged.parent / "plot.png", color) > least, color


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
