"""What judges are trained on: problems with all their solutions, and where and as what each is judged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tt_reasoning.answer_sets import VERDICTS, open_answers, read_groups, require_verdicts
from tt_reasoning.attention import AttentionKind
from tt_reasoning.errors import UserError, unknown_name
from tt_reasoning.judges.formats import StepFormat, share_prompt
from tt_reasoning.models.tokenizer import ChatTokenizer
from tt_reasoning.prefix_tree import PackedRow, fill_rows, pack_groups
from tt_reasoning.steps import Estimate, Neutral, Span, read_step_groups, target_of, whole_span
from tt_reasoning.store import read_records
from tt_reasoning.training import Process, level_rows
from tt_reasoning.types import Answer, Problem, Verdict, seed_of


@dataclass(frozen=True, kw_only=True)
class JudgeSolution:
    """One solution's tokens behind the shared prompt, the step ends among them, and what is to be said there.

    ``begin`` is the first token of the solution itself. ``targets`` are in [0, 1] and ``labels`` are 1 (right) or 0
    (wrong); both are None for a step without one.
    """

    answer_id: str
    tokens: list[int]
    begin: int
    reads: list[int]
    targets: list[float | None]
    labels: list[float | None]


@dataclass(frozen=True, kw_only=True)
class JudgeGroup:
    """Solutions of one problem with the tokens that they all begin with: a row of ``prefix_tree``."""

    problem_id: str
    prompt_tokens: list[int]
    solutions: list[JudgeSolution]

    @property
    def num_tokens(self) -> int:
        """Tokens of the group in a row."""
        return len(self.prompt_tokens) + sum(len(solution.tokens) for solution in self.solutions)

    @property
    def targets(self) -> list[float]:
        """The targets of all steps that have one."""
        return [target for solution in self.solutions for target in solution.targets if target is not None]


@dataclass
class LeftOut:
    """Solutions that nothing is learned from, by reason."""

    too_long: int = 0
    no_steps: int = 0
    no_label: int = 0

    def describe(self) -> str:
        """The reasons that there are.

        >>> LeftOut(too_long=2).describe()
        '2 too_long'
        """
        return ", ".join(f"{count} {reason}" for reason, count in vars(self).items() if count)


Row = tuple[Problem, Sequence[tuple[Answer, Sequence[Span], Sequence[float | None], Sequence[float | None]]]]


class JudgeDataset(Dataset):
    """Groups in the order of the problems, and how many solutions were left out.

    A problem with more than ``max_solutions`` solutions makes several groups. ``outcome`` says that the whole answer is
    the only step of each.

    Raises:
        UserError: nothing is left to train on.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        tokenizer: ChatTokenizer,
        step_format: StepFormat,
        max_tokens: int,
        max_solutions: int,
        source: str,
        *,
        outcome: bool = False,
    ) -> None:
        check_limits(max_tokens, max_solutions)
        self.source, self.outcome, self.left_out = source, outcome, LeftOut()
        self.groups: list[JudgeGroup] = []
        for problem, solutions in rows:
            layouts = []
            for answer, spans, targets, labels in solutions:
                if not spans:
                    self.left_out.no_steps += 1
                    continue
                if all(target is None for target in targets):
                    self.left_out.no_label += 1
                    continue
                layout = step_format.lay_out(tokenizer, problem.question, answer.text, spans)
                if len(layout.tokens) > max_tokens:
                    self.left_out.too_long += 1
                    continue
                layouts.append((answer.id, layout, list(targets), list(labels)))
            for first in range(0, len(layouts), max_solutions):
                self.groups.append(_make_group(problem.id, layouts[first : first + max_solutions]))
        if not self.groups:
            raise UserError(
                f"{source} gives nothing to train on: no solution with a labelled step "
                f"(left out: {self.left_out.describe() or 'none'}; max_tokens={max_tokens})"
            )

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> JudgeGroup:
        return self.groups[index]


