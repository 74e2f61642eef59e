"""Benchmarks as problems: rows from the Hub, from local files or from the package become ``Problem`` records.

A new benchmark is a function ``to_problem(row, split)`` in a file of this folder and an entry in ``SOURCES``.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tt_reasoning.errors import UserError, unknown_name
from tt_reasoning.hub import download_hub_file, load_hub_dataset
from tt_reasoning.problems.choice import (
    arc_problem,
    gpqa_diamond_problem,
    mmlu_pro_problem,
    mmlu_problem,
    truthfulqa_problem,
)
from tt_reasoning.problems.code import apps_problem, livecodebench_problem, taco_problem
from tt_reasoning.problems.competitions import aime24_problem, aime25_problem, amc23_problem, olympiad_problem
from tt_reasoning.problems.gsm8k import gsm8k_problem, gsm8k_solution
from tt_reasoning.problems.math import math500_problem, math_problem
from tt_reasoning.problems.numina import numina_problem
from tt_reasoning.problems.quickstart import DATA, quickstart_problem
from tt_reasoning.problems.word_problems import (
    asdiv_problem,
    asdiv_solution,
    mawps_problem,
    mawps_solution,
    svamp_problem,
)
from tt_reasoning.types import Kind, Problem

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A benchmark: where its rows are and how one becomes a problem.

    ``to_problem`` raises ValueError for a malformed row and returns None for a row that is no problem here;
    ``left_out`` says why not. ``to_solution`` gives the row's own worked solution in steps, where the benchmark has
    any; None for a row without one. ``hub`` is a dataset on the Hugging Face Hub; None means the file that ships with
    the package. ``files`` are those of the dataset that hold a split, where only a script in it could say so.
    """

    name: str
    kind: Kind = "math"
    description: str
    license: str
    hub: str | None
    config: str | None = None
    revision: str | None = None
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)
    splits: tuple[str, ...]
    to_problem: Callable[[Row, str], Problem | None]
    to_solution: Callable[[Row], str | None] | None = None
    left_out: str = "they have several answers"


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="gsm8k",
            description="grade-school problems, two to eight steps",
            license="MIT",
            hub="openai/gsm8k",
            config="main",
            splits=("train", "test"),
            to_problem=gsm8k_problem,
            to_solution=gsm8k_solution,
        ),
        Source(
            name="math",
            description="competition problems, split of Let's Verify Step by Step",
            license="MIT",
            hub="user074/prm800k_MATH_splits",
            splits=("train", "test"),
            to_problem=math_problem,
        ),
        Source(
            name="math500",
            description="the 500 test problems of that split",
            license="MIT",
            hub="HuggingFaceH4/MATH-500",
            splits=("test",),
            to_problem=math500_problem,
        ),
        Source(
            name="asdiv",
            description="diverse elementary-school word problems",
            license="CC-BY-NC-4.0",
            hub="EleutherAI/asdiv",
            splits=("validation",),
            to_problem=asdiv_problem,
            to_solution=asdiv_solution,
        ),
        Source(
            name="svamp",
            description="one-step word problems with misleading numbers",
            license="MIT",
            hub="ChilleD/SVAMP",
            splits=("train", "test"),
            to_problem=svamp_problem,
        ),
        Source(
            name="mawps",
            description="one- and two-step word problems from many collections",
            license="MIT",
            hub="MU-NLPC/Calc-mawps",
            config="default",
            splits=("train", "validation", "test"),
            to_problem=mawps_problem,
            to_solution=mawps_solution,
        ),
        Source(
            name="aime24",
            description="AIME 2024, both papers: integers from 0 to 999",
            license="MIT",
            hub="Maxwell-Jia/AIME_2024",
            splits=("train",),
            to_problem=aime24_problem,
        ),
        Source(
            name="aime25",
            description="AIME 2025, both papers: integers from 0 to 999",
            license="unknown",
            hub="yentinglin/aime_2025",
            splits=("train",),
            to_problem=aime25_problem,
        ),
        Source(
            name="amc23",
            description="AMC 12 of 2023, asked without options",
            license="unknown",
            hub="zwhe99/amc23",
            splits=("test",),
            to_problem=amc23_problem,
        ),
        Source(
            name="olympiad",
            description="OlympiadBench: open-ended, text-only, English mathematics",
            license="Apache-2.0",
            hub="Hothan/OlympiadBench",
            config="OE_TO_maths_en_COMP",
            splits=("train",),
            to_problem=olympiad_problem,
        ),
        Source(
            name="numina",
            description="NuminaMath-CoT: 860,000 problems of nine sources, such as amc_aime, math and olympiads",
            license="Apache-2.0",
            hub="AI-MO/NuminaMath-CoT",
            splits=("train", "test"),
            to_problem=numina_problem,
            left_out="their solution boxes no answer",
        ),
        Source(
            name="mmlu",
            kind="choice",
            description="57 subjects from school to profession, four options",
            license="MIT",
            hub="cais/mmlu",
            config="all",
            splits=("dev", "validation", "test"),
            to_problem=mmlu_problem,
        ),
        Source(
            name="mmlu-pro",
            kind="choice",
            description="harder MMLU in 14 categories, up to ten options",
            license="MIT",
            hub="TIGER-Lab/MMLU-Pro",
            splits=("validation", "test"),
            to_problem=mmlu_pro_problem,
        ),
        Source(
            name="arc",
            kind="choice",
            description="ARC-Challenge: school science, three to five options",
            license="CC-BY-SA-4.0",
            hub="allenai/ai2_arc",
            config="ARC-Challenge",
            splits=("train", "validation", "test"),
            to_problem=arc_problem,
        ),
        Source(
            name="truthfulqa",
            kind="choice",
            description="common misconceptions, one right answer (MC1)",
            license="Apache-2.0",
            hub="truthfulqa/truthful_qa",
            config="multiple_choice",
            splits=("validation",),
            to_problem=truthfulqa_problem,
        ),
        Source(
            name="gpqa-diamond",
            kind="choice",
            description="biology, chemistry and physics for experts, four options",
            license="CC-BY-4.0, gated",
            hub="Idavidrein/gpqa",
            config="gpqa_diamond",
            splits=("train",),
            to_problem=gpqa_diamond_problem,
        ),
        Source(
            name="apps",
            kind="code",
            description="programs with tests: introductory, interview, competition",
            license="MIT",
            hub="codeparrot/apps",
            files={split: (f"{split}.jsonl",) for split in ("train", "test")},
            splits=("train", "test"),
            to_problem=apps_problem,
            left_out="they have no tests, or malformed ones",
        ),
        Source(
            name="taco",
            kind="code",
            description="programs with tests in five difficulties, EASY to VERY_HARD",
            license="Apache-2.0",
            hub="BAAI/TACO",
            files={
                "train": tuple(f"ALL/train-{part:05}-of-00009.parquet" for part in range(9)),
                "test": ("ALL/test-00000-of-00001.parquet",),
            },
            splits=("train", "test"),
            to_problem=taco_problem,
            left_out="they have no tests, or malformed ones",
        ),
        Source(
            name="livecodebench",
            kind="code",
            description="contest programs of 2023 and 2024 with tests (release_v2): easy, medium, hard",
            license="CC",
            hub="livecodebench/code_generation_lite",
            files={"test": ("test.jsonl", "test2.jsonl")},
            splits=("test",),
            to_problem=livecodebench_problem,
        ),
        Source(
            name="quickstart",
            description="one- to three-step word problems that ship with this package",
            license="BSD-3-Clause",
            hub=None,
            splits=("train", "test"),
            to_problem=quickstart_problem,
        ),
    )
}


