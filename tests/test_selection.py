"""Votes, pass@k and bootstrap: worked by hand, and against brute force."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tt_reasoning.selection import (
    best_in_draws,
    bootstrap_interval,
    draw_orders,
    elect,
    majority_vote,
    paired_bootstrap,
    pass_at_k,
    resample_means,
    same_answer,
    vote_classes,
    vote_in_draws,
)

answers = st.lists(st.sampled_from(["4", "4.0", "5", "five", None]), max_size=8)
quarters = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=30)


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(5, 0, 3) == 0.0
    assert pass_at_k(4, 1, 1) == pytest.approx(1 / 4)
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - 3 / 10)  # 3 of the 10 pairs avoid both correct answers
    assert pass_at_k(5, 2, 4) == 1.0


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_answer(case: tuple[int, int, int]) -> None:
    n, c, k = case
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_stays_exact_where_binomials_overflow_a_float() -> None:
    exact = 1 - math.comb(9_900, 500) / math.comb(10_000, 500)
    assert pass_at_k(10_000, 100, 500) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("case", [(4, 1, 0), (4, 1, 5), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_counts_that_cannot_be(case: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="is not in"):
        pass_at_k(*case)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("18", "18.00", True), ("1,200", "$1200", True), ("1/2", "0.5", True), ("18 eggs", "18", True),
        ("Blue", "blue", True), ("x + 1", "x+1", True), ("1/0", "1/0", True), ("9" * 5000, "9" * 5000, True),
        ("18", "81", False), ("1,2", "12", False), ("50%", "0.5", False),
    ],
)  # fmt: skip
def test_same_answer_spells_as_the_grader_does(a: str, b: str, same: bool) -> None:
    assert same_answer(a, b) is same


def test_majority_counts_equal_numbers_together_and_keeps_the_first_spelling() -> None:
    assert majority_vote(["7", "4.0", None, "4"]) == "4.0"


def test_all_candidates_with_the_most_votes_win_and_one_is_named_by_the_earliest() -> None:
    classes = vote_classes(["9", "4", "5", "5", "4"])
    assert classes == [[0], [1, 4], [2, 3]]
    assert elect(classes) == [1, 2]
    assert majority_vote(["9", "4", "5", "5", "4"]) == "4"


def vote(classes: list[list[int]], right: list[bool], weights: list[list[float]] | None = None) -> list[float]:
    choices = vote_in_draws(np.array(classes), np.array(right, bool), None if weights is None else np.array(weights))
    return choices.values_T.tolist()


def test_weights_decide_a_vote() -> None:
    votes = [[0, 1, 0, 2]] * 3  # candidate 0, the right one, of answers 0 and 2; the fourth says nothing
    weights = [[0.2, 0.5, 0.2, 9.0], [0.3, 0.5, 0.3, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert vote(votes, [True, False], weights) == [0.0, 1.0, 0.5]  # 0.4 against 0.5; 0.6 against it; nothing decides
    assert vote(votes, [True, False]) == [1.0, 1.0, 1.0]


def test_weights_that_sum_to_the_same_but_for_rounding_tie() -> None:
    assert 0.1 + 0.2 != 0.3
    assert vote([[0, 0, 1]], [True, False], [[0.1, 0.2, 0.3]]) == [0.5]


def test_a_candidate_without_a_vote_in_a_draw_cannot_win_it() -> None:
    choices = vote_in_draws(np.array([[1, 2], [2, 2], [3, 3]]), np.array([True, False, True]), np.zeros((3, 2)))
    assert choices.values_T.tolist() == [0.5, 1.0, 0.0]  # all weights are 0: of 1 and 2 half are right; then 2; nobody
    assert choices.num_winners_T.tolist() == [2, 1, 0]
    assert vote([[0, 0]], []) == [0.0]


def test_the_best_of_a_draw_has_the_highest_score_and_ties_share() -> None:
    score_TK = np.array([[0.2, 0.9, 0.5], [0.3, 0.1 + 0.2, 0.0], [-np.inf, 0.0, 0.0], [-np.inf] * 3])
    right_TK = np.array([[False, True, False], [True, False, False], [True, False, True], [True, False, True]])
    choices = best_in_draws(score_TK, right_TK)
    assert choices.values_T.tolist() == [1.0, 0.5, 0.5, 0.0]
    assert choices.num_winners_T.tolist() == [1, 2, 2, 0]


@given(answers)
def test_a_vote_of_equal_weights_has_the_winners_of_the_majority(extracted: list[str | None]) -> None:
    classes = vote_classes(extracted)
    if not extracted:
        return
    numbers = {index: number for number, members in enumerate(classes) for index in members}
    votes = [numbers.get(index, len(classes)) for index in range(len(extracted))]
    winners = elect(classes)
    for right in range(len(classes)):
        worth = [number == right for number in range(len(classes))]
        expected = (classes[right][0] in winners) / len(winners)
        assert vote([votes], worth) == vote([votes], worth, [[0.7] * len(votes)]) == [expected]


def test_orders_are_permutations_of_which_every_first_answer_is_as_likely() -> None:
    orders = draw_orders(4, 4000, seed=1)
    assert (np.sort(orders) == np.arange(4)).all()
    assert np.array_equal(orders, draw_orders(4, 4000, seed=1))
    assert not np.array_equal(orders, draw_orders(4, 4000, seed=2))
    pairs = {tuple(sorted(pair)) for pair in orders[:, :2].tolist()}
    assert len(pairs) == 6
    assert np.bincount(orders[:, 0]) == pytest.approx([1000] * 4, abs=120)  # four standard deviations


@given(answers, st.integers(0, 8))
def test_the_first_answers_alone_have_the_same_candidates(extracted: list[str | None], k: int) -> None:
    for equal in (same_answer, lambda a, b: same_answer(a, b)):
        cut = [[i for i in members if i < k] for members in vote_classes(extracted, equal)]
        assert [members for members in cut if members] == vote_classes(extracted[:k], equal)


@given(answers)
def test_spelling_alike_and_comparing_each_pair_give_the_same_candidates(extracted: list[str | None]) -> None:
    assert vote_classes(extracted) == vote_classes(extracted, lambda a, b: same_answer(a, b))


def test_none_never_votes() -> None:
    assert majority_vote([None, None, "3"]) == "3"
    assert majority_vote([None, None]) is None
    assert majority_vote([]) is None


def test_a_callers_equality_decides_the_candidates() -> None:
    assert majority_vote(["one", "uno", "2", "3"], equal=lambda a, b: {a, b} == {"one", "uno"}) == "one"
    assert majority_vote(["2", "3", "3"], equal=lambda a, b: False) == "2"


@given(answers)
def test_vote_classes_partition_the_answers_that_vote(extracted: list[str | None]) -> None:
    classes = vote_classes(extracted)
    assert sorted(itertools.chain.from_iterable(classes)) == [i for i, a in enumerate(extracted) if a is not None]
    assert [members[0] for members in classes] == sorted(members[0] for members in classes)


@given(answers)
def test_no_candidate_has_more_votes_than_the_majority(extracted: list[str | None]) -> None:
    winner = majority_vote(extracted)
    votes = [sum(b is not None and same_answer(a, b) for b in extracted) for a in extracted if a is not None]
    if winner is None:
        assert votes == []
    else:
        assert sum(b is not None and same_answer(winner, b) for b in extracted) == max(votes)


def test_interval_of_two_values_is_worked_by_hand() -> None:
    # The means of two draws from {0, 1} are 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    assert bootstrap_interval([0, 1], confidence=0.9) == (0.0, 1.0)
    assert bootstrap_interval([0, 1], confidence=0.4) == (0.5, 0.5)


def test_interval_of_a_large_sample_is_the_normal_one() -> None:
    values = [0.0] * 600 + [1.0] * 400
    half = 1.96 * math.sqrt(0.4 * 0.6 / 1000)
    low, high = bootstrap_interval(values)
    assert (low, high) == (pytest.approx(0.4 - half, abs=0.003), pytest.approx(0.4 + half, abs=0.003))


@settings(max_examples=40, deadline=None)
@given(quarters)
def test_interval_contains_the_mean_and_stays_in_range(values: list[float]) -> None:
    low, high = bootstrap_interval(values, num_resamples=2000)
    assert min(values) <= low <= sum(values) / len(values) <= high <= max(values)


@settings(max_examples=20, deadline=None)
@given(quarters)
def test_more_confidence_gives_a_wider_interval(values: list[float]) -> None:
    narrow = bootstrap_interval(values, confidence=0.5, num_resamples=500)
    wide = bootstrap_interval(values, confidence=0.99, num_resamples=500)
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]


def test_a_seed_repeats_the_interval_and_another_does_not() -> None:
    values = np.random.default_rng(0).random(40).tolist()
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_memory_does_not_grow_with_resamples_times_problems() -> None:
    tracemalloc.start()
    bootstrap_interval([0.0, 1.0] * 5_000, num_resamples=2_000)  # 20 million cells, 160 MB at once
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


def test_measures_resampled_together_are_those_resampled_alone() -> None:
    table = np.random.default_rng(0).random((50, 2))
    means = resample_means(table, num_resamples=200, seed=7)
    for column in (0, 1):
        assert means[:, column] == pytest.approx(resample_means(table[:, [column]], num_resamples=200, seed=7)[:, 0])
    assert resample_means(np.array([[3.0], [5.0]]), num_resamples=500).min() == 3.0


def test_paired_difference_by_hand() -> None:
    result = paired_bootstrap([1, 1, 1, 1], [0, 0, 0, 0])
    assert result == (1.0, 1.0, 1.0, pytest.approx(1 / 10_001))  # no centred resample reaches the difference 1


def test_p_value_of_two_problems_is_worked_by_hand() -> None:
    # Differences {0, 1}: d = 1/2, d* - d is -1/2, 0, 1/2 with probability 1/4, 1/2, 1/4: half are as extreme.
    assert paired_bootstrap([1, 1], [1, 0]).p_value == pytest.approx(0.5, abs=0.02)


def test_pairing_sees_a_difference_that_separate_intervals_hide() -> None:
    b = [0.0, 1.0] * 100
    a = [min(1.0, value + (index % 10 == 0)) for index, value in enumerate(b)]  # better on one in ten, never worse
    assert bootstrap_interval(a)[0] < bootstrap_interval(b)[1]
    result = paired_bootstrap(a, b)
    assert result.low > 0 and result.p_value < 0.01


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_swapping_the_sides_flips_the_sign_and_keeps_p(pairs: list[tuple[bool, bool]]) -> None:
    a, b = zip(*pairs, strict=True)
    forward = paired_bootstrap(a, b, num_resamples=300)
    backward = paired_bootstrap(b, a, num_resamples=300)
    assert forward.difference == -backward.difference
    assert forward.low == pytest.approx(-backward.high) and forward.p_value == backward.p_value
    assert 0 < forward.p_value <= 1


def test_lists_that_do_not_pair_or_are_empty_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_bootstrap([1, 0], [1])
    with pytest.raises(ValueError, match="at least one number"):
        paired_bootstrap([], [])
    with pytest.raises(ValueError, match="at least one number"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="confidence=95"):
        bootstrap_interval([1.0], confidence=95)
