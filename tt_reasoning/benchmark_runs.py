"""Several benchmarks of one model in one go: sample, grade, measure, and one JSON that says what a number is worth.

Each benchmark is a folder of answers like any other, so it goes on where it was killed, and every later tool reads it.
One that fails (its data cannot be had, requests fail, nothing can be judged) is reported; the others go on. A model is
loaded once for all.

The reference writes its log where its users expect this JSON, leaves the status at 0 when a benchmark fails, and can
report 0 from a file of an earlier run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tt_reasoning import store
from tt_reasoning.answer_sets import VERDICTS, open_answers, read_groups
from tt_reasoning.checking import check_settings, grade_missing, write_report
from tt_reasoning.engines.base import Engine
from tt_reasoning.errors import UserError, unknown_name
from tt_reasoning.evaluation import MAJORITY, PASS, Candidates, evaluate
from tt_reasoning.generation import ANSWERS, PROBLEMS, Counts, check_complete, draw_answers, keep_problems, plan_draws
from tt_reasoning.grading import Grader
from tt_reasoning.problems import ALIASES, SOURCES, find_dataset, read_part
from tt_reasoning.prompts import default_prompt, load_prompt
from tt_reasoning.types import Answer, Problem, Sampling, Verdict

RESULTS = "benchmarks.json"
GRADING = {"timeout_s": 5.0, "fallback": "none", "percent_as_fraction": False}


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark as it is asked for: the name that its number gets, and where its problems are."""

    name: str
    dataset: str
    split: str
    data_files: str | None = None


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is the same for all benchmarks of a run. ``prompt`` None: as suits the kind of the problems."""

    model: str
    revision: str | None = None
    prompt: str | None = None
    system_prompt: str | None = None
    num_samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 32_768
    seed: int = 0
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a model reached on a benchmark: shares in [0, 1], 95 % intervals over problems.

    ``pass_at`` and ``majority_at`` have by k: value, low, high; ``left_out`` counts problems that could not be judged.
    """

    accuracy: float
    interval: tuple[float, float]
    problems: int
    num_samples: int
    pass_at: dict[str, tuple[float, float, float]]
    majority_at: dict[str, tuple[float, float, float]]
    left_out: dict[str, int]
    reasons: dict[str, int]
    cut: int
    tokens: int
    settings: dict[str, Any]


def find_benchmarks(names: Sequence[str], data_files: Sequence[str]) -> list[Benchmark]:
    """Benchmarks by name, ours or that of the interface; each in its test split, where it has one.

    Args:
        data_files: ``NAME=FILE`` for those that are read from a local file.

    Raises:
        UserError: an unknown name, one that is named twice, or a file for a benchmark that is not asked for.

    >>> find_benchmarks(["MATH500", "GPQADiamond"], ["MATH500=math.jsonl"])[1].split
    'train'
    """
    datasets: dict[str, str] = {}
    for name in names:
        dataset = find_dataset(name)
        if dataset not in SOURCES:
            raise unknown_name("benchmark", name.lower(), {*SOURCES, *ALIASES})
        if dataset in datasets:
            raise UserError(f"--evals names {name} twice")
        datasets[dataset] = name
    files = {find_dataset(name): file for name, file in map(_split_pair, data_files)}
    for dataset in files.keys() - datasets.keys():
        raise UserError(f"--data-files {dataset}={files[dataset]}: --evals does not name {dataset}")
    return [
        Benchmark(name=name, dataset=dataset, split=_measured_split(dataset), data_files=files.get(dataset))
        for dataset, name in datasets.items()
    ]


def _measured_split(dataset: str) -> str:
    splits = SOURCES[dataset].splits
    return "test" if "test" in splits else splits[0]


def _split_pair(pair: str) -> tuple[str, str]:
    name, _, file = pair.partition("=")
    if not name or not file:
        raise UserError(f"--data-files {pair}: give NAME=FILE, such as MATH500=math500.jsonl")
    return name, file


