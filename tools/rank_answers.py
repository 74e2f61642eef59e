"""Score sampled answers with a judge, step by step: for best-of-n and weighted votes (tools/evaluate.py --scores).

A judge is a checkpoint of this pack (it has judge.json), a value model (value.json), which says what it expects of an
answer that ends here (Q#-RM, arXiv 2502.20548), or a published one: Math-Shepherd, RLHFlow or Qwen2.5-Math-PRM
(docs/judges.md). All answers to a question are scored with the question computed once. Writes a folder: steps.jsonl
(a score for every step), skipped.jsonl (answers without a score, and why), scores.jsonl (one score an answer) and
manifest.json. The same command goes on after a kill; with another --aggregate it makes scores.jsonl anew from the
stored steps, without a model. No verdicts are needed. Example:

    python tools/rank_answers.py --answers answers/demo --judge checkpoints/prm --aggregate min --out scores/demo
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tt_reasoning import store
from tt_reasoning.aggregation import check_weights, describe_weights
from tt_reasoning.answer_sets import AnswerFolder, open_answers, read_groups, require_problems
from tt_reasoning.engines.vllm import check_vllm, runs_on_cpu
from tt_reasoning.errors import UserError
from tt_reasoning.judges import FormName
from tt_reasoning.scores import SCORES, Aggregate, Scores
from tt_reasoning.steps import STEPS, SplitStyle, iterate_steps
from tt_reasoning.tool import run_tool
from tt_reasoning.types import Answer, Problem

if TYPE_CHECKING:
    from tt_reasoning.judges.forms import JudgeForm
    from tt_reasoning.judges.ranking import Judge, Reader

VLLM_TOKENS = 8192  # its cache has to hold the longest answer there may be


@dataclass(frozen=True, kw_only=True)
class Arguments:
    answers: Path
    """Folder that generate_answers wrote."""
    judge: Path
    """Folder of the judge: a checkpoint with judge.json or value.json, or a published one."""
    out: Path
    """Folder of the scores."""
    aggregate: Aggregate = "min"
    """What makes the steps' scores one."""
    format: FormName = "auto"
    """Form of a published judge; auto goes by judge.json or value.json, the architecture and the folder's name."""
    split_style: SplitStyle = "auto"
    """Where a step begins: at Step 1: and so on, behind blank lines, or with every line; auto takes what fits."""
    engine: Literal["auto", "native", "vllm"] = "auto"
    """What runs the judge; auto is native, but vllm for published judges on a GPU where vLLM is installed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the native engine runs."""
    dtype: Literal["fp32", "bf16", "auto"] = "auto"
    """Arithmetic of the judge; auto is bf16 on a GPU and fp32 on a CPU."""
    batch_tokens: int | None = None
    """Native engine: tokens computed at once; 4096 on a CPU and 16384 on a GPU unless given."""
    max_length: int | None = None
    """Most tokens of a question with its answer; longer ones are skipped. Unless given the judge's own limit, with vllm
    at most 8192."""
    limit: int | None = None
    """Only the answers of the first problems; the rest are made up for by the same command without it."""
    plot: Path | None = None
    """Draw one answer as the judge reads it, from green (right) to red (wrong): a page (.html) or a picture (.png)."""
    plot_answer: str | None = None
    """Id of the answer that --plot draws."""