# Other names of these, as other tools spell them; upper and lower case are alike in all names.
ALIASES = {
    "aime": "aime24",
    "arc-c": "arc",
    "gpqadiamond": "gpqa-diamond",
    "mmlupro": "mmlu-pro",
}


def find_dataset(name: str) -> str:
    """The name in ``SOURCES`` of what a user calls a benchmark; what is not known comes back as it is.

    >>> find_dataset("MATH500"), find_dataset("ARC-C"), find_dataset("GPQADiamond"), find_dataset("nothing")
    ('math500', 'arc', 'gpqa-diamond', 'nothing')
    """
    small = name.lower()
    known = ALIASES.get(small, small)
    return known if known in SOURCES else name


def load_problems(
    dataset: str, split: str, *, data_files: str | None = None, limit: int | None = None, start: int = 0
) -> list[Problem]:
    """The problems ``start`` to ``start + limit`` of a benchmark's split, in its order; see ``read_problems``.

    Example:
        >>> [p.reference for p in load_problems("quickstart", "test", limit=3)]
        ['7', '8', '39']
    """
    return list(read_problems(dataset, split, data_files=data_files, limit=limit, start=start))


def read_problems(
    dataset: str, split: str, *, data_files: str | None = None, limit: int | None = None, start: int = 0
) -> Iterator[Problem]:
    """The problems ``start`` to ``start + limit`` of a benchmark's split, in its order, one at a time.

    Rows come from the Hub, or from ``data_files``: one .jsonl, .json (a list), .parquet or .csv file (with a header)
    with the columns of the Hub's dataset (or of the authors' file, see each ``to_problem``). Then ``split`` is the
    label that the problems get; rows with a ``split`` of their own are chosen by it. A question that was there
    before is left out, and so is a row that asks no single question; how many is said on standard error.

    Raises:
        UserError: unknown dataset or split, no such file, a malformed row (file and line are named), nothing
            left to load, or the Hub cannot be reached.
    """
    return (problem for problem, _ in _read_rows(dataset, split, data_files, limit, start))


