"""Evaluate graded answers: pass@k, votes, best-of-n by the scores of judges, final answers of an aggregator and of USC.

For every k of --num-answers the first k answers of each problem are voted on; an aggregator (SSA, arXiv 2506.09014)
and universal self-consistency (--usc-model, arXiv 2311.17311) read the same ones, shuffled by --order-seed as in
training, and write one final answer, graded like any other. pass@k is estimated from all answers there are. All methods
are measured on the same problems, so that differences are paired; what could not be judged is counted. Unlike the
reference nothing is filtered: a problem without a single usable answer counts as well. With --scores of a judge, made
by tools/rank_answers.py, the answer that it likes best and votes weighted by its scores stand beside; --subsamples
takes random subsets of k of all answers in place of the first k, as the best-of-N of PRM800K does (arXiv 2305.20050).

Answers that a value model steered (Q#, arXiv 2502.20548) have an eta. A folder with several is evaluated for each, into
folders such as OUT/eta_5, on the same problems; OUT/guidance.json has accuracy, the divergence from the reference and
paired differences over eta (tools/show_results.py --against kl draws them).

A killed run goes on where it was; more k, --usc-model and --cut-share may be added to the same folder later.
docs/evaluation.md says how every number is made.

Example: python tools/evaluate.py --answers answers/demo --aggregator outputs/step_2 --num-answers 1 2 4 --out results/a
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import groupby, islice, product
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
from tt_reasoning.evaluation import AGGREGATOR, RESULTS, Candidates, Evaluation, Report, describe
from tt_reasoning.generation import PROBLEMS
from tt_reasoning.grading import Grader
from tt_reasoning.guidance.sweep import (
    SWEEP,
    Policy,
    Sweep,
    align_problems,
    compare_policies,
    describe_sweep,
    evaluate_policies,
    find_reference,
    folder_name,
    name_policies,
)
from tt_reasoning.prompts import get_prompt
from tt_reasoning.scores import Aggregate, Scores, read_scores
from tt_reasoning.tool import run_tool
from tt_reasoning.types import Guidance, Sampling, Verdict

CHECKED = "verdicts.json"  # of check_answers: its settings


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
    answers_eta: tuple[float, ...] = ()
    """which answers, where a value model steered with several etas; all unless given"""
    compare: tuple[Path, ...] = ()
    """further folders of answers to the same problems, such as another rule or value model: paired with these"""
    first: int | None = None
    """only the first so many answers to each problem, where no more were checked (check_answers --first)"""
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


@dataclass(frozen=True, kw_only=True)
class Part:
    """The answers of one policy, and where its results go."""

    label: str
    answers: AnswerFolder
    guidance: Guidance | None
    out: Path


def main(args: Arguments) -> str:
    check_arguments(args)
    readers = list_readers(args)
    parts = list_parts(args)
    judges = read_judges(args)
    found = {part.label: read_candidates(part.answers, args, judges) for part in parts}
    ks = choose_ks(args, [candidates for candidates, _ in found.values()])
    scored = None if args.subsamples else ks[-1]
    candidates = align_problems({label: add_scores(read, judges, scored) for label, (read, _) in found.items()})
    grading = find_grading(parts)
    with ExitStack() as stack:
        if len(parts) > 1:
            stack.enter_context(store.open_run(args.out, "evaluate guidance", identify(args, parts[0])))
        for part in parts:
            own = {"guidance": part.guidance and asdict(part.guidance)}
            stack.enter_context(store.open_run(part.out, "evaluate", identify(args, part) | own))
        readings: dict[str, dict[tuple[str, int], Reading]] = {part.label: {} for part in parts}
        for label, method, k, reading in read_all(args, parts, readers, ks, grading):
            readings[label][method, k] = reading
        evaluations = evaluate_policies(
            candidates, ks, readings, subsamples=args.subsamples, subsample_seed=args.subsample_seed
        )
        reports = {
            part.label: build_report(args, part, found[part.label], readers, ks, evaluations[part.label])
            for part in parts
        }
        for part in parts:
            store.write_json(part.out / RESULTS, asdict(reports[part.label]))
        if len(parts) > 1:
            sweep = build_sweep(parts, reports, evaluations)
            store.write_json(args.out / SWEEP, asdict(sweep))
    first = reports[parts[0].label]
    told = describe(first) if len(parts) == 1 else describe_sweep(sweep)
    print(("\n" if readers else "") + f"{head_line(first, len(parts))}\n\n{told}\n")
    judged = f"{first.counts['judged']} of {first.num_problems} problems evaluated"
    if len(parts) == 1:
        return f"{judged}; results: {args.out / RESULTS}"
    return f"{judged} for each of {len(parts)} policies; results: {args.out / SWEEP}"


def identify(args: Arguments, part: Part) -> dict[str, object]:
    """What decides the numbers of a folder of results."""
    path = part.answers.path
    names = ("answers_temperature", "first", "limit")
    identity = {"answers": str(path), **{name: getattr(args, name) for name in names}}
    identity[PROBLEMS] = describe_records(path / PROBLEMS)
    if args.subsamples:
        identity |= {"subsamples": args.subsamples, "subsample_seed": args.subsample_seed}
    return identity


def check_arguments(args: Arguments) -> None:
    """Refuse what no engine could run, before anything is read or loaded."""
    least_of = {
        "limit": 1, "first": 1, "subsamples": 1, "subsample_seed": 0, "max_new_tokens": 1, "temperature": 0, "top_k": 0,
    }  # fmt: skip
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


def list_parts(args: Arguments) -> list[Part]:
    """The policies that there are answers of, each with its own; a single one has its results in ``--out`` itself."""
    folders = [open_graded(args.answers, args, args.answers_eta)]
    folders += [open_graded(path, args) for path in dict.fromkeys(args.compare) if path != args.answers]
    pairs = [(folder, guidance) for folder in folders for guidance in folder.guidances]
    pairs = [pair for pair in pairs if not args.answers_eta or (pair[1].eta if pair[1] else 0.0) in args.answers_eta]
    labels = name_policies([guidance for _, guidance in pairs])
    parts = [
        Part(
            label=label, answers=folder.guided_by(guidance), guidance=guidance,
            out=args.out / folder_name(label) if len(pairs) > 1 else args.out,
        )
        for label, (folder, guidance) in zip(labels, pairs, strict=True)
    ]  # fmt: skip
    for part in parts[1:]:
        check_same_reference(parts[0], part)
    return parts


def check_same_reference(one: Part, other: Part) -> None:
    """Raise UserError unless answers were drawn alike but for their guidance (and seed)."""
    ways = [
        {
            tuple(asdict(replace(sampling, guidance=None, revision=None, seed=0)).items())
            for sampling in part.answers.samplings
            if sampling.guidance == part.guidance
        }
        for part in (one, other)
    ]
    pair = min(ways[0] - ways[1] or ways[0]), min(ways[1] - ways[0] or ways[1])
    for (name, ours), (_, theirs) in zip(*pair, strict=True):
        if ours != theirs:
            raise UserError(
                f"the answers of {one.label} and of {other.label} were not drawn alike: {name} was {ours} and "
                f"{theirs}; evaluate them into folders of their own"
            )


def open_graded(path: Path, args: Arguments, etas: Sequence[float] = ()) -> AnswerFolder:
    """A folder of answers, of one temperature, every one of them with its verdict."""
    answers = open_answers(path, temperature=args.answers_temperature, etas=etas, first=args.first)
    if len(answers.temperatures) > 1:
        there = ", ".join(f"{value:g}" for value in answers.temperatures)
        raise UserError(f"{path} holds answers of several temperatures ({there}); name --answers-temperature")
    require_verdicts(answers)
    for guidance in answers.guidances if args.num_answers else ():
        require_samples(answers.guided_by(guidance), max(args.num_answers))
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
        candidates.append(
            Candidates(
                problem_id=problem.id, category=problem.category, verdicts=verdicts,
                num_tokens=tuple(answer.num_tokens for answer in group),
                divergences=tuple(answer.divergence for answer in group),
            )
        )  # fmt: skip
        names["model"] |= {answer.sampling.model for answer in group}
        names["dataset"].add(problem.source)
        names["split"].add(problem.split)
    return candidates, {name: "+".join(sorted(found)) for name, found in names.items()}


def choose_ks(args: Arguments, candidates: Iterable[Sequence[Candidates]]) -> list[int]:
    """Every k asked for, rising; unless given the powers of two and all answers that every problem has (of subsets:
    that any has), of every policy."""
    sizes = [[len(c.verdicts) for c in of_policy] for of_policy in candidates]
    there = min(max(found) if args.subsamples else min(found) for found in sizes)
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
    args: Arguments, parts: Sequence[Part], readers: Sequence[Reader], ks: Sequence[int], grading: Mapping
) -> Iterator[tuple[str, str, int, Reading]]:
    """What every reader makes of every policy's answers and every k: the policy's label, method, k and what was read. A
    model is loaded once for all that it has to read, and only if anything."""
    weights = cache(describe_weights)
    with Grader(**grading) as grader:
        for model, group in groupby(readers, key=lambda reader: reader.model):
            with keep_open(partial(args.engine.open, model)) as start_engine:
                for reader, part in product(group, parts):
                    sampling = Sampling(
                        model=model, revision=args.engine.revision, prompt=reader.prompt,
                        temperature=args.temperature, top_k=args.top_k, max_new_tokens=args.max_new_tokens,
                        seed=args.seed,
                    )  # fmt: skip
                    identity = {"weights": weights(model), "order_seed": args.order_seed, **args.engine.identity()}
                    identity |= {name: value for name, value in grading.items() if name != "timeout_s"}
                    if len(parts) > 1:
                        print(f"{part.label}:")
                    for k in ks:
                        asked = ask_reader(part.answers, reader, k, order_seed=args.order_seed, limit=args.limit)
                        reading = read_answers(
                            reader, k, asked, sampling, start_engine, grader, part.out, identity,
                            args.engine.default_chunk_size(1),
                        )  # fmt: skip
                        yield part.label, reader.method, k, reading


def find_grading(parts: Sequence[Part]) -> dict[str, object]:
    """How all answers were graded. Raises UserError where folders were graded by different rules."""
    found = {part.answers.path: {"fallback": "none"} | read_settings(part.answers.path / CHECKED) for part in parts}
    (first, grading), *others = found.items()
    for path, other in others:
        for name in (grading.keys() | other.keys()) - {"timeout_s"}:
            if grading.get(name) != other.get(name):
                raise UserError(
                    f"{first} and {path} were graded by different rules: {name} {grading.get(name)} and "
                    f"{other.get(name)}; grade one anew: tools/check_answers.py --regrade"
                )
    return grading


def build_report(
    args: Arguments,
    part: Part,
    found: tuple[Sequence[Candidates], Mapping[str, str]],
    readers: Sequence[Reader],
    ks: Sequence[int],
    evaluation: Evaluation,
) -> Report:
    """The evaluation of one policy with all that it was made from.

    Args:
        found: as ``read_candidates`` gives it.
    """
    candidates, names = found
    sizes = [len(c.verdicts) for c in candidates]
    kept = {name: value for name, value in asdict(args).items() if name != "engine"}
    return Report(
        answers=str(part.answers.path),
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
            "generate_answers": store.read_manifest(part.answers.path).get("arguments", {}),
            "check_answers": read_settings(part.answers.path / CHECKED),
        },
        versions=store.versions(),
        guidance=part.guidance,
        divergence=evaluation.divergence,
    )


def build_sweep(
    parts: Sequence[Part], reports: Mapping[str, Report], evaluations: Mapping[str, Evaluation]
) -> Sweep:
    """The policies beside each other, compared with the one that did not steer."""
    reference = find_reference({part.label: part.guidance for part in parts})
    first = reports[parts[0].label]
    return Sweep(
        model=first.model, dataset=first.dataset, split=first.split, num_problems=first.num_problems,
        left_out=first.counts["left_out"], reference=reference,
        policies=tuple(
            Policy(
                label=part.label, folder=part.out.name, guidance=part.guidance, results=reports[part.label].results,
                divergence=reports[part.label].divergence,
                differences=()
                if reference in (None, part.label)
                else compare_policies(evaluations[part.label], evaluations[reference], reference),
            )
            for part in parts
        ),
    )  # fmt: skip


def head_line(report: Report, num_policies: int = 1) -> str:
    """What was measured, in one line."""
    subsets = report.settings["evaluate"]["subsamples"]
    drawn = f", {subsets} random subsets of k" if subsets else ""
    steered = f", for each of {num_policies} policies" if num_policies > 1 else ""
    if num_policies == 1 and report.guidance:
        steered = f", steered by {report.guidance.value_model}, {name_policies([report.guidance])[0]}"
    most = f" to {report.most_samples}" if report.most_samples > report.num_samples else ""
    return (
        f"{report.dataset}/{report.split}: {report.num_problems} problems, {report.num_samples}{most} answers each "
        f"by {report.model}{drawn}{steered}"
    )


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