def main(args: Arguments) -> str:
    for name in ("batch_tokens", "max_length", "limit"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: give at least 1")
    # What needs torch is imported after the arguments are read.
    from tt_reasoning.judges.curves import check_curve_path
    from tt_reasoning.judges.forms import find_form
    from tt_reasoning.judges.ranking import Reader, score_answers, write_scores

    answers = open_answers(args.answers)
    require_problems(answers)
    if (args.plot is None) != (args.plot_answer is None):
        raise UserError("--plot FILE and --plot-answer ID go together")
    if args.plot is not None:
        check_curve_path(args.plot)
        _find_answer(answers, str(args.plot_answer))
    form, tokenizer = find_form(args.judge, args.format)
    check_weights(args.judge)
    engine = _pick_engine(args, form)
    dtype, max_length = _pick_dtype(args, engine), _pick_length(args, form, engine)
    reader = Reader(form=form, tokenizer=tokenizer, style=args.split_style, max_length=max_length)
    shown = {name: value for name, value in asdict(form).items() if value is not None}
    identity = {
        "answers": str(args.answers), "judge": str(args.judge), "weights": _describe(args.judge, form),
        "form": shown, "split_style": args.split_style, "max_length": max_length, "engine": engine,
        "dtype": dtype, "aggregate": _stored_aggregate(args.out) or args.aggregate,
    }  # fmt: skip

    start_judge = functools.partial(_start_judge, args, form, identity)
    with store.open_run(args.out, "rank_answers", identity) as folder:
        score_answers(answers, folder, reader, start_judge, limit=args.limit)
        scores = write_scores(folder, args.aggregate)
        manifest = store.read_manifest(folder)
        manifest["arguments"]["aggregate"] = args.aggregate
        store.write_json(folder / store.MANIFEST, manifest)
    if args.plot is not None:
        _plot(args, answers, reader, scores, start_judge)
    return _summary(scores, args.out / SCORES) + (f"\n{args.plot_answer} -> {args.plot}" if args.plot else "")


def _find_answer(answers: AnswerFolder, answer_id: str) -> tuple[Problem, Answer]:
    for problem, group in read_groups(answers):
        for answer in group:
            if answer.id == answer_id:
                return problem, answer
    raise UserError(f"--plot-answer {answer_id}: {answers.path} has no such answer")


def _plot(args: Arguments, answers: AnswerFolder, reader: Reader, scores: Scores, start: Callable[[], Judge]) -> None:
    """Draw an answer that has a score."""
    from tt_reasoning.judges.curves import draw_pieces, read_pieces

    problem, answer = _find_answer(answers, str(args.plot_answer))
    steps = next((steps for name, steps in iterate_steps(args.out / STEPS) if name == answer.id), [])
    if not steps:
        raise UserError(f"--plot-answer {answer.id} has no score: {scores.skipped.get(answer.id, 'above --limit')}")
    pieces, unit = read_pieces(reader.form, reader.tokenizer, problem, answer, steps, start)
    title = f"answer {answer.id} by {args.judge}"
    draw_pieces(str(args.plot), answer.text, pieces, title=title, question=problem.question, unit=unit)


def _start_judge(args: Arguments, form: JudgeForm, chosen: dict) -> Judge:
    """The judge with its model loaded."""
    from tt_reasoning.judges.native import NativeJudge
    from tt_reasoning.judges.vllm import VllmJudge

    folder, dtype = str(args.judge), chosen["dtype"]
    if chosen["engine"] == "vllm":
        return VllmJudge(folder, form, dtype=dtype, max_length=chosen["max_length"])
    return NativeJudge(folder, form, dtype=dtype, device=args.device, batch_tokens=args.batch_tokens)


def _describe(judge: Path, form: JudgeForm) -> str:
    """The digest of all weights that decide a score."""
    head = f", value head {describe_weights(judge / 'value_head')}" if form.head == "value" else ""
    return f"{describe_weights(judge)}{head}"


def _pick_engine(args: Arguments, form: JudgeForm) -> str:
    if args.engine == "native":
        return "native"
    if args.engine == "vllm":
        from tt_reasoning.judges.vllm import check_served

        check_served(str(args.judge), form)
        check_vllm("fp32")
        return "vllm"
    on_gpu = args.device != "cpu" and _sees_gpu() and not runs_on_cpu()
    return "vllm" if on_gpu and form.name != "card" else "native"


def _pick_dtype(args: Arguments, engine: str) -> str:
    if args.dtype != "auto":
        return args.dtype
    on_gpu = not runs_on_cpu() if engine == "vllm" else args.device != "cpu" and _sees_gpu()
    return "bf16" if on_gpu else "fp32"


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _pick_length(args: Arguments, form: JudgeForm, engine: str) -> int:
    """The most tokens that the judge is given; behind them vLLM needs room for a label token."""
    from tt_reasoning.models.builders import read_max_seq_len

    own = read_max_seq_len(args.judge) - (engine == "vllm" and form.head == "tokens")
    if args.max_length is not None and args.max_length > own:
        raise UserError(f"--max-length {args.max_length} is above what this judge reads, {own} tokens")
    return args.max_length or (min(own, VLLM_TOKENS) if engine == "vllm" else own)


def _stored_aggregate(out: Path) -> str | None:
    """What the folder's scores were made with: another aggregate is no other run."""
    if not (out / store.MANIFEST).exists():
        return None
    return store.read_manifest(out).get("arguments", {}).get("aggregate")


def _summary(scores: Scores, path: Path) -> str:
    """How many answers have a score, and how many have none."""
    reasons = Counter(scores.skipped.values())
    skipped = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    left_out = f", {len(scores.skipped)} skipped: {skipped}" if reasons else ""
    return f"scored {len(scores.by_answer)} answers by the {scores.aggregate} of their steps{left_out} -> {path}"


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
