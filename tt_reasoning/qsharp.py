"""What a value model learns from (Q#, arXiv 2502.20548, algorithm 1): what becomes of an answer that is left halfway.

Roll in: the current policy answers. In the first round it is the reference, later the reference that the value model of
the round before steers. Cut: of the answer's tokens, its end token among them, one is drawn uniformly, and what comes
behind it is dropped. Roll out: the reference, unguided, goes on from there. Whether the whole text is right is the
return of the last token that was kept and of every token behind it.

A cut is asked like a problem of its own, as a prefix of Math-Shepherd is, and by the same functions (``shepherd``):
``draw_answers`` writes, resumes and counts the roll-outs. Roll-ins and their verdicts are an ordinary folder of
answers; ``examples.jsonl``, written last, says that the collection is finished. No torch here.

Apart from the paper's code: problems, not samples, are held out, and a file shared by all rounds remembers which; what
cannot be judged has no return, where it counted as wrong; of a character of several tokens all are kept; every draw has
its own seed, so a killed run goes on to the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from tqdm import tqdm

from tt_reasoning import store
from tt_reasoning.answer_sets import VERDICTS, AnswerFolder, read_groups
from tt_reasoning.checking import check_settings, grade_missing, write_report
from tt_reasoning.engines.base import Engine
from tt_reasoning.errors import UserError
from tt_reasoning.generation import ANSWERS, STATS, Draw, draw_answers
from tt_reasoning.grading import Grader
from tt_reasoning.prompts import Prompt
from tt_reasoning.shepherd import Prefix, check_all_but_too_long, end_at_stop, read_rollouts, show_counts
from tt_reasoning.types import Answer, Problem, Sampling, Verdict, seed_of

if TYPE_CHECKING:
    from tt_reasoning.models.tokenizer import ChatTokenizer

CUTS = "cuts.jsonl"
EXAMPLES = "examples.jsonl"
TOOL = "collect_qsharp"
_BITS = 31  # of seed_of

Side = Literal["train", "eval"]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A text whose end has a return, as ``examples.jsonl`` holds it: ``id`` is the cut's.

    ``begun`` is the roll-in up to and with its last kept token, ``text`` the roll-out behind it. ``ended`` says that
    the whole text ended by itself at an end token. ``whole`` says that nothing was rolled out: the cut fell on the
    roll-in's last token, its end token included. ``correct`` is None where nobody could judge.
    """

    id: str
    problem_id: str
    split: Side
    begun: str
    text: str
    ended: bool
    whole: bool
    correct: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut(Prefix):
    """A roll-in (``answer``) of which the first ``end`` characters are kept: ``num_tokens`` of ``total`` tokens.

    ``verdict`` is the roll-in's; ``ended`` says that its last token is an end token, which counts among its tokens.
    """

    num_tokens: int
    total: int
    ended: bool
    verdict: Verdict

    @property
    def whole(self) -> bool:
        """Whether all of it is kept, so that nothing is rolled out."""
        return self.num_tokens == self.total


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cuts by id, in the order in which they are asked.

    ``left_out`` counts roll-ins without a cut: ``blank`` (not one token) and ``bad_reference`` (nothing can be judged
    against their problem's reference).
    """

    cuts: dict[str, Cut]
    left_out: Counter[str]

    @property
    def asked(self) -> list[Cut]:
        """Those that are rolled out."""
        return [cut for cut in self.cuts.values() if not cut.whole]


# --- which problems are held out ----------------------------------------------------------------------------------


def draw_side(problem_id: str, share: float, seed: int) -> Side:
    """Whether a problem is held out, by its id and a seed alone: no order of problems and no shard changes it.

    >>> draw_side("52cb", 0.0, seed=0), draw_side("52cb", 1.0, seed=0)
    ('train', 'eval')
    """
    return "eval" if seed_of("qsharp split", seed, problem_id) < share * 2**_BITS else "train"


def read_sides(path: Path) -> dict[str, Side]:
    """The sides of problems by id that a file remembers; none of no file.

    Raises:
        UserError: it is no such file.
    """
    try:
        sides = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except NotADirectoryError:
        raise UserError(f"--rounds-file {path}: a file stands where a folder has to be; name another") from None
    except (OSError, ValueError) as error:
        raise UserError(f"--rounds-file {path}: not a JSON file ({error}); name a new one") from None
    if not isinstance(sides, dict) or not set(map(str, sides.values())) <= set(get_args(Side)):
        raise UserError(f'--rounds-file {path}: wanted {{"problem id": "train" or "eval", ...}}; name a new one')
    return sides


def assign_sides(problem_ids: Iterable[str], share: float, seed: int, path: Path | None = None) -> dict[str, Side]:
    """The side of every problem: what the file remembers, else drawn, and then remembered there.

    Several runs may share the file at once. A problem that stands in it never changes its side.

    Raises:
        UserError: the file is none of sides.
    """
    ids = list(problem_ids)
    if path is None:
        return {name: draw_side(name, share, seed) for name in ids}
    path.parent.mkdir(parents=True, exist_ok=True)
    with store.lock(path.with_name(f".{path.name}.lock"), wait=True):
        known = read_sides(path)
        new = {name: draw_side(name, share, seed) for name in ids if name not in known}
        if new:
            store.write_json(path, dict(sorted((known | new).items())))
    return {name: known.get(name) or new[name] for name in ids}


# --- roll in ------------------------------------------------------------------------------------------------------


def draw_roll_ins(
    problems: Sequence[Problem],
    sampling: Sampling,
    num_samples: int,
    start_engine: Callable[[], Engine],
    prompt: Prompt,
    folder: Path,
    chunk_size: int,
) -> int:
    """Append the roll-ins that are missing to ``answers.jsonl``; returns how many.

    Raises:
        UserError: some failed for another reason than their prompt's length, or none could be asked at all.
    """
    draw = Draw(sampling=sampling, blocks=(num_samples,))
    with tqdm(total=len(problems) * num_samples, desc="roll in", unit="answer") as bar:
        show = partial(show_counts, bar)
        counts = draw_answers(problems, [draw], start_engine, prompt, folder, chunk_size, show)
    check_all_but_too_long(counts)
    return counts.written


def grade_roll_ins(problems: Iterable[Problem], settings: Mapping[str, object], grader: Grader, folder: Path) -> None:
    """Append the verdicts that roll-ins lack, as ``check_answers`` would.

    Args:
        settings: those of the grader, which ``verdicts.json`` keeps.

    Raises:
        UserError: the folder was graded by others.
    """
    check_settings(folder, settings)
    graded = {verdict.answer_id for verdict in store.read_records(folder / VERDICTS, Verdict)}
    problem_of = {answer.id: answer.problem_id for answer in store.read_records(folder / ANSWERS, Answer)}
    by_id = {problem.id: problem for problem in problems}
    with tqdm(total=len(problem_of), initial=len(graded), desc="grade", unit="answer") as bar:

        def grade(chunks: Iterator[list]) -> Iterator[list[Verdict]]:
            for chunk in chunks:
                yield grader.grade_many(chunk)
                bar.update(len(chunk))

        grade_missing(folder, settings, by_id, graded, grade)
    write_report(folder, settings, problem_of)


# --- cut ----------------------------------------------------------------------------------------------------------


def token_ends(tokenizer: ChatTokenizer, text: str) -> list[int]:
    """Where each token of a text ends, in characters; a token inside a character ends where the character does."""
    ends = [end for _, end in tokenizer.tokenizer.encode(text, add_special_tokens=False).offsets]
    return [*ends[:-1], len(text)] if ends else []


def choose_cut(ends: Sequence[int], ended: bool, draw: int) -> tuple[int, int]:
    """How much of an answer is kept: characters and tokens, up to a token drawn uniformly, at least one.

    Args:
        ends: where its tokens end, in characters.
        ended: whether an end token follows them.
        draw: a number in [0, 2**31): token floor(L * draw / 2**31) of the L is the last that is kept.

    The second and third token are of one character:

    >>> [choose_cut([2, 3, 3, 5], True, int(u * 2**31)) for u in (0, 0.25, 0.45, 0.65, 0.85)]
    [(2, 1), (3, 3), (3, 3), (5, 4), (5, 5)]
    """
    total = len(ends) + ended
    last = draw * total >> _BITS
    if last == len(ends):
        return (ends[-1] if ends else 0), total
    return ends[last], bisect_right(ends, ends[last])


def plan_cuts(answers: AnswerFolder, tokenizer: ChatTokenizer, stop: Sequence[str], seed: int) -> Plan:
    """Cut every roll-in of a folder, each by a draw of its own.

    The tokens are those of the text encoded anew, and the end token where it ended by itself at one.

    Args:
        tokenizer: the reference's.
        stop: strings that end an answer in place of an end token.

    Raises:
        UserError: a malformed line, or no roll-in to cut.
    """
    verdicts = {verdict.answer_id: verdict for verdict in store.read_records(answers.path / VERDICTS, Verdict)}
    plan = Plan(cuts={}, left_out=Counter())
    for number, (problem, group) in enumerate(read_groups(answers)):
        for answer in group:
            verdict = verdicts[answer.id]
            ends = token_ends(tokenizer, answer.text)
            ended = answer.finish_reason == "stop" and not end_at_stop("", answer.text, stop)[1]
            total = len(ends) + ended
            if verdict.reason == "bad_reference" or not total:
                plan.left_out["blank" if verdict.reason != "bad_reference" else "bad_reference"] += 1
                continue
            end, kept = choose_cut(ends, ended, seed_of("qsharp cut", seed, answer.id))
            identity = hashlib.sha256(f"{answer.id} {end}".encode()).hexdigest()[:16]
            plan.cuts[identity] = Cut(
                id=identity, problem=problem, number=number, answer=answer, end=end, num_tokens=kept, total=total,
                ended=ended, verdict=verdict,
            )  # fmt: skip
    if not plan.cuts:
        told = ", ".join(f"{count} {reason}" for reason, count in plan.left_out.items()) or "no answers"
        raise UserError(f"{answers.path}: no answer to cut: {told}")
    return plan


# --- what came of it ----------------------------------------------------------------------------------------------


def make_examples(
    plan: Plan, rollouts: Mapping[str, tuple[Answer, Verdict]], sides: Mapping[str, Side], stop: Sequence[str]
) -> Iterator[Example]:
    """An example of every cut that is whole or has a roll-out, in order.

    Args:
        rollouts: with their verdicts, by the cut's id.
        sides: by the problem's id.
        stop: strings that end an answer.
    """
    for cut in plan.cuts.values():
        text, ended, verdict = "", cut.ended, cut.verdict
        if not cut.whole:
            if cut.id not in rollouts:
                continue
            rollout, verdict = rollouts[cut.id]
            text, stopped = end_at_stop(cut.text, rollout.text, stop)
            ended = rollout.finish_reason == "stop" and not stopped
        yield Example(
            id=cut.id, problem_id=cut.problem.id, split=sides[cut.problem.id], begun=cut.text, text=text, ended=ended,
            whole=cut.whole, correct=verdict.correct,
        )  # fmt: skip


def write_examples(plan: Plan, sides: Mapping[str, Side], stop: Sequence[str], folder: Path) -> dict:
    """Make a collection of its answers and roll-outs; ``examples.jsonl`` comes last. Returns what ``stats.json`` says.

    Args:
        sides: of all problems of the folder, by id.
        stop: strings that end an answer.
    """
    rollouts = {
        rollout.problem_id: (rollout, verdict)
        for rollout, verdict in read_rollouts(folder)
        if verdict is not None and rollout.problem_id in plan.cuts
    }
    examples = list(make_examples(plan, rollouts, sides, stop))
    store.write_records(folder / CUTS, map(_describe_cut, plan.cuts.values()))
    stats = describe_examples(plan, rollouts, sides, examples)
    store.write_json(folder / STATS, stats)
    store.write_records(folder / EXAMPLES, examples)
    return stats


def _describe_cut(cut: Cut) -> dict:
    return {
        "id": cut.id, "problem_id": cut.problem.id, "answer_id": cut.answer.id, "end": cut.end,
        "num_tokens": cut.num_tokens, "total": cut.total, "whole": cut.whole,
    }  # fmt: skip


def describe_examples(
    plan: Plan,
    rollouts: Mapping[str, tuple[Answer, Verdict]],
    sides: Mapping[str, Side],
    examples: Sequence[Example],
) -> dict:
    """What was rolled in and out, left out and found: for ``stats.json``."""
    cuts = list(plan.cuts.values())
    cut_short = sum(rollout.finish_reason == "length" for rollout, _ in rollouts.values())
    return {
        "problems": len(sides),
        "roll_ins": len(cuts) + plan.left_out.total(),
        "roll_ins_unfinished": sum(cut.answer.finish_reason == "length" for cut in cuts),
        "left_out": {name: plan.left_out[name] for name in ("blank", "bad_reference")},
        "cuts": len(cuts),
        "whole": sum(cut.whole for cut in cuts),
        "too_long": len(plan.asked) - len(rollouts),
        "rollouts": len(rollouts),
        "unfinished": cut_short,
        "unfinished_share": round(cut_short / len(rollouts), 4) if rollouts else None,
        "not_judged": sum(example.correct is None for example in examples),
        **{side: _describe_side(side, cuts, sides, examples) for side in get_args(Side)},
    }


def _describe_side(side: Side, cuts: Sequence[Cut], sides: Mapping[str, Side], examples: Sequence[Example]) -> dict:
    """The problems of one side, the shares of roll-ins and of examples that are right (of those judged), and how many
    problems have examples of which all say the same."""
    found: dict[str, list[bool]] = {}
    for example in examples:
        if example.split == side and example.correct is not None:
            found.setdefault(example.problem_id, []).append(example.correct)
    return {
        "problems": sum(own == side for own in sides.values()),
        "roll_ins_correct": _share(cut.verdict.correct for cut in cuts if sides[cut.problem.id] == side),
        "examples": sum(map(len, found.values())),
        "correct": _share(correct for group in found.values() for correct in group),
        "no_variation": sum(len(set(group)) == 1 for group in found.values()),
    }


def _share(verdicts: Iterable[bool | None]) -> float | None:
    """The share that is right of those judged.

    >>> _share([True, None, False, False]), _share([None])
    (0.3333, None)
    """
    judged = [correct for correct in verdicts if correct is not None]
    return round(sum(judged) / len(judged), 4) if judged else None