def check_limits(max_tokens: int, max_solutions: int) -> None:
    """Raise UserError for limits under which nothing fits."""
    for name, value in (("max_tokens", max_tokens), ("max_solutions", max_solutions)):
        if value < 1:
            raise UserError(f"config key dataset.{name}: {value} is below 1")


def _make_group(problem_id: str, layouts: Sequence[tuple]) -> JudgeGroup:
    shared = share_prompt([layout for _, layout, _, _ in layouts])
    return JudgeGroup(
        problem_id=problem_id,
        prompt_tokens=layouts[0][1].tokens[:shared],
        solutions=[
            JudgeSolution(
                answer_id=answer_id,
                tokens=layout.tokens[shared:],
                begin=layout.start - shared,
                reads=[place - shared for place in layout.read],
                targets=targets,
                labels=labels,
            )
            for answer_id, layout, targets, labels in layouts
        ],
    )


def step_dataset(
    tokenizer: ChatTokenizer,
    step_format: StepFormat,
    source: str,
    estimate: Estimate = "hard",
    neutral: Neutral = "positive",
    max_tokens: int = 2048,
    max_solutions: int = 16,
) -> JudgeDataset:
    """Labelled steps of ``build_step_labels``.

    Args:
        source: a folder of steps.
        estimate: ``hard`` learns the ratings, ``soft`` the shares of correct rollouts (``steps.target_of``).
        neutral: what rating 0 counts as: ``positive``, ``negative``, or ``drop`` to learn nothing from it.
        max_tokens: longer solutions, prompt included, are left out and counted.
        max_solutions: solutions of one problem that share its prompt at most.

    Raises:
        UserError: no such folder, malformed labels, steps that do not cover their answer, nothing to train on.

    A row of ``steps.jsonl``: ``{"answer_id": "9f…", "index": 1, "start": 12, "end": 40, "rating": -1, "score": 0.125}``
    """
    for name, value, known in (("estimate", estimate, get_args(Estimate)), ("neutral", neutral, get_args(Neutral))):
        if value not in known:
            raise unknown_name(f"config key dataset.{name}", str(value), known)
    rows = (
        (
            problem,
            [
                (
                    answer,
                    [(step.start, step.end) for step in steps],
                    [target_of(step, estimate, neutral) for step in steps],
                    [target_of(step, "hard", neutral) for step in steps],
                )
                for answer, steps in group
            ],
        )
        for problem, group in read_step_groups(source)
    )
    told = f"dataset.source={source} with dataset.estimate={estimate}"
    return JudgeDataset(rows, tokenizer, step_format, max_tokens, max_solutions, told)


def outcome_dataset(
    tokenizer: ChatTokenizer,
    step_format: StepFormat,
    source: str,
    max_tokens: int = 2048,
    max_solutions: int = 16,
) -> JudgeDataset:
    """Graded answers, each judged once, at its end: what an outcome judge (ORM) and a verifier learn from.

    Args:
        source: a folder of ``generate_answers`` with the verdicts of ``check_answers``. An answer that the grader
            could not judge is left out and counted (``no_label``).

    Raises:
        UserError: no such folder, no verdicts, nothing to train on.
    """
    answers = open_answers(source)
    require_verdicts(answers)
    verdicts = {verdict.answer_id: verdict.correct for verdict in read_records(answers.path / VERDICTS, Verdict)}

    def whole(answer: Answer) -> tuple[Answer, list[Span], list[float | None], list[float | None]]:
        correct = verdicts[answer.id]
        label = [None if correct is None else float(correct)]
        return answer, whole_span(answer.text), label, label

    rows = ((problem, [whole(answer) for answer in group]) for problem, group in read_groups(answers))
    return JudgeDataset(
        rows, tokenizer, step_format, max_tokens, max_solutions, f"dataset.source={source}", outcome=True
    )


