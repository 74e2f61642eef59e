"""Math-Shepherd (arXiv 2312.08935): a step is as good as what comes of going on from it, so no human labels steps.

The beginning of an answer up to the end of a step, its prefix, is continued several times by a completer, under the
prompt that the answer was drawn with, and every whole text is graded. Hard estimate: any of them is right (eq. 3);
soft estimate: the share of them that is (eq. 4). The last step has no rollouts: it has the verdict of its answer.

A prefix is asked like a problem of its own, and its rollouts are the answers to it: ``draw_answers`` writes, resumes
and counts them. ``rollouts.jsonl`` holds them as ``Answer`` records whose ``problem_id`` is the prefix's id,
``rollout_verdicts.jsonl`` their verdicts, ``prefixes.jsonl`` what each prefix is and what came of it. Beside them a
finished folder is a folder of steps. No torch here.

Apart from the paper and its code: equal answers of a problem are labelled once, and a prefix that several answers
share is rolled out once; what cannot be judged is left out of the share, not counted as wrong; for the hard estimate
no more rollouts are asked for from a prefix once one is right, which changes no label (but for the few tokens by which
vLLM depends on what is asked beside).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from tt_reasoning import store
from tt_reasoning.answer_sets import VERDICTS, AnswerFolder, read_groups
from tt_reasoning.engines.base import Engine
from tt_reasoning.errors import UserError
from tt_reasoning.generation import ANSWERS, PROBLEMS, STATS, Counts, Draw, check_complete, draw_answers
from tt_reasoning.grading import Grader
from tt_reasoning.prompts import Prompt
from tt_reasoning.steps import STEPS, Estimate, SplitStyle, make_steps
from tt_reasoning.types import Answer, Problem, Rating, Sampling, Step, Verdict

ROLLOUTS = "rollouts.jsonl"
ROLLOUT_VERDICTS = "rollout_verdicts.jsonl"
PREFIXES = "prefixes.jsonl"
_GRADED_AT_ONCE = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefix:
    """The beginning of an answer, to be gone on from: here it ends behind a step that is not the last.

    ``id`` is a digest of problem and text; ``number`` the problem's place in the folder of answers; ``answer`` the
    first one that begins so, with ``end`` characters.
    """

    id: str
    problem: Problem
    number: int
    answer: Answer
    end: int

    @property
    def text(self) -> str:
        """What the completer goes on from."""
        return self.answer.text[: self.end]


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """An answer to be labelled: ``prefix_ids`` are of the ends of its steps, the last one left out."""

    answer: Answer
    verdict: Verdict
    steps: tuple[Step, ...]
    prefix_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What there is to do: the solutions by problem, their prefixes by id in the order in which they are asked.

    ``left_out`` counts answers by why: ``repeated`` (the problem has an equal one), ``blank`` (no steps),
    ``bad_reference`` (nothing can be judged against their problem's reference).
    """

    groups: list[tuple[Problem, list[Solution]]]
    prefixes: dict[str, Prefix]
    left_out: Counter[str]

    @property
    def solutions(self) -> Iterator[Solution]:
        """All of them, in order."""
        return (solution for _, group in self.groups for solution in group)


@dataclass(kw_only=True, slots=True)
class Outcomes:
    """What came of the rollouts from a prefix: ``finished`` ended by themselves, ``judged`` have a verdict.

    >>> outcomes = Outcomes(rollouts=4, finished=3, judged=3, correct=1)
    >>> outcomes.rating, round(outcomes.score, 2)
    (1, 0.33)
    """

    rollouts: int = 0
    finished: int = 0
    judged: int = 0
    correct: int = 0

    @property
    def rating(self) -> Rating | None:
        """The hard estimate (eq. 3) as a rating; None when nothing was judged."""
        return None if not self.judged else 1 if self.correct else -1

    @property
    def score(self) -> float | None:
        """The soft estimate (eq. 4), in [0, 1]; None when nothing was judged."""
        return self.correct / self.judged if self.judged else None


def find_ends(text: str, steps: Sequence[Step]) -> list[int]:
    """Where the prefixes of an answer end: behind each step but the last and what separates it from the next.

    Blanks that begin the next line are the completer's own to write: tokens mostly begin with them.

    >>> text = "3 + 4 = 7\\n\\n  so 7"
    >>> steps = [Step(answer_id="a", index=0, start=0, end=9), Step(answer_id="a", index=1, start=13, end=17)]
    >>> [text[:end] for end in find_ends(text, steps)]
    ['3 + 4 = 7\\n\\n']
    """
    return [len(text[: step.start].rstrip(" \t")) for step in steps[1:]]


