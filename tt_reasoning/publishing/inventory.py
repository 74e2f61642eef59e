"""What a folder holds that can be published: its kind, its tables, and all that its card can say about it.

Folders of this project say much themselves: the manifest what made them, the records which benchmarks they are from
and how answers were sampled, ``stats.json``, ``results.json``, ``judge.json`` of a judge and ``value.json`` of a value
model the rest. Answer sets without a Parquet file get one here, which ``datasets.load_dataset`` reads.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from tt_reasoning import store
from tt_reasoning.answer_sets import VERDICTS
from tt_reasoning.answer_sets.tables import write_parquet
from tt_reasoning.errors import UserError
from tt_reasoning.evaluation import RESULTS, Report, percent, read_report
from tt_reasoning.generation import ANSWERS, PROBLEMS, USAGE
from tt_reasoning.guidance import CARD as VALUE
from tt_reasoning.guidance import read_value_card
from tt_reasoning.guidance.sweep import SWEEP, name_policies, read_sweep
from tt_reasoning.judges import CARD as JUDGE
from tt_reasoning.judges import JudgeCard, read_card
from tt_reasoning.judges.held_out import EVALUATIONS, best_evaluation
from tt_reasoning.prm800k import SAMPLING as PRM800K_SAMPLING
from tt_reasoning.publishing.cards import HeldOut, Subject, Table
from tt_reasoning.publishing.privacy import scrub_json, scrub_paths
from tt_reasoning.scores import SCORES, SKIPPED, Skipped, read_scores
from tt_reasoning.sft_data import JUSTIFICATIONS, REJECTED, SFT, RejectedRow, SFTRow
from tt_reasoning.shepherd import PREFIXES, ROLLOUT_VERDICTS, ROLLOUTS
from tt_reasoning.solutions import REFERENCE, RejectedSolution, SolutionRow
from tt_reasoning.steps import STEPS
from tt_reasoning.types import Answer, AnswerSet, Problem, Rating, Sampling, Score, Step, Verdict

Kind = Literal[
    "answer sets", "answers", "results", "steps", "scores", "SFT data", "model", "adapter", "judge", "value model",
    "dataset",
]  # fmt: skip
Content = Path | bytes  # of a file to publish: a file here, or what is to stand in its place

SETS, STATS = "sets.jsonl", "stats.json"
_OF_TOOL: dict[str, tuple[Kind, tuple[str, ...]]] = {  # what a tool's folder is, and what a finished one holds
    "concat_answers": ("answer sets", (STATS,)),
    "generate_answers": ("answers", (PROBLEMS, ANSWERS)),
    "evaluate": ("results", (RESULTS,)),
    "build_step_labels prm800k": ("steps", (PROBLEMS, ANSWERS, STEPS, STATS)),
    "build_step_labels shepherd": ("steps", (PROBLEMS, ANSWERS, STEPS, STATS)),
    "rank_answers": ("scores", (SCORES,)),
    "collect_solutions": ("SFT data", (SFT, REJECTED, STATS)),
    "create_sft_data": ("SFT data", (SFT, REJECTED, STATS)),
}
_DATA = (".parquet", ".jsonl", ".csv", ".json", ".arrow", ".txt")
_NOT_DATA = (store.MANIFEST, STATS, RESULTS, USAGE, "dataset_info.json", "state.json", "source.json")
_SPLITS = ("train", "validation", "valid", "dev", "test")
_MOST_NAMES = 6  # of files in a sentence
_SSA = "(SSA, [arXiv 2506.09014](https://arxiv.org/abs/2506.09014))"
_VALUE_HEAD = ("value_head/model.safetensors", "value_head/value_head.json")


def recognise(folder: Path) -> Kind:
    """What a folder holds. Raises UserError when that is nothing to publish, or unfinished."""
    if not folder.is_dir():
        raise UserError(f"--folder {folder}: no such folder" if not folder.exists() else f"--folder {folder}: a file")
    manifest = store.read_manifest(folder) if (folder / store.MANIFEST).exists() else {}
    tool = manifest.get("tool")
    if tool in _OF_TOOL:
        kind, wanted = _OF_TOOL[tool]
        if missing := [name for name in wanted if not (folder / name).exists()]:
            raise UserError(f"{folder} is not finished: no {missing[0]}; run {tool} again to finish it")
        return kind
    if tool == "evaluate guidance":
        first = read_sweep(folder / SWEEP).policies[-1].folder if (folder / SWEEP).exists() else "eta_N"
        raise UserError(f"{folder} holds evaluations of several policies; name one: --folder {folder / first}")
    config, adapter = folder / "config.json", folder / "adapter_config.json"
    weights = any(folder.glob("*.safetensors"))
    if weights and (config.exists() or adapter.exists()):
        named: dict[str, Kind] = {JUDGE: "judge", VALUE: "value model"}
        of_card = (kind for name, kind in named.items() if (folder / name).exists())
        return next(of_card, "model") if config.exists() else "adapter"
    if config.exists() or adapter.exists():
        raise UserError(f"{folder} has a model's config but no *.safetensors: weights as pickles are not published")
    steps = sorted(folder.glob("step_*"), key=lambda path: (len(path.name), path.name))
    if steps:
        raise UserError(f"{folder} holds several checkpoints; name one: --folder {steps[-1]}")
    if any(path.suffix in _DATA and path.name not in _NOT_DATA for path in folder.rglob("[!.]*") if path.is_file()):
        return "dataset"
    raise UserError(
        f"{folder} holds nothing to publish: name a folder of generate_answers, concat_answers, build_step_labels, "
        "rank_answers, collect_solutions, create_sft_data or evaluate, a checkpoint (step_N), or a folder with "
        "safetensors or data files"
    )


def name_kind(kind: Kind) -> str:
    """What a folder of that kind holds, in a sentence.

    >>> name_kind("model"), name_kind("answer sets")
    ('a model', 'answer sets')
    """
    return {
        "model": "a model", "adapter": "an adapter", "judge": "a judge", "value model": "a value model",
        "dataset": "data",
    }.get(kind, kind)  # fmt: skip


def check_weights(folder: Path) -> None:
    """Raise UserError for a model or adapter whose files are damaged or not all there."""
    from safetensors import SafetensorError, safe_open

    wanted = set(folder.rglob("*.safetensors"))
    for config in [*folder.glob("*config.json"), *folder.glob("*.safetensors.index.json")]:
        parts = read_json(config).get("weight_map", {})
        wanted |= {folder / name for name in parts.values()}
    for path in sorted(wanted):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: missing or damaged: {error}; save or fetch the model again") from None


def read_text(path: Path) -> str:
    """A file's text. Raises UserError when it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: no text in UTF-8") from None