def split_by_problem(
    groups: Sequence[JudgeGroup], share: float, seed: int
) -> tuple[list[JudgeGroup], list[JudgeGroup]]:
    """Groups to train on, and those of a share of the problems (one at least) to hold out.

    The draw goes by problem id and seed: a problem that two runs have in common may be held out in one of them, but
    never by the order of its file.

    Raises:
        UserError: no problem would be left on one side.
    """
    problems = sorted({group.problem_id for group in groups}, key=lambda problem: seed_of("held out", seed, problem))
    count = max(1, round(share * len(problems)))
    if count >= len(problems):
        raise UserError(
            f"config key evaluation.share: {share:g} of {len(problems)} problems leaves none to train on; lower it, "
            "or set evaluation=null"
        )
    held = set(problems[:count])
    return [g for g in groups if g.problem_id not in held], [g for g in groups if g.problem_id in held]


def require_both_classes(groups: Sequence[JudgeGroup], source: str) -> None:
    """Raise UserError when all labels say the same: a judge would learn to say it always."""
    targets = [target for group in groups for target in group.targets]
    if max(targets) == min(targets):
        raise UserError(
            f"{source}: all {len(targets)} labels to train on are {targets[0]:g}: a judge needs right and wrong ones; "
            "sample more answers, or harder or easier problems"
        )


@dataclass(frozen=True, kw_only=True)
class JudgeRow:
    """Groups laid out as one row, with the S steps that are judged in it.

    ``place_S`` is where the last token of each step stands, ``target_S`` what is to be said there (NaN: nothing),
    ``solution_S`` which solution of the row it belongs to. ``inside_R`` is False for the tokens of a row that still
    belong to its prompt, where solutions share less than all of it.
    """

    packed: PackedRow
    place_S: Tensor
    target_S: Tensor
    solution_S: Tensor
    inside_R: Tensor
    solutions: list[JudgeSolution] = field(default_factory=list)


def pack_judged(
    groups: Sequence[JudgeGroup], device: torch.device | str, attention: AttentionKind = "auto"
) -> JudgeRow:
    """Lay groups out as one row (``prefix_tree.pack_groups``).

    >>> solution = JudgeSolution(answer_id="a", tokens=[7, 8, 9], begin=1, reads=[1, 2], targets=[1.0, None],
    ...                          labels=[1.0, None])
    >>> row = pack_judged([JudgeGroup(problem_id="p", prompt_tokens=[5, 6], solutions=[solution] * 2)], "cpu")
    >>> row.packed.tokens_1T.tolist(), row.place_S.tolist()
    ([[5, 6, 7, 8, 9, 7, 8, 9]], [3, 4, 6, 7])
    >>> row.target_S.tolist(), row.solution_S.tolist(), row.inside_R.tolist()
    ([1.0, nan, 1.0, nan], [0, 0, 1, 1], [False, True, True, False, True, True])
    """
    solutions = [solution for group in groups for solution in group.solutions]
    packed = pack_groups([(g.prompt_tokens, [s.tokens for s in g.solutions]) for g in groups], device, attention)
    reads, targets, owners, inside, start = [], [], [], [], 0
    for number, solution in enumerate(solutions):
        reads += [start + read for read in solution.reads]
        targets += [float("nan") if target is None else target for target in solution.targets]
        owners += [number] * len(solution.reads)
        inside += [index >= solution.begin for index in range(len(solution.tokens))]
        start += len(solution.tokens)
    return JudgeRow(
        packed=packed,
        place_S=packed.place_R[torch.tensor(reads, dtype=torch.long, device=device)],
        target_S=torch.tensor(targets, device=device),
        solution_S=torch.tensor(owners, dtype=torch.long, device=device),
        inside_R=torch.tensor(inside, device=device),
        solutions=solutions,
    )


def pack_rows(
    groups: Sequence[JudgeGroup], process: Process, pack_tokens: int | None, attention: AttentionKind = "auto"
) -> list[JudgeRow]:
    """A step's groups as rows of at most ``pack_tokens`` (``fill_rows``), as many on every process."""
    rows = fill_rows([group.num_tokens for group in groups], pack_tokens)
    levelled = level_rows([[groups[i] for i in row] for row in rows], process)
    return [pack_judged(row, process.device, attention) for row in levelled]