def plan_prefixes(answers: AnswerFolder, style: SplitStyle = "auto", limit: int | None = None) -> Plan:
    """Split all answers, or those of the first ``limit`` problems, and find what has to be rolled out.

    Raises:
        UserError: a malformed line, a problem that is not graded by comparing results, or no answer with steps.
    """
    verdicts = {verdict.answer_id: verdict for verdict in store.read_records(answers.path / VERDICTS, Verdict)}
    plan = Plan(groups=[], prefixes={}, left_out=Counter())
    for number, (problem, group) in enumerate(islice(read_groups(answers), limit)):
        if problem.kind == "code":
            raise UserError(f"{answers.path}: problem {problem.id} asks for code: a rollout is graded by its result")
        if any(verdicts[answer.id].reason == "bad_reference" for answer in group):
            plan.left_out["bad_reference"] += len(group)
            continue
        solutions = []
        seen: set[str] = set()
        for answer in group:
            steps = make_steps(answer, style)
            if not steps or answer.text.strip() in seen:
                plan.left_out["repeated" if steps else "blank"] += 1
                continue
            seen.add(answer.text.strip())
            ids = []
            for end in find_ends(answer.text, steps):
                prefix_id = hashlib.sha256(f"{problem.id} {answer.text[:end]}".encode()).hexdigest()[:16]
                prefix = Prefix(id=prefix_id, problem=problem, number=number, answer=answer, end=end)
                plan.prefixes.setdefault(prefix_id, prefix)
                ids.append(prefix_id)
            solutions.append(
                Solution(answer=answer, verdict=verdicts[answer.id], steps=tuple(steps), prefix_ids=tuple(ids))
            )
        if solutions:
            plan.groups.append((problem, solutions))
    if not plan.groups:
        told = ", ".join(f"{count} {reason}" for reason, count in plan.left_out.items()) or "no answers"
        raise UserError(f"{answers.path}: no answer to label: {told}")
    return plan


def list_rounds(rollouts: int) -> tuple[int, ...]:
    """How many rollouts a prefix without a right one has behind each round of the hard estimate.

    >>> list_rounds(8), list_rounds(6), list_rounds(1)
    ((1, 2, 4, 8), (1, 2, 4, 6), (1,))
    """
    return (*(2**power for power in range((rollouts - 1).bit_length())), rollouts)


def draw_rollouts(
    plan: Plan,
    sampling: Sampling,
    rollouts: int,
    estimate: Estimate,
    prompt: Prompt,
    start_engine: Callable[[], Engine],
    grader: Grader,
    folder: str | Path,
    chunk_size: int,
) -> int:
    """Append the rollouts that are missing, and their verdicts; returns how many rollouts.

    The soft estimate asks for ``rollouts`` from each prefix at once. The hard one asks in rounds (``list_rounds``),
    each of them for the prefixes from which nothing right has come yet. A prefix that leaves no room for the
    rollout within the engine's limit has none.

    Args:
        sampling: of the rollouts, with the name of ``prompt``.
        start_engine: called for each round in which a rollout is missing (``aggregation.keep_open`` keeps one engine).
        folder: of a run that is open (``store.open_run``).
        chunk_size: problems in one engine call, with all prefixes of all their answers.

    Raises:
        UserError: rollouts failed for another reason than their length, or none could be asked at all.
    """
    asked, written = list(plan.prefixes.values()), 0
    rounds = list_rounds(rollouts) if estimate == "hard" else (rollouts,)
    for number, end in enumerate(rounds, 1):
        draw = Draw(sampling=sampling, blocks=rounds[:number])
        written += continue_prefixes(asked, draw, start_engine, prompt, folder, chunk_size, f"rollout 1 to {end}")
        grade_rollouts(plan.prefixes, prompt, grader, folder)
        # Of this round alone: a kill may have left some of the next.
        found = count_outcomes(folder, below=end)
        asked = [prefix for prefix in asked if prefix.id in found and not found[prefix.id].correct]
    return written


def continue_prefixes(
    prefixes: Sequence[Prefix],
    draw: Draw,
    start_engine: Callable[[], Engine],
    prompt: Prompt,
    folder: str | Path,
    chunk_size: int,
    told: str = "rollout",
) -> int:
    """Append the missing rollouts of a draw from each prefix to ``rollouts.jsonl``; returns how many.

    Args:
        prefixes: in the order of their problems.
        chunk_size: problems in one engine call, with all their prefixes.
        told: what the progress bar says.

    Raises:
        UserError: rollouts failed for another reason than their length, or none could be asked at all.
    """
    by_id = {prefix.id: prefix for prefix in prefixes}
    with tqdm(total=len(prefixes) * draw.num_samples, desc=told, unit="rollout", disable=not prefixes) as bar:
        counts = draw_answers(
            [replace(prefix.problem, id=prefix.id) for prefix in prefixes], [draw], start_engine, prompt, folder,
            _chunk_ends(prefixes, chunk_size), partial(show_counts, bar), ROLLOUTS,
            render=lambda problem: prompt.render(problem.question, by_id[problem.id].text),
        )  # fmt: skip
    check_all_but_too_long(counts)
    return counts.written