def read_part(
    dataset: str,
    split: str,
    *,
    data_files: str | None = None,
    start: int = 0,
    end: int | None = None,
    limit: int | None = None,
    shard: str | None = None,
    sources: Sequence[str] = (),
) -> Iterator[Problem]:
    """The problems ``start`` to ``end`` (or ``start + limit``), and of them those of a shard, one at a time.

    Args:
        end: the problem behind the last one; None and -1 are the benchmark's end.
        sources: only problems of these categories (``Problem.category``, in any case) are there to be counted; none
            or ``all`` keeps every one.

    >>> [p.reference for p in read_part("quickstart", "test", end=3, shard="1/2")]
    ['7', '39']

    Raises:
        UserError: as ``read_problems``, a part or shard without a problem, both ``end`` and ``limit``, or a source
            that no problem has.
    """
    end = None if end == -1 else end
    if end is not None and limit is not None:
        raise UserError(f"--end {end} and --limit {limit} both say where to stop; give one")
    if end is not None and end <= start:
        raise UserError(f"--start {start} --end {end} leaves no problem; --end is the one behind the last")
    rank, count = _parse_shard(shard) if shard else (1, 1)
    limit = limit if end is None else end - start
    problems = (problem for problem, _ in _read_rows(dataset, split, data_files, limit, start, sources))
    return _take_shard(problems, rank, count)


def _parse_shard(shard: str) -> tuple[int, int]:
    """Rank, from 1, and number of shards.

    >>> _parse_shard("2/4")
    (2, 4)
    """
    rank, _, count = shard.partition("/")
    if not (rank.isdecimal() and count.isdecimal() and 1 <= int(rank) <= int(count)):
        raise UserError(f"--shard {shard}: give i/n with i from 1 to n, such as 1/4 to 4/4")
    return int(rank), int(count)


def _take_shard(problems: Iterator[Problem], rank: int, count: int) -> Iterator[Problem]:
    found = False
    for problem in islice(problems, rank - 1, None, count):
        found = True
        yield problem
    if not found:
        raise UserError(f"--shard {rank}/{count} leaves no problem: there are fewer than {rank}")


def read_solutions(
    dataset: str, split: str, *, data_files: str | None = None, limit: int | None = None, start: int = 0
) -> Iterator[tuple[Problem, str]]:
    """The problems of ``read_problems`` that have one with the benchmark's own worked solution, a line a step.

    How many have none is printed.

    Raises:
        UserError: as ``read_problems``, or a benchmark or file that has none.
    """
    dataset = find_dataset(dataset)
    to_solution = SOURCES[dataset].to_solution if dataset in SOURCES else None
    if dataset in SOURCES and to_solution is None:
        known = ", ".join(sorted(name for name, source in SOURCES.items() if source.to_solution))
        raise UserError(f"{dataset} has no worked solutions in steps; known are those of: {known}")
    found = without = 0
    for problem, row in _read_rows(dataset, split, data_files, limit, start):
        solution = to_solution(row) if to_solution else None
        if solution is None:
            without += 1
        else:
            found += 1
            yield problem, solution
    if without:
        print(f"{dataset}: problems left out because they have no worked solution in steps: {without}", file=sys.stderr)
    if not found:
        raise UserError(f"{dataset}: none of {without} problems has a worked solution in steps")


