"""Evaluate graded answers: pass@k, votes, best-of-n by the scores of judges, final answers of an aggregator and of USC.

For every k of --num-answers the first k answers of each problem are voted on; an aggregator (SSA, arXiv 2506.09014)
and universal self-consistency (--usc-model, arXiv 2311.17311) read the same ones, shuffled by --order-seed as in
training, and write one final answer, graded like any other. pass@k is estimated from all answers there are. All methods
are measured on the same problems, so that differences are paired; what could not be judged is counted. Unlike the
reference nothing is filtered: a problem without a single usable answer counts as well. With --scores of a judge, made
by tools/rank_answers.py, the answer that it likes best and votes weighted by its scores stand beside; --subsamples
takes random subsets of k of all answers in place of the first k, as the best-of-N of PRM800K does (arXiv 2305.20050).

A killed run goes on where it was; more k, --usc-model and --cut-share may be added to the same folder later.
docs/evaluation.md says how every number is made.

Example: python tools/evaluate.py --answers answers/demo --aggregator outputs/step_2 --num-answers 1 2 4 --out results/a
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import groupby, islice
from pathlib import Path
from typing import Annotated

import tyro

from tt_reasoning import store
from tt_reasoning.aggregation import (
    Reader,
    Reading,
    ask_reader,
    check_weights,
    describe_weights,
    keep_open,
    read_answers,
    trained_prompt,
)
from tt_reasoning.answer_sets import (
    VERDICTS,
    AnswerFolder,
    describe_records,
    open_answers,
    read_groups,
    read_settings,
    require_samples,
    require_verdicts,
)
from tt_reasoning.engines.options import EngineOptions
from tt_reasoning.errors import UserError
from tt_reasoning.evaluation import AGGREGATOR, RESULTS, Candidates, Evaluation, Report, describe, evaluate
from tt_reasoning.generation import PROBLEMS
from tt_reasoning.grading import Grader
from tt_reasoning.prompts import get_prompt
from tt_reasoning.scores import Aggregate, Scores, read_scores
from tt_reasoning.tool import run_tool
from tt_reasoning.types import Sampling, Verdict


@dataclass(kw_only=True)
class Arguments:
    answers: Path
    """folder of generate_answers, graded by check_answers"""
    out: Path
    """folder for the results; the same arguments again resume it"""
    num_answers: tuple[int, ...] = ()
    """k, one or several: the first so many answers of each problem; 1, 2, 4, ... and all there are unless given"""
    answers_temperature: float | None = None
    """which answers, where the folder holds several temperatures"""
    limit: int | None = None
    """only the first so many problems"""
    scores: tuple[Path, ...] = ()
    """judges: folders of rank_answers, or files of JSON lines {"answer_id": ..., "score": ...}, at least 0"""
    aggregate: tuple[Aggregate, ...] = ()
    """how the scores of an answer's steps become its own, one or several; as each folder was made unless given"""
    subsamples: int | None = None
    """measure the means over so many random subsets of k of a problem's answers, not the first k; PRM800K takes 400"""
    subsample_seed: int = 0
    """decides the subsets"""
    aggregator: str | None = None
    """the aggregator's Hugging Face folder or Hub name; without it only the votes are evaluated"""
    prompt: str = "auto"
    """the aggregator's prompt; auto: the one it was trained with, else ssa"""
    cut_share: tuple[float, ...] = ()
    """let the aggregator also read the answers without this share of their end: does it only copy results?"""
    usc_model: str | None = None
    """an instruct model that selects the most consistent answer (universal self-consistency)"""
    usc_prompt: tuple[str, ...] = ("usc", "usc_majority")
    """how it is asked, each a method of its own"""
    max_new_tokens: int = 512
    """tokens of a final answer"""
    temperature: float = 0.1
    """0 is greedy"""
    top_k: int = 40
    """0 means no limit"""
    seed: int = 0
    """of the sampling of final answers"""
    order_seed: int = 0
    """decides the order in which a model reads the answers"""
    engine: Annotated[EngineOptions, tyro.conf.arg(name="")] = EngineOptions()


def main(args: Arguments) -> str:
    check_arguments(args)
    readers = list_readers(args)
    answers = open_graded(args)
    judges = read_judges(args)
    candidates, names = read_candidates(answers, args, judges)
    ks = choose_ks(args, candidates)
    candidates = add_scores(candidates, judges, None if args.subsamples else ks[-1])
    identity = {"answers": str(args.answers), "answers_temperature": args.answers_temperature, "limit": args.limit}
    identity[PROBLEMS] = describe_records(args.answers / PROBLEMS)
    if args.subsamples:
        identity |= {"subsamples": args.subsamples, "subsample_seed": args.subsample_seed}
    with store.open_run(args.out, "evaluate", identity):
        readings = dict(read_all(args, answers, readers, ks))
        evaluation = evaluate(candidates, ks, readings, subsamples=args.subsamples, subsample_seed=args.subsample_seed)
        report = build_report(args, names, readers, ks, candidates, evaluation)
        store.write_json(args.out / RESULTS, asdict(report))
    print(("\n" if readers else "") + f"{head_line(report)}\n\n{describe(report)}\n")
    return f"{report.counts['judged']} of {report.num_problems} problems evaluated; results: {args.out / RESULTS}"