def show_counts(bar: tqdm, counts: Counts) -> None:
    """Move the bar of a draw."""
    bar.initial = counts.resumed
    bar.update(counts.resumed + counts.written - bar.n)
    if counts.failed:
        bar.set_postfix_str(f"{counts.failed.total()} failed")


def check_all_but_too_long(counts: Counts) -> None:
    """Raise a UserError as ``check_complete``, but not for a few that leave the engine no room."""
    if counts.missing > counts.failed["too_long"] or (counts.missing and not counts.resumed + counts.written):
        check_complete(counts)


def _chunk_ends(prefixes: Sequence[Prefix], chunk_size: int) -> list[int]:
    """The index behind the last prefix of every ``chunk_size`` problems."""
    counts = Counter(prefix.number // chunk_size for prefix in prefixes)
    ends, end = [], 0
    for chunk in sorted(counts):
        end += counts[chunk]
        ends.append(end)
    return ends


def read_rollouts(folder: str | Path) -> Iterator[tuple[Answer, Verdict | None]]:
    """The rollouts of a folder with their verdicts, None where there is none yet; of both one at a time in memory.

    Verdicts stand in the order of their rollouts, unless an earlier run had fewer problems: then some wait.
    """
    verdicts = store.read_records(Path(folder) / ROLLOUT_VERDICTS, Verdict)
    waiting: dict[str, Verdict] = {}
    for rollout in store.read_records(Path(folder) / ROLLOUTS, Answer):
        found = waiting.pop(rollout.id, None)
        while found is None and (verdict := next(verdicts, None)):
            if verdict.answer_id == rollout.id:
                found = verdict
            else:
                waiting[verdict.answer_id] = verdict
        yield rollout, found


def end_at_stop(begun: str, text: str, stop: Sequence[str]) -> tuple[str, bool]:
    r"""A rollout up to the first stop string that ends in it, and whether there is one.

    Engines look for stop strings in what they write: one that begins in ``begun`` they go past.

    >>> end_at_stop("So 5.\n", "\nProblem: another", ["\n\n", "\nProblem:"])
    ('\n', True)
    >>> end_at_stop("So", " 5.", ["\n\n"])
    (' 5.', False)
    """
    ends = []
    for word in stop:
        straddling = min(len(word) - 1, len(begun))
        place = (begun[len(begun) - straddling :] + text).find(word)
        if place >= 0:
            ends.append(place + len(word) - straddling)
    return (text[: min(ends)], True) if ends else (text, False)


def grade_rollouts(prefixes: Mapping[str, Prefix], prompt: Prompt, grader: Grader, folder: str | Path) -> None:
    """Append the verdicts that rollouts from the prefixes, given by id, lack.

    A rollout that was cut at its token limit is graded like any other answer, by what it states up to there; what
    stands behind a stop string is not read.
    """
    missing = (r for r, verdict in read_rollouts(folder) if verdict is None and r.problem_id in prefixes)
    bar = None
    while chunk := list(islice(missing, _GRADED_AT_ONCE)):
        bar = bar if bar is not None else tqdm(desc="grade", unit="rollout")
        items = []
        for rollout in chunk:
            prefix = prefixes[rollout.problem_id]
            text = prompt.prefill + prefix.text + end_at_stop(prefix.text, rollout.text, prompt.stop)[0]
            items.append((rollout.id, text, prefix.problem.reference, prefix.problem.kind))
        bar.update(store.append_records(Path(folder) / ROLLOUT_VERDICTS, grader.grade_many(items)))
    if bar is not None:
        bar.close()


def count_outcomes(folder: str | Path, below: int | None = None) -> dict[str, Outcomes]:
    """What came of the rollouts, or of the first ``below``, from each prefix that has one, by its id."""
    found: dict[str, Outcomes] = {}
    for rollout, verdict in read_rollouts(folder):
        if verdict is None or (below is not None and rollout.sample_index >= below):
            continue
        outcomes = found.setdefault(rollout.problem_id, Outcomes())
        outcomes.rollouts += 1
        outcomes.finished += rollout.finish_reason == "stop"
        outcomes.judged += verdict.correct is not None
        outcomes.correct += bool(verdict.correct)
    return found


def label_steps(solution: Solution, outcomes: Mapping[str, Outcomes], estimate: Estimate) -> list[Step]:
    """The steps of a solution with rating (hard estimate) and, for ``soft``, score; neither where nothing was judged.

    Scores of the hard estimate are left out: its rollouts end with the first that is right.
    """
    own = solution.verdict.correct
    last = Outcomes(rollouts=0, judged=int(own is not None), correct=int(bool(own)))
    found = [*(outcomes.get(prefix_id, Outcomes()) for prefix_id in solution.prefix_ids), last]
    return [
        replace(step, rating=each.rating, score=each.score if estimate == "soft" else None)
        for step, each in zip(solution.steps, found, strict=True)
    ]


def write_labels(plan: Plan, folder: str | Path, estimate: Estimate) -> dict:
    """Make the folder of steps from its rollouts; ``steps.jsonl`` comes last. Returns what ``stats.json`` says."""
    folder = Path(folder)
    outcomes = count_outcomes(folder)
    outcomes = {prefix_id: outcomes[prefix_id] for prefix_id in plan.prefixes if prefix_id in outcomes}
    labelled = [(solution, label_steps(solution, outcomes, estimate)) for solution in plan.solutions]
    store.write_records(folder / PROBLEMS, (problem for problem, _ in plan.groups))
    store.write_records(folder / ANSWERS, (solution.answer for solution in plan.solutions))
    store.write_records(folder / VERDICTS, (solution.verdict for solution in plan.solutions))
    store.write_records(folder / PREFIXES, _describe_prefixes(plan, outcomes))
    stats = describe_labels(plan, outcomes, [steps for _, steps in labelled])
    store.write_json(folder / STATS, stats)
    store.write_records(folder / STEPS, (step for _, steps in labelled for step in steps))
    return stats


def _describe_prefixes(plan: Plan, outcomes: Mapping[str, Outcomes]) -> Iterator[dict]:
    """Each prefix with the steps that it ends and what came of it."""
    steps: dict[str, list[tuple[str, int]]] = {prefix_id: [] for prefix_id in plan.prefixes}
    for solution in plan.solutions:
        for index, prefix_id in enumerate(solution.prefix_ids):
            steps[prefix_id].append((solution.answer.id, index))
    for prefix in plan.prefixes.values():
        found = outcomes.get(prefix.id, Outcomes())
        yield {"id": prefix.id, "problem_id": prefix.problem.id, "steps": steps[prefix.id], **asdict(found)}


def describe_labels(plan: Plan, outcomes: Mapping[str, Outcomes], labelled: Sequence[Sequence[Step]]) -> dict:
    """What was labelled, left out and found: for ``stats.json``. ``by_position`` leaves last steps to ``last``."""
    rollouts = sum(each.rollouts for each in outcomes.values())
    finished = sum(each.finished for each in outcomes.values())
    judged = sum(each.judged for each in outcomes.values())
    positions = range(max(map(len, labelled)) - 1)
    return {
        "problems": len(plan.groups),
        "answers": len(labelled),
        "left_out": {name: plan.left_out[name] for name in ("repeated", "blank", "bad_reference")},
        "prefixes": len(plan.prefixes),
        "too_long": len(plan.prefixes) - len(outcomes),
        "rollouts": rollouts,
        "unfinished": rollouts - finished,
        "unfinished_share": round((rollouts - finished) / rollouts, 4) if rollouts else None,
        "not_judged": rollouts - judged,
        "correct": sum(each.correct for each in outcomes.values()),
        "steps": _balance(step for steps in labelled for step in steps),
        "by_position": [_balance(steps[at] for steps in labelled if at < len(steps) - 1) for at in positions],
        "last": _balance(steps[-1] for steps in labelled),
    }


def _balance(steps: Iterable[Step]) -> dict:
    """How labels fall.

    >>> step = Step(answer_id="a", index=0, start=0, end=3, rating=1, score=0.25)
    >>> _balance([step, replace(step, rating=None, score=None)])
    {'steps': 2, 'good': 1, 'bad': 0, 'unlabelled': 1, 'mean_score': 0.25}
    """
    steps = list(steps)
    ratings = Counter(step.rating for step in steps)
    scores = [step.score for step in steps if step.score is not None]
    mean = round(sum(scores) / len(scores), 4) if scores else None
    return {
        "steps": len(steps), "good": ratings[1], "bad": ratings[-1], "unlabelled": ratings[None], "mean_score": mean
    }  # fmt: skip
