"""SFT rows for a generator: solutions in steps that the grader found correct, at most so many a problem.

A verifier's generator learns from a benchmark's worked solutions (Cobbe et al., arXiv 2110.14168); one for step judges
from the model's own few-shot answers in steps, kept where they reach the gold answer (Lightman et al., arXiv
2305.20050, appendix B). Both give the columns that ``datasets.sft_dataset`` reads. What is left out is kept too, with
its reason.
"""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from tt_reasoning.answer_sets import VERDICTS, read_groups, require_verdicts, shuffled
from tt_reasoning.answer_sets.building import AnswerPool
from tt_reasoning.grading import Grader
from tt_reasoning.prompts import get_prompt
from tt_reasoning.sft_data import SFTRow
from tt_reasoning.steps import split_steps, states_result
from tt_reasoning.store import read_records
from tt_reasoning.types import FinishReason, Problem, Verdict, seed_of

Choice = Literal["random", "shortest"]
Rejection = Literal[
    "excluded", "references_differ", "truncated", "unjudged", "wrong", "few_steps", "no_statement", "repeated",
    "surplus",
]  # fmt: skip
REFERENCE = "reference"  # the source of a row that no model wrote


class Solution(NamedTuple):
    """One solution of a problem: its text without what ended it, the verdict on it, and who wrote it."""

    problem: Problem
    text: str
    finish_reason: FinishReason
    verdict: Verdict
    source: str


@dataclass(frozen=True, kw_only=True)
class SolutionRow(SFTRow):
    """One line of ``sft.jsonl``: the columns of ``create_sft_data``, the number of steps, and who wrote it.

    ``index`` is the problem's place in the source. ``source`` is a model, or "reference" for the benchmark's own
    worked solution, which has no ``answer_id`` ("").
    """

    num_steps: int
    source: str


@dataclass(frozen=True, kw_only=True)
class RejectedSolution(SolutionRow):
    """One line of ``rejected.jsonl``: the same columns, why it is there, and the detail in words."""

    reason: Rejection
    detail: str


@dataclass(frozen=True, kw_only=True)
class SolutionRules:
    """What is kept.

    ``min_steps``: a solution has this many, as ``split_steps`` finds them. ``per_problem``: at most so many of a
    problem, the shortest or drawn by ``seed`` (``choice``). ``excluded``: ids of problems to leave out.
    """

    min_steps: int = 2
    per_problem: int = 4
    choice: Choice = "random"
    seed: int = 0
    excluded: frozenset[str] = frozenset()


def strip_end(text: str, stops: Sequence[str] = ()) -> str:
    """A completion without the stop string that ended it and without blanks at its ends.

    >>> strip_end("2 + 2 = 4\\nThe answer is: 4\\nProblem:", ["\\n\\n", "\\nProblem:"])
    '2 + 2 = 4\\nThe answer is: 4'
    """
    for stop in stops:
        if text.endswith(stop):
            text = text.removesuffix(stop)
            break
    return text.strip()


def read_answer_solutions(pool: AnswerPool) -> Iterator[list[Solution]]:
    """The answers of each problem of graded folders that has any, in the pool's order of problems.

    Raises:
        UserError: an answer without a verdict, a malformed line, or a prompt that is not known.
    """
    found: dict[str, list[Solution]] = {}
    for folder in pool.folders:
        require_verdicts(folder)
        verdicts = {verdict.answer_id: verdict for verdict in read_records(folder.path / VERDICTS, Verdict)}
        for problem, answers in read_groups(folder):
            solutions = found.setdefault(problem.id, [])
            for answer in answers:
                prompt = get_prompt(answer.sampling.prompt, folder.path)
                text = strip_end(prompt.prefill + answer.text, prompt.stop)
                verdict = verdicts[answer.id]
                solutions.append(Solution(problem, text, answer.finish_reason, verdict, answer.sampling.model))
    return (solutions for solutions in found.values() if solutions)