def check_arguments(args: Arguments) -> None:
    """Refuse what no engine could run, before anything is read or loaded."""
    least_of = {"limit": 1, "subsamples": 1, "subsample_seed": 0, "max_new_tokens": 1, "temperature": 0, "top_k": 0}
    for name, least in least_of.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"{name}={value} should be at least {least}")
    for k in args.num_answers:
        if k < 1:
            raise UserError(f"num_answers={k} should be at least 1")
    for share in args.cut_share:
        if not 0 < share < 1:
            raise UserError(f"--cut-share {share:g} is not between 0 and 1: 0.3 cuts the last 30 % of every answer")
    if args.cut_share and args.aggregator is None:
        raise UserError("--cut-share is about what an aggregator reads; name one with --aggregator")
    if args.aggregate and all(path.is_file() for path in args.scores):
        raise UserError("--aggregate is about the scores of steps; name a folder of rank_answers with --scores")
    if args.subsample_seed and args.subsamples is None:
        raise UserError("--subsample-seed is about random subsets; say with --subsamples how many")
    if args.subsamples is not None and (args.aggregator or args.usc_model):
        raise UserError(
            "--subsamples measures what needs no model: an aggregator and USC would have to read every subset; "
            "evaluate them without it, into another folder"
        )
    for model in filter(None, (args.aggregator, args.usc_model)):
        args.engine.check(model)
        if Path(model).is_dir() and args.engine.name != "openai":
            check_weights(Path(model))


def list_readers(args: Arguments) -> list[Reader]:
    """The models that read answers, by model: the aggregator, with whole and with cut answers, and USC."""
    readers = []
    if args.aggregator:
        prompt = trained_prompt(args.aggregator) or "ssa" if args.prompt == "auto" else get_prompt(args.prompt).name
        readers.append(Reader(method=AGGREGATOR, model=args.aggregator, prompt=prompt))
        readers += [
            replace(readers[0], method=f"{AGGREGATOR}_cut{share:g}", cut_share=share)
            for share in sorted(set(args.cut_share))
        ]
    if args.usc_model:
        names = [get_prompt(name).name for name in dict.fromkeys(args.usc_prompt)]
        readers += [Reader(method=name, model=args.usc_model, prompt=name) for name in names]
    return readers


def open_graded(args: Arguments) -> AnswerFolder:
    """The folder of answers, of one temperature, every one of them with its verdict."""
    answers = open_answers(args.answers, temperature=args.answers_temperature)
    if len(answers.temperatures) > 1:
        there = ", ".join(f"{value:g}" for value in answers.temperatures)
        raise UserError(f"{args.answers} holds answers of several temperatures ({there}); name --answers-temperature")
    require_verdicts(answers)
    if args.num_answers:
        require_samples(answers, max(args.num_answers))
    return answers


def read_judges(args: Arguments) -> dict[str, Scores]:
    """The scores of every judge under every aggregate, by a name that tells them apart: prm:min, or that of a file."""
    judges: dict[str, Scores] = {}
    for path in args.scores:
        for how in (None,) if path.is_file() or not args.aggregate else dict.fromkeys(args.aggregate):
            found = read_scores(path, how)
            name = found.name if found.aggregate is None else f"{found.name}:{found.aggregate}"
            if name in judges:
                raise UserError(f"{judges[name].path} and {path} would both be called {name}; rename one of them")
            judges[name] = found
    return judges


def read_candidates(
    answers: AnswerFolder, args: Arguments, judges: Mapping[str, Scores]
) -> tuple[list[Candidates], dict[str, str]]:
    """The verdicts and lengths of every problem's answers (texts stay on disk), and what they are called together:
    model, dataset and split. What judges said has to be of these answers."""
    by_id = {verdict.answer_id: verdict for verdict in store.read_records(answers.path / VERDICTS, Verdict)}
    needed = 1 if args.subsamples else max(args.num_answers, default=1)
    candidates = []
    names: dict[str, set[str]] = {"model": set(), "dataset": set(), "split": set()}
    for problem, group in islice(read_groups(answers), args.limit):
        if len(group) < needed:
            raise UserError(
                f"{answers.path}: problem {problem.id} has only {len(group)} answers, {needed} needed; "
                "finish tools/generate_answers.py, lower --num-answers or set --limit"
            )
        for judge in judges.values():
            judge.check_ends(group)
        verdicts = tuple(by_id[answer.id] for answer in group)
        lengths = tuple(answer.num_tokens for answer in group)
        candidates.append(
            Candidates(problem_id=problem.id, category=problem.category, verdicts=verdicts, num_tokens=lengths)
        )
        names["model"] |= {answer.sampling.model for answer in group}
        names["dataset"].add(problem.source)
        names["split"].add(problem.split)
    return candidates, {name: "+".join(sorted(found)) for name, found in names.items()}


