"""Evaluate graded answers: pass@1, majority vote, pass@k and, with a model, the aggregator's final answers.

The first --num-answers answers of every problem are voted on; the aggregator reads the same ones, shuffled by
--order-seed as in training, and writes one final answer, graded like any other. All methods are measured on the
same problems, so that differences are paired; what could not be judged is counted. Unlike the SSA reference
(arXiv 2506.09014) nothing is filtered: a problem without a single usable answer counts as well.

Example: python tools/evaluate.py --answers answers/demo --aggregator outputs/step_2 --num-answers 4 --out results/demo
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from tt_reasoning import store
from tt_reasoning.answer_sets import (
    VERDICTS,
    AnswerFolder,
    Dropped,
    describe_records,
    first_answers,
    open_answers,
    read_groups,
    require_samples,
    require_verdicts,
)
from tt_reasoning.engines.options import EngineOptions
from tt_reasoning.errors import UserError
from tt_reasoning.evaluation import RESULTS, Report, describe, evaluate
from tt_reasoning.generation import ANSWERS, PROBLEMS, Counts, check_complete, generate_answers
from tt_reasoning.grading import Grader
from tt_reasoning.prompts import answer_set_text, get_prompt
from tt_reasoning.tool import run_tool
from tt_reasoning.types import Answer, AnswerSet, Problem, Sampling, Verdict

AGGREGATED = "aggregated.jsonl"
AGGREGATED_VERDICTS = "aggregated_verdicts.jsonl"
CARD = "aggregator.json"  # written beside the weights by the recipe: says which prompt it was trained with
_EMBEDDING = "model.embed_tokens.weight"
_GRADED_AT_ONCE = 64


@dataclass(kw_only=True)
class Arguments:
    answers: Path
    """folder of generate_answers, graded by check_answers"""
    num_answers: int
    """k: the first so many answers of each problem"""
    out: Path
    """folder for the results; the same arguments again resume it"""
    aggregator: str | None = None
    """the aggregator's Hugging Face folder or Hub name; without it only the votes are evaluated"""
    prompt: str = "auto"
    """the aggregator's prompt; auto: the one it was trained with, else ssa"""
    max_new_tokens: int = 512
    """tokens of a final answer"""
    temperature: float = 0.1
    """0 is greedy"""
    top_k: int = 40
    """0 means no limit"""
    seed: int = 0
    """of the aggregator's sampling"""
    order_seed: int = 0
    """decides the order in which the aggregator reads the answers"""
    limit: int | None = None
    """only the first so many problems"""
    engine: Annotated[EngineOptions, tyro.conf.arg(name="")] = EngineOptions()


def main(args: Arguments) -> str:
    check_arguments(args)
    prompt_name = choose_prompt(args) if args.aggregator else None
    answers = open_answers(args.answers)
    require_verdicts(answers)
    require_samples(answers, args.num_answers)
    sets = read_sets(answers, args)
    with store.open_run(args.out, "evaluate", identify(args, prompt_name)) as out:
        finals = aggregate(args, prompt_name, sets, out) if prompt_name else {}
        report = build_report(args, prompt_name, sets, finals)
        store.write_json(out / RESULTS, asdict(report))
    print(describe(report) + "\n")
    return f"{report.counts['judged']} of {report.num_problems} problems evaluated; results: {args.out / RESULTS}"