def run_benchmark(
    benchmark: Benchmark,
    setup: Setup,
    folder: Path,
    start_engine: Callable[[], Engine],
    grader: Grader,
    chunk_size: int,
    engine_identity: Mapping[str, object],
    on_progress: Callable[[int, Counts], None] = lambda total, counts: None,
) -> Measurement:
    """Sample what is missing, grade what is not graded, and measure.

    Args:
        folder: of the benchmark's answers; the same setup goes on, another is refused.
        on_progress: told how many answers there will be, and how far it is.

    Raises:
        UserError: its problems cannot be had, requests failed, or none of its problems can be judged.
    """
    problems = read_part(benchmark.dataset, benchmark.split, data_files=benchmark.data_files, limit=setup.limit)
    first = next(problems)
    prompt = load_prompt(setup.prompt or default_prompt(first.kind), setup.system_prompt)
    identity = {
        **{name: value for name, value in asdict(setup).items() if name not in ("system_prompt", "revision")},
        "dataset": benchmark.dataset, "split": benchmark.split, "data_files": benchmark.data_files,
        "prompt": prompt.name, "template": prompt.template(), "chunk_size": chunk_size, **engine_identity,
    }  # fmt: skip
    sampling = Sampling(
        model=setup.model, revision=setup.revision, prompt=prompt.name, temperature=setup.temperature,
        top_p=setup.top_p, top_k=setup.top_k, max_new_tokens=setup.max_new_tokens, seed=setup.seed,
    )  # fmt: skip
    with store.open_run(folder, "run_benchmarks", identity):
        kept = keep_problems(folder, chain([first], problems))
        draws = plan_draws(folder, [(sampling, setup.num_samples)])
        total = len(kept) * setup.num_samples
        counts = draw_answers(
            kept, draws, start_engine, prompt, folder, chunk_size, lambda counts: on_progress(total, counts)
        )
        check_complete(counts)
        _grade(folder, grader)
        return _measure(folder, identity)


def _grade(folder: Path, grader: Grader) -> None:
    """Verdicts for all answers of the folder, and their report."""
    check_settings(folder, GRADING)
    problems = {problem.id: problem for problem in store.read_records(folder / PROBLEMS, Problem)}
    graded = {verdict.answer_id for verdict in store.read_records(folder / VERDICTS, Verdict)}
    grade_missing(folder, GRADING, problems, graded, lambda chunks: map(grader.grade_many, chunks))
    problem_of = {answer.id: answer.problem_id for answer in store.read_records(folder / ANSWERS, Answer)}
    write_report(folder, GRADING, problem_of)


def _measure(folder: Path, settings: dict[str, Any]) -> Measurement:
    verdicts = {verdict.answer_id: verdict for verdict in store.read_records(folder / VERDICTS, Verdict)}
    candidates, cut, tokens = [], 0, 0
    for problem, group in read_groups(open_answers(folder)):
        candidates.append(
            Candidates(
                problem_id=problem.id, category=problem.category,
                verdicts=tuple(verdicts[answer.id] for answer in group),
                num_tokens=tuple(answer.num_tokens for answer in group),
            )
        )  # fmt: skip
        cut += sum(answer.finish_reason == "length" for answer in group)
        tokens += sum(answer.num_tokens for answer in group)
    num_samples = min(len(c.verdicts) for c in candidates)
    ks = sorted({*(2**power for power in range(num_samples.bit_length())), num_samples})
    found = evaluate(candidates, ks)
    of_method = {
        method: {str(r.k): (r.value, r.low, r.high) for r in found.results if r.method == method}
        for method in (PASS, MAJORITY)
    }
    value, low, high = of_method[PASS]["1"]
    return Measurement(
        accuracy=value, interval=(low, high), problems=found.counts["judged"], num_samples=num_samples,
        pass_at=of_method[PASS], majority_at=of_method[MAJORITY] if num_samples > 1 else {},
        left_out=found.counts["left_out"], reasons=found.counts["answer_reasons"], cut=cut, tokens=tokens,
        settings=settings,
    )  # fmt: skip


def describe_results(measured: Mapping[str, Measurement], failed: Mapping[str, str]) -> dict[str, Any]:
    """What ``benchmarks.json`` holds: every accuracy by name, then ``details`` and ``failed``, and what made them.

    >>> describe_results({}, {"AIME": "no such file: aime.jsonl"})["failed"]
    {'AIME': 'no such file: aime.jsonl'}
    """
    return {
        **{name: round(found.accuracy, 4) for name, found in measured.items()},
        "details": {name: asdict(found) for name, found in measured.items()},
        "failed": dict(failed),
        "versions": store.versions(),
    }