def choose_ks(args: Arguments, candidates: Sequence[Candidates]) -> list[int]:
    """Every k asked for, rising; unless given the powers of two and all answers that every problem has (of subsets:
    that any has)."""
    sizes = [len(c.verdicts) for c in candidates]
    there = max(sizes) if args.subsamples else min(sizes)
    ks = sorted(set(args.num_answers) or {*(2**power for power in range(there.bit_length())), there})
    if ks[-1] > there:
        raise UserError(f"{args.answers}: no problem has {ks[-1]} answers, the most is {there}; lower --num-answers")
    return ks


def add_scores(
    candidates: Sequence[Candidates], judges: Mapping[str, Scores], num_answers: int | None
) -> list[Candidates]:
    """The candidates with what judges say of their first ``num_answers`` answers, or of all.

    Raises:
        UserError: an answer that a judge neither scored nor skipped.
    """
    ids = [[verdict.answer_id for verdict in c.verdicts[:num_answers]] for c in candidates]
    for judge in judges.values():
        judge.require([name for row in ids for name in row])
    return [
        replace(c, scores={name: [judge.of(answer_id) for answer_id in row] for name, judge in judges.items()})
        for c, row in zip(candidates, ids, strict=True)
    ]


def read_all(
    args: Arguments, answers: AnswerFolder, readers: Sequence[Reader], ks: Sequence[int]
) -> Iterator[tuple[tuple[str, int], Reading]]:
    """What every reader makes of every k; a model is loaded once for all that it has to read, and only if anything."""
    weights = cache(describe_weights)
    grading = {"fallback": "none"} | read_settings(args.answers / "verdicts.json")
    with Grader(**grading) as grader:
        for model, group in groupby(readers, key=lambda reader: reader.model):
            with keep_open(partial(args.engine.open, model)) as start_engine:
                for reader in group:
                    sampling = Sampling(
                        model=model, revision=args.engine.revision, prompt=reader.prompt,
                        temperature=args.temperature, top_k=args.top_k, max_new_tokens=args.max_new_tokens,
                        seed=args.seed,
                    )  # fmt: skip
                    identity = {"weights": weights(model), "order_seed": args.order_seed, **args.engine.identity()}
                    identity |= {name: value for name, value in grading.items() if name != "timeout_s"}
                    for k in ks:
                        asked = ask_reader(answers, reader, k, order_seed=args.order_seed, limit=args.limit)
                        yield (
                            (reader.method, k),
                            read_answers(
                                reader, k, asked, sampling, start_engine, grader, args.out, identity,
                                args.engine.default_chunk_size(1),
                            ),  # fmt: skip
                        )


def build_report(
    args: Arguments,
    names: dict[str, str],
    readers: Sequence[Reader],
    ks: Sequence[int],
    candidates: Sequence[Candidates],
    evaluation: Evaluation,
) -> Report:
    """The evaluation with all that it was made from."""
    sizes = [len(c.verdicts) for c in candidates]
    kept = {name: value for name, value in asdict(args).items() if name != "engine"}
    return Report(
        answers=str(args.answers),
        **names,
        num_problems=len(candidates),
        num_samples=min(sizes),
        most_samples=max(sizes),
        num_answers=tuple(ks),
        aggregator=args.aggregator,
        prompt=next((reader.prompt for reader in readers if reader.method == AGGREGATOR), None),
        usc_model=args.usc_model,
        results=evaluation.results,
        differences=evaluation.differences,
        categories=evaluation.categories,
        counts=evaluation.counts,
        settings={
            "evaluate": json.loads(json.dumps(kept, default=str)) | args.engine.identity(),
            "generate_answers": store.read_manifest(args.answers).get("arguments", {}),
            "check_answers": read_settings(args.answers / "verdicts.json"),
        },
        versions=store.versions(),
    )


def head_line(report: Report) -> str:
    """What was measured, in one line."""
    subsets = report.settings["evaluate"]["subsamples"]
    drawn = f", {subsets} random subsets of k" if subsets else ""
    most = f" to {report.most_samples}" if report.most_samples > report.num_samples else ""
    return (
        f"{report.dataset}/{report.split}: {report.num_problems} problems, {report.num_samples}{most} answers each "
        f"by {report.model}{drawn}"
    )


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
