"""Which sets are too many, and what is counted: arithmetic worked by hand."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from set_folders import write_folder

from tt_reasoning.answer_sets import Dropped, open_answers
from tt_reasoning.answer_sets.building import Kept, pool_answers
from tt_reasoning.answer_sets.statistics import DIFFICULTIES, Limits, choose_surplus, summarise


def kept(number: int, difficulty: str, source: str = "a", num_tokens: int = 10) -> Kept:
    num_correct = {"all_correct": 2, "mixed": 1}.get(difficulty, 0)
    return Kept(b"", f"p{number}", source, num_tokens, num_correct, difficulty, (0, 0))


def many(**counts: int) -> list[Kept]:
    names = [name for name, count in counts.items() for _ in range(count)]
    return [kept(number, name) for number, name in enumerate(names)]


def left(sets: list[Kept], limits: Limits, seed: int = 0) -> Counter[str]:
    surplus = choose_surplus(sets, limits, seed)
    return Counter(one.difficulty for number, one in enumerate(sets) if number not in surplus)


def test_exactly_the_share_asked_stays():
    sets = many(all_correct=50, mixed=30, all_wrong=10)
    # x / (x + 40) <= 0.2 at x = 10, and no more.
    assert left(sets, Limits(max_share_all_correct=0.2)) == {"all_correct": 10, "mixed": 30, "all_wrong": 10}
    assert left(sets, Limits(max_share_all_correct=0)) == {"mixed": 30, "all_wrong": 10}
    assert left(sets, Limits(max_share_all_correct=0.6)) == {"all_correct": 50, "mixed": 30, "all_wrong": 10}
    assert left(sets, Limits(max_share_all_wrong=0.1)) == {"all_correct": 50, "mixed": 30, "all_wrong": 8}


@given(st.lists(st.integers(0, 40), min_size=4, max_size=4), *[st.integers(0, 20).map(lambda n: n / 20)] * 2)
def test_both_shares_hold_and_one_more_set_would_break_one(counts, easy, hard):
    sets = many(**dict(zip(DIFFICULTIES, counts, strict=True)))
    found = left(sets, Limits(max_share_all_correct=easy, max_share_all_wrong=hard))
    there = Counter(one.difficulty for one in sets)
    total = found.total()
    for name, share in (("all_correct", Fraction(str(easy))), ("all_wrong", Fraction(str(hard)))):
        assert found[name] <= share * total
        assert found[name] == there[name] or found[name] + 1 > share * (total + 1)
    assert all(found[name] == there[name] for name in ("mixed", "unjudged"))


def test_the_seed_alone_decides_which_surplus_goes():
    sets = many(all_correct=100, mixed=10)
    chosen = [set(choose_surplus(sets, Limits(max_share_all_correct=0.5), seed)) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    ids = {sets[number].problem_id for number in chosen[0]}
    again = sets[::-1]  # another order of the same sets
    assert {again[number].problem_id for number in choose_surplus(again, Limits(max_share_all_correct=0.5), 0)} == ids


def test_the_cap_on_a_source_goes_before_the_balance():
    sets = [kept(n, "all_correct", "a") for n in range(8)] + [kept(n + 8, "mixed", "b") for n in range(3)]
    surplus = choose_surplus(sets, Limits(max_per_source=4, max_share_all_correct=0.5), 0)
    reasons = Counter((one.source, one.reason) for one in surplus.values())
    assert reasons == {("a", "source_surplus"): 4, ("a", "all_correct_surplus"): 1}
    assert {one.detail for one in surplus.values()} == {
        "one of 8 sets of a, 4 allowed",
        "one of 4 all-correct sets, 3 allowed",
    }


def test_sets_are_counted_by_source_size_and_correct_answers(tmp_path):
    pool = pool_answers([open_answers(write_folder(tmp_path / "answers", [["4", "5"]]))])
    sets = [kept(0, "mixed"), kept(1, "all_correct", "b", 20), kept(2, "mixed")._replace(ways=(0, 0, 0))]
    dropped = [Dropped(problem_id="p3", source="b", reason="too_long", detail="")]
    stats = summarise(sets, dropped, pool)
    assert (stats["num_problems"], stats["num_sets"], stats["share_kept"]) == (4, 3, 0.75)
    assert stats["difficulty"] == {"all_correct": 1, "mixed": 2, "all_wrong": 0, "unjudged": 0}
    assert stats["sets_by_correct"] == {"2": {"1": 1, "2": 1}, "3": {"1": 1}}
    assert stats["sets_by_num_tokens"] == {"10": 2, "20": 1}
    assert stats["num_tokens"] == pytest.approx({"mean": 40 / 3, "median": 10, "min": 10, "max": 20, "std": 4.714045})
    assert stats["sources"]["b"]["dropped"] == {"too_long": 1}
    assert (stats["sources"]["a"]["num_sets"], stats["sources"]["a"]["num_problems"]) == (2, 2)
    (way,) = stats["answers"]
    assert (way["model"], way["temperature"], way["num_answers"]) == ("tiny", 0.7, 7)