def grade_references(references: Iterable[tuple[Problem, str]], grader: Grader) -> list[list[Solution]]:
    """Worked solutions, graded like answers: one whose result is not the gold answer is not learned either."""
    pairs = list(references)
    verdicts = grader.grade_many(("", text, problem.reference, problem.kind) for problem, text in pairs)
    return [
        [Solution(problem, text, "stop", verdict, REFERENCE)]
        for (problem, text), verdict in zip(pairs, verdicts, strict=True)
    ]


def sort_solutions(
    index: int, solutions: Sequence[Solution], rules: SolutionRules
) -> tuple[list[SolutionRow], list[RejectedSolution]]:
    """What is learned of one problem's solutions, in their order, and all others: each is in one of the two lists.

    Sound ones are left out as ``repeated`` (the words of an earlier one, whatever their blanks) or ``surplus``.
    """
    reasons = {number: _reject(solution, rules) for number, solution in enumerate(solutions)}
    if len({(solution.problem.reference, solution.problem.kind) for solution in solutions}) > 1:
        golds = " and ".join(sorted({repr(solution.problem.reference) for solution in solutions}))
        reasons = dict.fromkeys(reasons, ("references_differ", golds))
    words: set[str] = set()
    for number, solution in enumerate(solutions):
        if reasons[number] is None:
            text = " ".join(solution.text.split())
            if text in words:
                reasons[number] = "repeated", "the words of an earlier one"
            words.add(text)
    sound = [number for number in reasons if reasons[number] is None]
    if rules.choice == "shortest":
        sound.sort(key=lambda number: len(solutions[number].text))
    else:
        sound = shuffled(sound, seed_of(rules.seed, solutions[0].problem.id))
    for number in sound[rules.per_problem :]:
        reasons[number] = "surplus", f"{rules.per_problem} are kept"
    kept, rejected = [], []
    for number, solution in enumerate(solutions):
        row = _make_row(index, solution)
        found = reasons[number]
        if found is None:
            kept.append(row)
        else:
            rejected.append(RejectedSolution(**asdict(row), reason=found[0], detail=found[1]))
    return kept, rejected


def _reject(solution: Solution, rules: SolutionRules) -> tuple[Rejection, str] | None:
    """Why a solution is not to be learned, with a detail in words; the first that holds in ``Rejection``'s order."""
    if solution.problem.id in rules.excluded:
        return "excluded", "among the problems of --exclude"
    if solution.finish_reason == "length":
        return "truncated", "cut at the token limit"
    if solution.verdict.correct is None:
        return "unjudged", solution.verdict.reason
    if not solution.verdict.correct:
        return "wrong", solution.verdict.reason
    num_steps = len(split_steps(solution.text))
    if num_steps < rules.min_steps:
        return "few_steps", f"{num_steps} of {rules.min_steps} steps"
    if not states_result(solution.text):
        return "no_statement", "the last line does not begin by stating the answer"
    return None


def _make_row(index: int, solution: Solution) -> SolutionRow:
    return SolutionRow(
        index=index, question=solution.problem.question, expected_answer=solution.problem.reference,
        model_response=solution.text, extracted_answer=solution.verdict.extracted,
        is_correct=solution.verdict.correct, problem_id=solution.problem.id, answer_id=solution.verdict.answer_id,
        num_steps=len(split_steps(solution.text)), source=solution.source,
    )  # fmt: skip


def summarise(
    num_problems: int, kept: Sequence[SolutionRow], rejected: Sequence[RejectedSolution]
) -> dict[str, Any]:
    """What ``stats.json`` holds: how much is kept of how many problems, why the rest is not, and steps a solution."""
    reasons = Counter(row.reason for row in rejected)
    steps = Counter(row.num_steps for row in kept)
    num_kept = len({row.problem_id for row in kept})
    return {
        "num_problems": num_problems,
        "num_solutions": len(kept) + len(rejected),
        "num_kept": len(kept),
        "num_problems_kept": num_kept,
        "share_of_problems_kept": num_kept / num_problems,
        "rejected": {name: reasons[name] for name in typing.get_args(Rejection)},
        "num_steps": {str(number): steps[number] for number in sorted(steps)},
        "sources": dict(Counter(row.source for row in kept)),
    }