def check_arguments(args: Arguments) -> None:
    """Refuse what no engine could run, before anything is read or loaded."""
    for name, least in (("num_answers", 1), ("limit", 1), ("max_new_tokens", 1), ("temperature", 0), ("top_k", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"{name}={value} should be at least {least}")
    if args.aggregator is None:
        return
    args.engine.check(args.aggregator)
    if Path(args.aggregator).is_dir():
        check_weights(Path(args.aggregator))


def check_weights(model: Path) -> None:
    """Refuse a folder whose weights are missing, damaged or of another size than its config, by their headers alone."""
    files = sorted(model.glob("*.safetensors"))
    if not files:
        raise UserError(f"{model} holds no *.safetensors file: not a Hugging Face model folder")
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{model / 'config.json'}: not JSON: {error}") from None
    expected = [config.get("vocab_size"), config.get("hidden_size")]
    for path in files:
        try:
            with safe_open(path, framework="numpy") as tensors:
                found = tensors.get_slice(_EMBEDDING).get_shape() if _EMBEDDING in tensors.keys() else expected  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{path}: damaged: {error}; save or fetch the model again") from None
        if found != expected:
            raise UserError(
                f"{path} does not fit config.json: {_EMBEDDING} is {found}, vocab_size and hidden_size say {expected}; "
                "copy both from one model"
            )


def choose_prompt(args: Arguments) -> str:
    """The name of the prompt to use: the one asked for, or the one that the checkpoint was trained with."""
    name, card = args.prompt, Path(args.aggregator) / CARD
    if name == "auto":
        name = "ssa"
        if card.is_file():
            try:
                name = json.loads(card.read_text(encoding="utf-8"))["prompt"]
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{card} names no prompt; say --prompt ssa or --prompt ssa_no_think") from None
    return get_prompt(name).name


def read_sets(answers: AnswerFolder, args: Arguments) -> list[AnswerSet]:
    """The set of every problem, unfiltered. Raises UserError when a problem has too few answers."""
    sets = []
    for problem, group in read_groups(answers):
        if len(sets) == args.limit:
            break
        found = first_answers(problem, group, args.num_answers, args.order_seed)
        if isinstance(found, Dropped):
            raise UserError(
                f"{args.answers}: problem {problem.id} has only {found.detail}; "
                "finish tools/generate_answers.py, lower --num-answers or set --limit"
            )
        sets.append(found)
    return sets


def identify(args: Arguments, prompt_name: str | None) -> dict[str, object]:
    """What decides the results: the arguments that matter, and the inputs as they are now."""
    identity: dict[str, object] = {
        "answers": str(args.answers),
        "num_answers": args.num_answers,
        "limit": args.limit,
        "aggregator": args.aggregator,
        **{name: describe_records(args.answers / name) for name in (PROBLEMS, ANSWERS)},
    }
    if args.aggregator:
        names = ("max_new_tokens", "temperature", "top_k", "seed", "order_seed")
        identity |= {name: getattr(args, name) for name in names} | args.engine.identity()
        identity |= {"prompt": prompt_name, "weights": describe_weights(Path(args.aggregator))}
    return identity


def describe_weights(model: Path) -> str | None:
    """The digest of a model's weights, to tell a checkpoint that was trained on; None for one on the Hub."""
    files = sorted(model.glob("*.safetensors")) if model.is_dir() else [model]
    if not files[0].exists():
        return None
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256 {digest.hexdigest()[:16]}"


def aggregate(
    args: Arguments, prompt_name: str, sets: Sequence[AnswerSet], out: Path
) -> dict[str, tuple[Answer, Verdict]]:
    """The aggregator's answer and its verdict by problem id; what is on disk is not done again."""
    prompt = get_prompt(prompt_name)
    sampling = Sampling(
        model=args.aggregator, revision=args.engine.revision, prompt=prompt_name, temperature=args.temperature,
        top_k=args.top_k, max_new_tokens=args.max_new_tokens, seed=args.seed,
    )  # fmt: skip
    # The problem keeps its id, so that answers join on it; its question is all that the aggregator reads.
    texts = [answer_set_text(s.problem.question, [answer.text for answer in s.answers]) for s in sets]
    asked = [replace(s.problem, question=text) for s, text in zip(sets, texts, strict=True)]
    with tqdm(total=len(asked), desc="aggregate", unit="answer") as bar:

        def show(counts: Counts) -> None:
            bar.update(counts.resumed + counts.written - bar.n)

        start_engine = partial(args.engine.open, args.aggregator)
        counts = generate_answers(
            asked, sampling, 1, start_engine, prompt, out, on_progress=show, file_name=AGGREGATED
        )
    check_complete(counts)
    print(f"aggregator: {counts.written} answers written, {counts.resumed} were there\n")
    by_id = {answer.id: answer for answer in store.read_records(out / AGGREGATED, Answer)}
    finals = {problem.id: by_id[sampling.answer_id(problem.id, 0)] for problem in asked}
    verdicts = grade_finals([s.problem for s in sets], finals, prompt.prefill, out / AGGREGATED_VERDICTS)
    return {name: (answer, verdicts[answer.id]) for name, answer in finals.items()}


def grade_finals(
    problems: Sequence[Problem], finals: dict[str, Answer], prefill: str, path: Path
) -> dict[str, Verdict]:
    """The verdict of every final answer by answer id; missing ones are graded and appended."""
    verdicts = {verdict.answer_id: verdict for verdict in store.read_records(path, Verdict)}
    missing = [problem for problem in problems if finals[problem.id].id not in verdicts]
    if not missing:
        return verdicts
    with Grader(timeout_s=5.0) as grader, tqdm(total=len(missing), desc="grade", unit="answer") as bar:
        for start in range(0, len(missing), _GRADED_AT_ONCE):
            chunk = [(finals[problem.id], problem) for problem in missing[start : start + _GRADED_AT_ONCE]]
            graded = grader.grade_many(
                (final.id, prefill + final.text, problem.reference, problem.kind) for final, problem in chunk
            )
            store.append_records(path, graded)
            verdicts.update((verdict.answer_id, verdict) for verdict in graded)
            bar.update(len(graded))
    return verdicts


def build_report(
    args: Arguments, prompt_name: str | None, sets: Sequence[AnswerSet], finals: dict[str, tuple[Answer, Verdict]]
) -> Report:
    """Measure everything and say what it was measured on."""
    by_id = {verdict.answer_id: verdict for verdict in store.read_records(args.answers / VERDICTS, Verdict)}
    verdicts = {
        s.problem.id: [by_id[answer.id] for answer in sorted(s.answers, key=lambda answer: answer.sample_index)]
        for s in sets
    }
    evaluation = evaluate([s.problem for s in sets], verdicts, finals or None)
    return Report(
        answers=str(args.answers),
        model=_join({answer.sampling.model for s in sets for answer in s.answers}),
        dataset=_join({s.problem.source for s in sets}),
        split=_join({s.problem.split for s in sets}),
        num_problems=len(sets),
        num_answers=args.num_answers,
        aggregator=args.aggregator,
        prompt=prompt_name,
        results=evaluation.results,
        differences=evaluation.differences,
        counts=evaluation.counts,
        tokens={
            "answers": sum(answer.num_tokens for s in sets for answer in s.answers),
            "aggregator": sum(answer.num_tokens for answer, _ in finals.values()),
        },
        versions=store.versions(),
    )


def _join(names: set[str]) -> str:
    return "+".join(sorted(names))


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