def _read_rows(
    dataset: str, split: str, data_files: str | None, limit: int | None, start: int, sources: Sequence[str] = ()
) -> Iterator[tuple[Problem, Row]]:
    """Problems as ``read_part`` says, each with the row that it was made of."""
    dataset = find_dataset(dataset)
    if dataset not in SOURCES:
        raise unknown_name("dataset", dataset.lower(), {*SOURCES, *ALIASES})
    source = SOURCES[dataset]
    known_splits = {*source.splits, "train", "validation", "test"} if data_files else source.splits
    if split not in known_splits:
        raise unknown_name(f"split of {dataset}", split, known_splits)
    if start < 0:
        raise UserError(f"start={start} is negative; the first problem is 0")
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} leaves no problem; give at least 1")

    if data_files:
        place, rows = data_files, read_file(Path(data_files), "--data-files")
    elif source.hub:
        place, rows = f"{source.hub} ({split})", _read_hub(source, split)
    else:
        place, rows = f"{dataset} ({split})", read_file(DATA, "--data-files")

    wanted = {name.lower() for name in sources}
    if "all" in wanted:
        wanted = set()
    categories: set[str] = set()
    seen: set[str] = set()
    repeated = left_out = 0
    for where, row in rows:
        if row.get("split", split) != split:
            continue
        try:
            problem = source.to_problem(row, split)
        except ValueError as error:
            raise UserError(f"{where}: not a row of {dataset}: {error}") from None
        if problem is None:
            left_out += 1
            continue
        if wanted:
            categories.add(problem.category or "")
            if (problem.category or "").lower() not in wanted:
                continue
        if problem.id in seen:
            repeated += 1
        else:
            seen.add(problem.id)
            if len(seen) > start:
                yield problem, row
            if limit is not None and len(seen) == start + limit:
                break
    else:
        _check_sources(sources if wanted else (), categories, dataset)
    if repeated:
        print(f"{place}: rows left out because they repeat an earlier question: {repeated}", file=sys.stderr)
    if left_out:
        print(f"{place}: rows left out because {source.left_out}: {left_out}", file=sys.stderr)
    if len(seen) <= start:
        of_source = f" and source {', '.join(sources)}" if wanted else ""
        raise UserError(f"{place} has {len(seen)} problems of split {split}{of_source}, none from start={start} on")


def _check_sources(sources: Sequence[str], categories: set[str], dataset: str) -> None:
    """Raise UserError for a source that none of the problems has, with those that there are."""
    known = categories - {""}
    for name in sources:
        if not known:
            raise UserError(f"--source {name}: the problems of {dataset} name no source or difficulty; leave it out")
        if name.lower() not in {category.lower() for category in known}:
            raise unknown_name(f"source of {dataset}", name, known)


def read_file(path: Path, option: str) -> Iterator[tuple[str, Row]]:
    """Each row of a local file (.jsonl, .json, .parquet or .csv) with the place that an error names.

    ``option`` is what named the file. Raises UserError when it is not there, of another kind or malformed.
    """
    if not path.is_file():
        raise UserError(f"{option} {path}: no such file")
    if path.suffix not in _READERS:
        raise UserError(f"{option} {path}: name a file that ends in {', '.join(_READERS)}")
    for where, row in _READERS[path.suffix](path):
        if not isinstance(row, dict):
            raise UserError(f"{where}: not a JSON object")
        yield where, row


def _read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", _parse(line, f"{path}:{number}")


def _read_json(path: Path) -> Iterator[tuple[str, Any]]:
    rows = _parse(path.read_bytes(), str(path))
    if not isinstance(rows, list):
        raise UserError(f"{path}: not a list of rows")
    for number, row in enumerate(rows, 1):
        yield f"{path}: row {number}", row


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: {error}") from None
    rows = (row for batch in batches for row in batch.to_pylist())
    for number, row in enumerate(rows, 1):
        yield f"{path}: row {number}", row


def _read_csv(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file, strict=True), 1):
                if None in row or None in row.values():
                    raise UserError(f"{path}: row {number}: not as many cells as the header has columns")
                yield f"{path}: row {number}", row
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV file: {error}") from None


_READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet, ".csv": _read_csv}


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: not JSON: {error}") from None


def _read_hub(source: Source, split: str) -> Iterator[tuple[str, Row]]:
    assert source.hub is not None
    place = f"{source.hub} ({split})"
    try:
        paths = [download_hub_file(source.hub, name, source.revision) for name in source.files.get(split, ())]
        table = None if paths else load_hub_dataset(source.hub, source.config, split=split, revision=source.revision)
    except UserError as error:
        raise UserError(f"{error}; pass --data-files FILE with a copy of your own") from None
    rows = (row for path in paths for _, row in read_file(path, source.hub)) if table is None else table
    for number, row in enumerate(rows, 1):
        yield f"{place}: row {number}", row
