"""What a run of answer sets came to: counts by source and difficulty, lengths, and which sets are too many."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, get_args

from tt_reasoning.answer_sets import Dropped, DropReason
from tt_reasoning.answer_sets.building import AnswerPool, Difficulty, Kept
from tt_reasoning.types import seed_of

DIFFICULTIES: tuple[Difficulty, ...] = get_args(Difficulty)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How many sets may stay: of each source, and as shares of all, those whose answers are all right or all wrong."""

    max_per_source: int | None = None
    max_share_all_correct: float = 1.0
    max_share_all_wrong: float = 1.0


def choose_surplus(kept: Sequence[Kept], limits: Limits, seed: int) -> dict[int, Dropped]:
    """The sets to leave out, by their place in ``kept``, so that the others keep the limits.

    The cap on a source goes first. Then as many easy and hard sets stay as the shares allow. Which ones is drawn: of
    every problem a number from the seed and its id, and the lowest stay.

    Example:
        >>> kept = [Kept(b"", name, "demo", 9, 2, "all_correct", (0, 0)) for name in "abc"]
        >>> kept.append(Kept(b"", "d", "demo", 9, 1, "mixed", (0, 0)))
        >>> found = choose_surplus(kept, Limits(max_share_all_correct=0.5), seed=0)
        >>> sorted(found), found[0].reason, found[0].detail
        ([0, 2], 'all_correct_surplus', 'one of 3 all-correct sets, 1 allowed')
    """
    surplus: dict[int, Dropped] = {}

    def leave_out(numbers: Iterable[int], allowed: int, reason: DropReason, what: str) -> None:
        numbers = list(numbers)
        if len(numbers) > allowed:
            numbers.sort(key=lambda number: (seed_of(seed, "stay", kept[number].problem_id), number))
        for number in numbers[allowed:]:
            detail = f"one of {len(numbers)} {what}, {allowed} allowed"
            surplus[number] = Dropped(
                problem_id=kept[number].problem_id, source=kept[number].source, reason=reason, detail=detail
            )

    if limits.max_per_source is not None:
        for source, numbers in _number_by(kept, "source").items():
            leave_out(numbers, limits.max_per_source, "source_surplus", f"sets of {source}")
    left = {
        difficulty: [number for number in numbers if number not in surplus]
        for difficulty, numbers in _number_by(kept, "difficulty").items()
    }
    shares = {"all_correct": limits.max_share_all_correct, "all_wrong": limits.max_share_all_wrong}
    allowed = _fit_shares({name: len(numbers) for name, numbers in left.items()}, shares)
    leave_out(left.get("all_correct", ()), allowed.get("all_correct", 0), "all_correct_surplus", "all-correct sets")
    leave_out(left.get("all_wrong", ()), allowed.get("all_wrong", 0), "all_wrong_surplus", "all-wrong sets")
    return surplus


def _number_by(kept: Sequence[Kept], field: str) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for number, one in enumerate(kept):
        numbers.setdefault(getattr(one, field), []).append(number)
    return numbers


def _fit_shares(counts: dict[str, int], shares: dict[str, float]) -> dict[str, int]:
    """The largest counts at which none of the named ones is above its share of all.

    >>> _fit_shares({"mixed": 6, "all_correct": 50, "all_wrong": 9}, {"all_correct": 0.2, "all_wrong": 0.2})
    {'mixed': 6, 'all_correct': 2, 'all_wrong': 2}
    """
    counts, before = dict(counts), None
    while counts != before:  # each step lowers a count towards the largest that fits, and none below it
        before = dict(counts)
        for name in shares.keys() & counts.keys():
            counts[name] = min(counts[name], int(Fraction(str(shares[name])) * sum(counts.values())))
    return counts


def summarise(kept: Sequence[Kept], dropped: Sequence[Dropped], pool: AnswerPool) -> dict[str, Any]:
    """What ``stats.json`` holds; lengths in tokens, ``std`` of the population.

    ``sets_by_correct`` counts sets by their number of answers, then of correct ones; ``difficulty`` those whose answers
    are all correct, all wrong, or both (``mixed``), or where none is right and some cannot be judged (``unjudged``);
    ``answers`` says how many answers were sampled in which way.
    """
    by_correct: dict[str, Counter[str]] = {}
    for one in sorted(kept, key=lambda one: (len(one.ways), one.num_correct)):
        by_correct.setdefault(str(len(one.ways)), Counter())[str(one.num_correct)] += 1
    drawn = Counter(way for one in kept for way in one.ways)
    sources = dict.fromkeys(one.source for one in (*kept, *dropped))
    return {
        **_count(kept, dropped),
        "sources": {
            source: _count(*([one for one in some if one.source == source] for some in (kept, dropped)))
            for source in sorted(sources)
        },
        "answers": [asdict(pool.samplings[way]) | {"num_answers": count} for way, count in sorted(drawn.items())],
        "num_problems_of_several_folders": pool.num_shared,
        "num_repeated_answers": sum(folder.num_repeated for folder in pool.folders),
        "sets_by_correct": by_correct,
        "num_tokens": _describe_lengths([one.num_tokens for one in kept]),
        "sets_by_num_tokens": {
            str(length): count for length, count in sorted(Counter(one.num_tokens for one in kept).items())
        },
    }


def _count(kept: Sequence[Kept], dropped: Sequence[Dropped]) -> dict[str, Any]:
    difficulties = Counter(one.difficulty for one in kept)
    return {
        "num_problems": len(kept) + len(dropped),
        "num_sets": len(kept),
        "share_kept": len(kept) / (len(kept) + len(dropped)),
        "dropped": dict(Counter(one.reason for one in dropped)),
        "difficulty": {difficulty: difficulties[difficulty] for difficulty in DIFFICULTIES},
    }


def _describe_lengths(lengths: Sequence[int]) -> dict[str, float]:
    return {
        "mean": statistics.fmean(lengths),
        "median": statistics.median(lengths),
        "min": min(lengths),
        "max": max(lengths),
        "std": statistics.pstdev(lengths),
    }