@dataclass
class _Tally:
    """What is counted while records pass by."""

    num_rows: int = 0
    sources: Counter[tuple[str, str]] = field(default_factory=Counter)  # problems, by benchmark and split
    samplings: Counter[Sampling] = field(default_factory=Counter)  # answers
    sizes: Counter[int] = field(default_factory=Counter)  # sets, by their number of answers
    columns: tuple[str, ...] = ()  # of the last Parquet file


def describe(
    folder: Path,
    kind: Kind,
    contents: dict[str, Content],
    work: Path,
    *,
    repo: str,
    base_model: str | None = None,
    results: Sequence[Path] = (),
) -> Subject:
    """All that the card will say but the licence. Adds the Parquet files of answer sets to ``contents``.

    Args:
        contents: what is published, by path.
        work: an empty folder for what has to be written.
        results: folders of ``evaluate`` whose numbers the card shows.

    Raises:
        UserError: a malformed or cut-off file, or one that does not fit the others.
    """
    known: dict[str, Any] = {"repo": repo, "kind": kind, "base_model": base_model}
    reports: dict[str, Report] = {}
    if (folder / store.MANIFEST).exists():
        known["manifest"] = json.loads(scrub_json(json.dumps(store.read_manifest(folder))))
    if (folder / STATS).exists():
        known["stats"] = json.loads(scrub_json(json.dumps(read_json(folder / STATS))))
    if kind == "answer sets":
        known |= _describe_sets(folder, contents, work)
    elif kind == "answers":
        known |= _describe_answers(folder, contents)
    elif kind == "results":
        report = read_report(folder / RESULTS)
        reports[folder.resolve().name] = report
        known |= _describe_results(contents, report)
    elif kind == "steps":
        known |= _describe_steps(folder, contents, known["manifest"])
    elif kind == "scores":
        known |= _describe_scores(folder, contents, known["manifest"])
    elif kind == "SFT data":
        known |= _describe_rows_to_learn(folder, contents, known["manifest"])
    elif kind == "dataset":
        known |= _describe_dataset(contents, known.get("manifest"))
    elif kind == "judge":
        known |= _describe_judge(folder, base_model)
    elif kind == "value model":
        known |= _describe_value_model(folder, base_model)
    else:
        known |= _describe_model(folder, kind, base_model)
    return Subject(**known, reports=reports | _read_reports(results))


def read_json(path: Path) -> Any:
    """A file's JSON. Raises UserError when it is none."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None


def _read_reports(folders: Sequence[Path]) -> dict[str, Report]:
    reports = {}
    for folder in folders:
        found = sorted(folder.rglob(RESULTS)) if folder.is_dir() else []
        if not found:
            raise UserError(f"--results {folder} holds no {RESULTS}; tools/evaluate.py --out makes one")
        reports |= {path.parent.resolve().name: read_report(path) for path in found}
    return reports


def _describe_sets(folder: Path, contents: dict[str, Content], work: Path) -> dict[str, Any]:
    tally = _Tally()
    sets = _tallied(_read_whole(folder / SETS, AnswerSet), tally)
    parquet = {path: source for path, source in contents.items() if path.endswith(".parquet")}
    if parquet:
        for _ in sets:
            pass
    else:
        written = write_parquet(sets, work)
        parquet = {f"{written.name}/{path.name}": path for path in sorted(written.glob("*.parquet"))}
        contents |= parquet
    rows = _Tally()
    files = _read_parquet(parquet, rows)
    if SETS in contents and rows.num_rows != tally.num_rows:
        names = ", ".join(parquet)
        raise UserError(
            f"{folder}: {names} has {rows.num_rows} rows, {SETS} {tally.num_rows}; run concat_answers again"
        )
    tally = tally if SETS in contents else rows
    if not tally.num_rows:
        raise UserError(f"{folder} holds no answer sets")
    sizes = sorted(tally.sizes)
    k = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}" if sizes else "several"
    records = f"`{SETS}`: the same sets with every answer as a record: sampling, tokens, why it ended"
    return {
        "what": (
            f"{tally.num_rows:,} answer sets, to train and evaluate an aggregator. A set is a question with {k} "
            f"answers that {_models(tally)} sampled to it, in one text; the aggregator reads it and writes one final "
            f"answer {_SSA}."
        ),
        "tables": (Table(name="default", files=files, num_rows=tally.num_rows, columns=rows.columns),),
        "sources": tally.sources,
        "samplings": tuple(tally.samplings),
        "facts": (records,) if SETS in contents else (),
    }


def _tallied(sets: Iterator[AnswerSet], tally: _Tally) -> Iterator[AnswerSet]:
    for answer_set in tqdm(sets, unit="set", desc="read", disable=None):
        tally.num_rows += 1
        tally.sources[answer_set.problem.source, answer_set.problem.split] += 1
        tally.sizes[len(answer_set.answers)] += 1
        tally.samplings.update(answer.sampling for answer in answer_set.answers)
        yield answer_set


def _models(tally: _Tally) -> str:
    return " and ".join(sorted({f"`{scrub_paths(sampling.model)}`" for sampling in tally.samplings})) or "a model"


def split_name(split: str) -> str:
    """A split's name as the Hub takes it: letters, digits, underscores and dots.

    >>> split_name("test"), split_name("dev (small)")
    ('test', 'dev_small_')
    """
    return re.sub(r"[^\w.]+", "_", split) or "train"


def _read_parquet(contents: Mapping[str, Content], tally: _Tally) -> dict[str, str]:
    """Parquet files by split, as their rows or else their names say; rows and, where they say it, sources are counted.

    Raises:
        UserError: a damaged file, or two of one split.
    """
    import pyarrow
    import pyarrow.parquet

    files: dict[str, str] = {}
    for path, source in contents.items():
        try:
            table = pyarrow.parquet.ParquetFile(source)
            tally.num_rows += table.metadata.num_rows
            tally.columns = tuple(table.schema_arrow.names)
            columns = [name for name in ("source", "split", "k") if name in tally.columns]
            splits = set()
            for row in (row for batch in table.iter_batches(columns=columns) for row in batch.to_pylist() if columns):
                splits.add(row.get("split"))
                if {"source", "split"} <= row.keys():
                    tally.sources[row["source"], row["split"]] += 1
                if "k" in row:
                    tally.sizes[row["k"]] += 1
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise UserError(f"{path}: not a whole Parquet file: {error}") from None
        named = re.match(rf"({'|'.join(_SPLITS)})\b", Path(path).name)
        split = splits.pop() if len(splits) == 1 and None not in splits else None
        split = split_name(str(split or (named[1] if named else "train")))
        if split in files:
            raise UserError(f"{path} and {files[split]} are both of split {split}; join them, or name their splits")
        files[split] = path
    return files


def _describe_answers(folder: Path, contents: dict[str, Content]) -> dict[str, Any]:
    tally = _Tally()
    tally.sources.update((problem.source, problem.split) for problem in _read_whole(folder / PROBLEMS, Problem))
    cut = 0
    for answer in tqdm(_read_whole(folder / ANSWERS, Answer), unit="answer", desc="read", disable=None):
        tally.samplings[answer.sampling] += 1
        cut += answer.finish_reason == "length"
    num_problems, num_answers = tally.sources.total(), tally.samplings.total()
    if not num_answers:
        raise UserError(f"{folder / ANSWERS} holds no answers yet; run generate_answers again")
    reasons = Counter(verdict.reason for verdict in _read_whole(folder / VERDICTS, Verdict))
    facts = [f"{percent(cut / num_answers)} % of the answers were cut at the token limit"]
    tables = [("answers", ANSWERS, num_answers, Answer), ("problems", PROBLEMS, num_problems, Problem)]
    if reasons:
        tables.append(("verdicts", VERDICTS, reasons.total(), Verdict))
        judged = reasons["match"] + reasons["mismatch"] + reasons["no_answer"]
        facts.append("verdicts: " + ", ".join(f"{name} {count:,}" for name, count in reasons.most_common()))
        facts.append(f"{percent(reasons['match'] / max(1, judged))} % of the answers that could be judged are correct")
    if reasons.total() < num_answers:
        facts.append(f"{num_answers - reasons.total():,} answers have no verdict")
    return {
        "what": (
            f"{num_answers:,} answers that {_models(tally)} sampled to {num_problems:,} problems"
            + (", each with the verdict of a grader" if reasons else "")
            + ". Answers, problems and verdicts are records that join on their ids."
        ),
        "tables": _tables(tables, _split_of(tally), contents),
        "sources": tally.sources,
        "samplings": tuple(tally.samplings),
        "facts": tuple(facts),
    }


def _split_of(tally: _Tally) -> str:
    """The split of all problems; ``train``, as the Hub has it, where they are of several."""
    return split_name(next(iter(tally.sources))[1]) if len(tally.sources) == 1 else "train"


def _tables(
    rows: Sequence[tuple[str, str, int, type | None]], split: str, contents: Mapping[str, Content]
) -> tuple[Table, ...]:
    """Tables of records (name, path, number of rows, record), of those that are published and not empty."""
    return tuple(
        Table(name=name, files={split: path}, num_rows=count, record=record)
        for name, path, count, record in rows
        if path in contents and count
    )


def _read_whole(path: Path, record: type) -> Iterator[Any]:
    """The records of a file that no run is in the middle of. Raises UserError for a last line cut off by a kill."""
    _check_end(path)
    yield from store.read_records(path, record)


def _count_rows(path: Path) -> int:
    """The lines of such a file; 0 where there is none."""
    _check_end(path)
    return sum(1 for _ in store.read_rows(path))


def _check_end(path: Path) -> None:
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                raise UserError(f"{path}: its last line is cut off; run the tool that writes it again")


def _describe_results(contents: dict[str, Content], report: Report) -> dict[str, Any]:
    readers = [f"the aggregator `{scrub_paths(report.aggregator)}`"] if report.aggregator else []
    readers += [f"`{scrub_paths(report.usc_model)}` by universal self-consistency"] if report.usc_model else []
    tables = []
    for path, source in contents.items():
        place, _, name = path.rpartition("/")
        if place and name in (ANSWERS, VERDICTS):  # of one reader at one k
            count = sum(1 for _ in store.read_rows(source))  # type: ignore[arg-type]
            table, record = (place, Answer) if name == ANSWERS else (f"{place}_verdicts", Verdict)
            files = {split_name(report.split): path}
            tables.append(Table(name=split_name(table), files=files, num_rows=count, record=record))
    k = " and ".join(map(str, report.num_answers))
    steered = ""
    if report.guidance:
        steered = f", steered by `{scrub_paths(report.guidance.value_model)}` ({name_policies([report.guidance])[0]}),"
    return {
        "what": (
            f"An evaluation of {k} answers a problem, sampled by `{scrub_paths(report.model)}`{steered or ','} on "
            f"{report.num_problems:,} problems of {report.dataset} ({report.split}): votes"
            + "".join(f", and the answers of {reader}" for reader in readers)
            + "."
        ),
        "tables": tuple(tables),
        "sources": {(source, report.split): 0 for source in report.dataset.split("+")},
        "facts": (f"`{RESULTS}`: every number below, with counts, tokens and versions",),
    }


def _describe_steps(folder: Path, contents: dict[str, Content], manifest: dict[str, Any]) -> dict[str, Any]:
    """Labelled steps with all that they refer to: by the ratings of PRM800K, or by rollouts."""
    tally = _Tally()
    tally.sources.update((problem.source, problem.split) for problem in _read_whole(folder / PROBLEMS, Problem))
    answer_ids = set()
    for answer in tqdm(_read_whole(folder / ANSWERS, Answer), unit="answer", desc="read", disable=None):
        tally.samplings[answer.sampling] += 1
        answer_ids.add(answer.id)
    ratings: Counter[Rating | None] = Counter()
    num_scores, labelled_ids = 0, set()
    for step in tqdm(_read_whole(folder / STEPS, Step), unit="step", desc="read", disable=None):
        ratings[step.rating] += 1
        num_scores += step.score is not None
        labelled_ids.add(step.answer_id)
    if not ratings or labelled_ids != answer_ids:
        raise UserError(
            f"{folder} is not finished: {STEPS} has steps of {len(labelled_ids & answer_ids)} of {len(answer_ids)} "
            f"answers and of {len(labelled_ids - answer_ids)} others; run build_step_labels again"
        )
    others = (
        ("verdicts", VERDICTS, Verdict), ("rollouts", ROLLOUTS, Answer),
        ("rollout_verdicts", ROLLOUT_VERDICTS, Verdict),
    )  # fmt: skip
    tables = [
        ("steps", STEPS, ratings.total(), Step), ("answers", ANSWERS, len(answer_ids), Answer),
        ("problems", PROBLEMS, tally.sources.total(), Problem),
        *((name, path, _count_rows(folder / path), record) for name, path, record in others),
    ]  # fmt: skip
    num_problems, arguments = tally.sources.total(), manifest["arguments"]
    if manifest["tool"] == "build_step_labels prm800k":
        what = (
            f"{ratings.total():,} steps of {len(answer_ids):,} solutions, or beginnings of solutions, to "
            f"{num_problems:,} problems, rated by people: PRM800K "
            "([arXiv 2305.20050](https://arxiv.org/abs/2305.20050)) as records. A rating is 1 (right), 0 (neutral) or "
            "-1 (wrong)."
        )
    else:
        what = (
            f"{ratings.total():,} steps of {len(answer_ids):,} answers that {_models(tally)} sampled to "
            f"{num_problems:,} problems, labelled by rollouts (Math-Shepherd, "
            "[arXiv 2312.08935](https://arxiv.org/abs/2312.08935)): "
            f"`{arguments.get('model')}` went on from each step up to {arguments.get('rollouts')} times. Rating 1 says "
            "that any of these reached the reference answer, -1 that none did; the last step has the verdict of its "
            "answer."
        )
    facts = _describe_ratings(ratings, num_scores)
    facts.append("`start` and `end` of a step are character offsets into the `text` of its answer (`answer_id`)")
    if PREFIXES in contents:  # its lists hold texts and numbers, which not every version of datasets reads
        facts.append(f"`{PREFIXES}`: for every beginning that was gone on from, its steps and what came of it")
    return {
        "what": what,
        "tables": _tables(tables, _split_of(tally), contents),
        "sources": tally.sources,
        "samplings": tuple(sampling for sampling in tally.samplings if sampling != PRM800K_SAMPLING),
        "facts": tuple(facts),
    }


def _describe_ratings(ratings: Counter[Rating | None], num_scores: int) -> list[str]:
    """How labels fall.

    >>> _describe_ratings(Counter({1: 3, -1: 1, None: 2}), 0)
    ['75.0 % of 4 rated steps are right (1: 3, -1: 1)', '2 steps have no rating']
    """
    rated = ratings.total() - ratings[None]
    each = ", ".join(f"{rating}: {ratings[rating]:,}" for rating in (1, 0, -1) if ratings[rating])
    facts = [f"{percent(ratings[1] / rated)} % of {rated:,} rated steps are right ({each})"] if rated else []
    facts += [f"{ratings[None]:,} steps have no rating"] if ratings[None] else []
    facts += [f"{num_scores:,} steps have a `score`: the share of rollouts that are right"] if num_scores else []
    return facts


def _describe_scores(folder: Path, contents: dict[str, Content], manifest: dict[str, Any]) -> dict[str, Any]:
    """What a judge said of answers that lie elsewhere."""
    scores = read_scores(folder)
    num_steps, num_skipped = _count_rows(folder / STEPS), _count_rows(folder / SKIPPED)
    if _count_rows(folder / SCORES) != len(scores.by_answer):
        raise UserError(f"{folder} is not finished: {STEPS} and {SCORES} are of other answers; run rank_answers again")
    tables = [
        ("scores", SCORES, len(scores.by_answer), Score), ("steps", STEPS, num_steps, Step),
        ("skipped", SKIPPED, num_skipped, Skipped),
    ]  # fmt: skip
    arguments = manifest["arguments"]
    return {
        "what": (
            f"What the judge `{arguments.get('judge')}` said of {len(scores.by_answer):,} answers of "
            f"`{arguments.get('answers')}`, which are not in here: records join with them on `answer_id`."
        ),
        "tables": _tables(tables, "train", contents),
        "facts": (
            f"`{STEPS}`: the probability that a step is right, for {num_steps:,} steps (of a judge of whole answers "
            "each answer is one)",
            f"`{SCORES}`: one score an answer, the {scores.aggregate} of its steps",
            *([f"`{SKIPPED}`: {num_skipped:,} answers without a score, and why"] if num_skipped else []),
        ),
    }


def _describe_rows_to_learn(folder: Path, contents: dict[str, Content], manifest: dict[str, Any]) -> dict[str, Any]:
    """SFT rows of a generator (collect_solutions) or of an aggregator (create_sft_data)."""
    of_generator, arguments = manifest["tool"] == "collect_solutions", manifest["arguments"]
    kept_type, rejected_type = (SolutionRow, RejectedSolution) if of_generator else (SFTRow, RejectedRow)
    kept, rejected = (
        [(row.problem_id, getattr(row, "source", "")) for row in _read_whole(folder / path, record)]
        for path, record in ((SFT, kept_type), (REJECTED, rejected_type))
    )
    if not kept:
        raise UserError(f"{folder / SFT} holds nothing to learn; run {manifest['tool']} again")
    samplings = Counter(answer.sampling for answer in _read_whole(folder / JUSTIFICATIONS, Answer))
    tables = [
        ("sft", SFT, len(kept), kept_type), ("rejected", REJECTED, len(rejected), rejected_type),
        ("justifications", JUSTIFICATIONS, samplings.total(), Answer),
        ("verdicts", VERDICTS, _count_rows(folder / VERDICTS), Verdict),
    ]  # fmt: skip
    sources: Counter[tuple[str, str]] = Counter()
    if arguments.get("dataset"):
        sources[arguments["dataset"], arguments["split"]] = len({problem for problem, _ in [*kept, *rejected]})
    tally = _Tally(samplings=samplings, sources=sources)
    if of_generator:
        writers = " and ".join(
            "the benchmark" if source == REFERENCE else f"`{scrub_paths(source)}`"
            for source in sorted({source for _, source in kept})
        )
        what = f"{len(kept):,} solutions in steps, written by {writers}, for a generator to learn from"
    else:
        what = (
            f"{len(kept):,} justifications by {_models(tally)}, for an aggregator to learn from: each explains the "
            "right answer to a question with several proposed answers, and its writer was told that answer"
        )
    return {
        "what": f"{what}. A grader found each of them to reach the gold answer.",
        "tables": _tables(tables, _split_of(tally), contents),
        "sources": tally.sources,
        "samplings": tuple(samplings),
        "facts": (
            f"`{SFT}`: `question` is what is read, `model_response` what is to be written",
            f"`{REJECTED}`: {len(rejected):,} more, with the `reason` why they are not to be learned",
        ),
    }


def _describe_dataset(contents: dict[str, Content], manifest: dict[str, Any] | None) -> dict[str, Any]:
    """Data files of another form: Parquet, else JSON lines; others ``load_dataset`` finds by itself."""
    data = [path for path in contents if Path(path).suffix in _DATA and path not in _NOT_DATA]
    parquet = {path: contents[path] for path in data if path.endswith(".parquet")}
    made = f", made by `{manifest.get('tool')}` of tt-reasoning" if manifest else ""
    more = "" if len(data) <= _MOST_NAMES else f" and {len(data) - _MOST_NAMES} more files"
    tally = _Tally()
    if parquet:
        files = _read_parquet(parquet, tally)
        tables = [Table(name="default", files=files, num_rows=tally.num_rows)]
    else:
        tables = _tables_of_lines([path for path in data if path.endswith(".jsonl")], contents)
    return {
        "what": f"Data{made}: {', '.join(f'`{path}`' for path in data[:_MOST_NAMES])}{more}.",
        "tables": tuple(tables),
        "sources": tally.sources,
    }


def _tables_of_lines(paths: Sequence[str], contents: Mapping[str, Content]) -> list[Table]:
    """One table of all files where each is named after a split; else one a file, as their columns may differ."""
    counts = {}
    for path in paths:
        with contents[path].open("rb") as file:  # type: ignore[union-attr]
            counts[path] = sum(1 for line in file if line.strip())
    stems = {path: split_name(Path(path).stem) for path in paths}
    if paths and set(stems.values()) <= set(_SPLITS) and len(set(stems.values())) == len(paths):
        files = {stems[path]: path for path in paths}
        return [Table(name="default", files=files, num_rows=sum(counts.values()))]
    names = {path: split_name(str(Path(path).with_suffix(""))) for path in paths}
    return [Table(name=names[path], files={"train": path}, num_rows=counts[path]) for path in paths]


def _describe_model(folder: Path, kind: Kind, base_model: str | None) -> dict[str, Any]:
    card = read_json(folder / "aggregator.json") if (folder / "aggregator.json").exists() else {}
    if card:
        what = (
            f"An aggregator{_start(base_model)}: it reads a question with several proposed answers and writes one "
            f"final answer {_SSA}."
        )
    else:
        what = f"{'A language model' if kind == 'model' else 'A LoRA adapter'}{_start(base_model)}."
    return {"what": what, "facts": _describe_weights(folder, kind, card), "prompt": card.get("prompt")}


def _start(base_model: str | None) -> str:
    return f", trained from [{base_model}](https://huggingface.co/{base_model})" if base_model else ""


def _describe_weights(folder: Path, kind: Kind, card: Mapping[str, Any]) -> tuple[str, ...]:
    """Architecture, size, the recipe by its card, and what else lies beside the weights."""
    config = read_json(folder / ("adapter_config.json" if kind == "adapter" else "config.json"))
    if kind == "adapter":
        facts = [f"LoRA of rank {config.get('r')}, alpha {config.get('lora_alpha')}"]
    else:
        facts = [f"architecture: {', '.join(config.get('architectures', ['unknown']))}"]
    facts.append(_count_parameters(folder))
    if card.get("recipe"):
        facts.append(f"recipe: `{card['recipe']}`, step {card.get('step')}")
    if (folder / "adapter").is_dir():
        facts.append("`adapter/`: the LoRA adapter alone, as PEFT loads it; the weights here have it merged in")
    return tuple(facts)


def _describe_judge(folder: Path, base_model: str | None) -> dict[str, Any]:
    """A judge by its card, and by the folder of the run that made it where it still lies in that."""
    judge, card = read_card(folder), read_json(folder / JUDGE)
    assert judge is not None
    known = {"what": _name_judge(judge, _start(base_model)), "judge": judge}
    facts = list(_describe_weights(folder, "judge", card))
    if judge.head == "value":
        facts.append(_describe_head(folder, JUDGE))
    return known | {"facts": tuple(facts)} | _describe_run(folder, card)


def _describe_value_model(folder: Path, base_model: str | None) -> dict[str, Any]:
    """A value model likewise."""
    value, card = read_value_card(folder), read_json(folder / VALUE)
    facts = [*_describe_weights(folder, "value model", card), _describe_head(folder, VALUE)]
    what = (
        f"A value model (Q#, [arXiv 2502.20548](https://arxiv.org/abs/2502.20548)){_start(base_model)}: of a question "
        "with the beginning of an answer it says how likely the answer will be right when the reference model goes on "
        "from there. It steers that model token by token, without training it."
    )
    return {"what": what, "value": value, "facts": tuple(facts)} | _describe_run(folder, card)


def _describe_head(folder: Path, card: str) -> str:
    """What the folder of a value head is. Raises UserError where it is not all there."""
    if missing := [name for name in _VALUE_HEAD if not (folder / name).exists()]:
        raise UserError(f"{folder}: its {card} speaks of a value head, and {missing[0]} is not there; save it again")
    return "`value_head/`: the head alone, beside the weights of the language model"


def _describe_run(folder: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """The run that made a checkpoint, and what it measured on held-out problems, where it still lies in that."""
    run = folder.resolve().parent
    if folder.resolve().name == f"step_{card.get('step')}" and (run / store.MANIFEST).exists():
        manifest = json.loads(scrub_json(json.dumps(store.read_manifest(run))))
        if manifest.get("tool") == card.get("recipe"):
            return {"manifest": manifest, "held_out": _read_held_out(run, card["step"])}
    return {}


def _name_judge(judge: JudgeCard, start: str) -> str:
    if judge.head == "value":
        return (
            f"A verifier ([arXiv 2110.14168](https://arxiv.org/abs/2110.14168)){start}: it reads a question with a "
            "solution, and the value head of its last token says how likely the solution is right."
        )
    if judge.outcome:
        return (
            f"An outcome judge (outcome reward model){start}: it reads a question with a solution and says behind it "
            "how likely the whole solution is right."
        )
    return (
        f"A step judge (process reward model){start}: it reads a question with a solution and says behind every step "
        "how likely that step is right."
    )


def _read_held_out(run: Path, step: int) -> HeldOut | None:
    """What the run measured of this step; None where it measured nothing."""
    rows = list(store.read_rows(run / EVALUATIONS))
    best = best_evaluation(run)
    figures = next((row for row in rows if row["step"] == step), None)
    if figures is None or best is None:
        return None
    return HeldOut(figures=figures, num_evaluations=len(rows), is_best=best["step"] == step)


def _count_parameters(folder: Path) -> str:
    from safetensors import safe_open

    count, dtypes = 0, set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_slice(name)
                size = 1
                for length in tensor.get_shape():
                    size *= length
                count += size
                dtypes.add(tensor.get_dtype())
    return f"{count:,} parameters in {', '.join(sorted(dtypes))}"
