"""The evaluation of a tiny world, every number worked by hand."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tt_reasoning import store
from tt_reasoning.errors import UserError
from tt_reasoning.evaluation import Candidates, Report, Result, describe, evaluate, format_table, read_report
from tt_reasoning.selection import bootstrap_interval, paired_bootstrap
from tt_reasoning.types import Answer, Sampling, Verdict

SAMPLING = Sampling(model="tiny", prompt="ssa")


def verdict(extracted: str | None, reason: str = "") -> Verdict:
    """The verdict of an answer to a question whose gold answer is 1."""
    correct = None if reason in ("bad_reference", "timeout") else extracted in ("1", "1.0")
    reason = reason or ("no_answer" if extracted is None else "match" if correct else "mismatch")
    return Verdict(answer_id="any", extracted=extracted, correct=correct, reason=reason)


def final(extracted: str | None, *, num_tokens: int = 10, finish_reason: str = "stop", reason: str = "") -> tuple:
    answer = Answer(
        id="any", problem_id="any", sample_index=0, text="", num_tokens=num_tokens, finish_reason=finish_reason,
        sampling=SAMPLING,
    )  # fmt: skip
    return answer, verdict(extracted, reason)


EXTRACTED = [["1", "2", "1.0"], ["2", "1", None], ["2", "2", "1"], [None, None, None]]
TOKENS = [[10, 10, 10], [2, 4, 6], [10, 10, 4], [3, 3, 3]]
WORLD = [
    Candidates(problem_id=str(number), verdicts=tuple(map(verdict, row)), num_tokens=tuple(tokens))
    for number, (row, tokens) in enumerate(zip(EXTRACTED, TOKENS, strict=True))
]


def reading(*finals: tuple, method: str = "aggregator", k: int = 3) -> dict:
    return {(method, k): {c.problem_id: found for c, found in zip(WORLD, finals, strict=True)}}


def values(evaluation) -> dict[str, float]:
    return {result.label: result.value for result in evaluation.results}


def result_of(evaluation, label: str) -> Result:
    return next(result for result in evaluation.results if result.label == label)


def difference_of(evaluation, method: str, baseline: str):
    return next(d for d in evaluation.differences if (d.method, d.baseline) == (method, baseline))


def test_every_method_and_k_is_worked_by_hand() -> None:
    # correct: 2, 1, 1, 0 of 3
    assert values(evaluate(WORLD, [3, 1, 2])) == {
        "pass@1": pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 4),
        "oracle@1": 1 / 4, "single@1": 1 / 4,  # the first answers alone: 1, 2, 2, none
        "majority@1": 1 / 4, "length_weighted@1": 1 / 4,
        "pass@2": pytest.approx((1 + 2 / 3 + 2 / 3) / 4),  # 3 pairs: all hold a right answer, 2 of them, 2, none
        "oracle@2": 2 / 4,
        "single@2": (0.5 + 0.5) / 4,
        "majority@2": (0.5 + 0.5) / 4,  # two ties of right and wrong, then 2 twice
        "length_weighted@2": 0.5 / 4,  # the tie stays, 1/2 beats 1/4 for the wrong one
        "pass@3": 3 / 4,
        "oracle@3": 3 / 4,
        "single@3": pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 4),
        "majority@3": (1 + 0.5) / 4,
        "length_weighted@3": (1 + 0 + 1) / 4,  # in the third problem 1/4 beats 1/10 + 1/10
    }  # fmt: skip


def test_ties_and_problems_without_a_vote_are_counted() -> None:
    evaluation = evaluate(WORLD, [2, 3])
    assert result_of(evaluation, "majority@2").detail == {"ties": 2, "no_votes": 1}
    assert result_of(evaluation, "majority@3").detail == {"ties": 1, "no_votes": 1}
    assert result_of(evaluation, "length_weighted@3").detail == {"ties": 0, "no_votes": 1}


def test_scores_weigh_the_votes() -> None:
    scores = [(0.1, 0.9, 0.1), (0.3, 0.3, 5.0), (0.2, 0.2, 0.5), (1.0, 1.0, 1.0)]
    scored = [replace(c, scores={"prm": row}) for c, row in zip(WORLD, scores, strict=True)]
    # 0.9 for the wrong answer beats 0.2; a tie (the 5 says nothing); 0.5 for the right one beats 0.4; no vote
    assert values(evaluate(scored, [3]))["score_weighted@3"] == (0 + 0.5 + 1 + 0) / 4
    assert "score_weighted@3" not in values(evaluate(WORLD, [3]))


SKIPPING = [(0.9, 0.9, 0.1), (0.3, 0.8, 1.0), (0.2, "too_long", "no_steps"), (1.0, 1.0, 1.0)]


def score(world: Sequence[Candidates], **judges: Sequence[Sequence[float | str]]) -> list[Candidates]:
    return [replace(c, scores={name: rows[i] for name, rows in judges.items()}) for i, c in enumerate(world)]


def test_the_best_of_n_is_the_answer_that_the_judge_likes_best() -> None:
    evaluation = evaluate(score(WORLD, prm=SKIPPING), [1, 3])
    # a tie of right and wrong; the right one, as the answer scored 1 has no result; the only one scored is wrong; none
    assert values(evaluation)["best_of_n@3"] == (0.5 + 1 + 0 + 0) / 4
    assert result_of(evaluation, "best_of_n@3").detail == {"ties": 1, "no_choice": 1}
    assert values(evaluation)["best_of_n@1"] == 1 / 4
    assert difference_of(evaluation, "best_of_n@3", "majority@3").difference == pytest.approx(0)  # 1, 0.5, 0, 0


def test_an_answer_without_a_score_has_no_vote_and_is_counted_by_reason() -> None:
    evaluation = evaluate(score(WORLD, prm=SKIPPING), [3])
    # 0.9 + 0.1 against 0.9; 0.8 against 0.3; of 2, 2 and 1 only the first 2 votes; none
    assert values(evaluation)["score_weighted@3"] == (1 + 1 + 0 + 0) / 4
    assert result_of(evaluation, "score_weighted@3").detail == {"ties": 0, "no_votes": 1}
    assert evaluation.counts["scores"] == {"prm": {"scored": 10, "too_long": 1, "no_steps": 1}}
    text = describe(evaluation)
    assert "prm: answers without a score are never chosen and have no vote: too_long 1, no_steps 1 of 12" in text
    assert "best_of_n@3: 1 ties, 1 without a scored result" in text


def test_a_problem_whose_answers_are_all_skipped_is_wrong_for_the_judge_alone() -> None:
    evaluation = evaluate(score(WORLD[:1], prm=[("too_long",) * 3]), [3])
    assert {m: values(evaluation)[f"{m}@3"] for m in ("majority", "best_of_n", "score_weighted")} == {
        "majority": 1.0, "best_of_n": 0.0, "score_weighted": 0.0,
    }  # fmt: skip
    assert result_of(evaluation, "best_of_n@3").detail["no_choice"] == 1
    assert evaluation.counts["scores"] == {"prm": {"scored": 0, "too_long": 3}}


def test_several_judges_have_methods_of_their_own() -> None:
    judges = {"prm:min": SKIPPING, "orm": [(0.0, 1.0, 0.0)] * 4}
    evaluation = evaluate(score(WORLD, **judges), [3])
    assert [r.label for r in evaluation.results][-4:] == [
        "best_of_n[prm:min]@3", "score_weighted[prm:min]@3", "best_of_n[orm]@3", "score_weighted[orm]@3",
    ]  # fmt: skip
    found = values(evaluation)
    assert (found["best_of_n[prm:min]@3"], found["best_of_n[orm]@3"]) == ((0.5 + 1 + 0 + 0) / 4, (0 + 1 + 0 + 0) / 4)
    assert difference_of(evaluation, "best_of_n[orm]@3", "majority@3").num_problems == 4
    with pytest.raises(ValueError, match="problem 1 has scores of .*'orm'"):
        evaluate([*score(WORLD[:1], prm=SKIPPING), *score(WORLD[1:], orm=SKIPPING)], [3])
    with pytest.raises(ValueError, match="problem 0 has only 3 scores of prm"):
        evaluate(score([replace(c, verdicts=c.verdicts * 2) for c in WORLD], prm=SKIPPING), [4])


MANY = [
    Candidates(problem_id=name, verdicts=tuple(map(verdict, row)), num_tokens=tokens, scores={"a": first, "b": second})
    for name, row, tokens, first, second in (
        ("p", ["1", "2", "1.0", "3", None], (4, 2, 8, 8, 1), (0.5, 0.9, 0.6, 0.9, 1.0), (1, 1, "too_long", 1, 1)),
        ("q", ["2", "2", "1", "1", "1"], (5, 5, 5, 5, 5), (0.5, 0.5, 0.5, 0.2, 0.7), (0, 0, 0, 0, 0)),
        ("r", [None, "3", None, "1", "2"], (9, 9, 9, 1, 1), (0.1, 0.2, 0.3, 0.4, 0.5), ("no_steps",) * 5),
    )
]


def keep(c: Candidates, chosen: Sequence[int]) -> Candidates:
    """The problem with these of its answers alone."""
    return replace(
        c,
        verdicts=tuple(c.verdicts[i] for i in chosen),
        num_tokens=tuple(c.num_tokens[i] for i in chosen),
        scores={name: [found[i] for i in chosen] for name, found in c.scores.items()},
    )


def test_subsets_of_all_answers_give_the_plain_results_exactly() -> None:
    plain, drawn = evaluate(MANY, [5]), evaluate(MANY, [5], subsamples=7, subsample_seed=3)
    spread = {r.label: r.detail.pop("spread") for r in drawn.results if not r.label.startswith("pass")}
    assert len(spread) == 8 and set(spread.values()) == {0.0}
    assert (drawn.results, drawn.differences) == (plain.results, plain.differences)


def test_means_over_subsets_come_near_those_over_all_subsets_there_are() -> None:
    triples = [[keep(c, chosen) for c in MANY] for chosen in itertools.combinations(range(5), 3)]
    plain = [values(evaluate(world, [3])) for world in triples]
    exact = {label: sum(found[label] for found in plain) / 10 for label in plain[0] if label != "pass@1"}
    evaluation = evaluate(MANY, [2, 3], subsamples=4000)
    found = values(evaluation)
    # A problem's value lies in [0, 1]: the mean over three has a standard error of 0.005 or less.
    assert {label: found[label] for label in exact} == pytest.approx(exact, abs=0.02)
    assert found["pass@3"] == pytest.approx(exact["oracle@3"])
    assert found["pass@1"] == pytest.approx(exact["single@3"])
    tokens = {r.label: r.answer_tokens for r in evaluation.results}
    assert tokens["majority@3"] == pytest.approx(3 * (23 + 25 + 29) / 15)
    detail = result_of(evaluation, "best_of_n[a]@2").detail
    assert detail["no_choice"] == pytest.approx(1 / 10, abs=0.02)  # r draws its two answers without a result
    assert detail["ties"] == pytest.approx(1 / 10 + 3 / 10, abs=0.03)  # p the two of 0.9, q two of its three of 0.5
    compared = {(d.method, d.baseline) for d in evaluation.differences}
    assert {("pass@1", "majority@2"), ("pass@3", "majority@3"), ("best_of_n[b]@2", "majority@2")} <= compared
    assert ("pass@2", "majority@3") not in compared


def test_the_spread_over_subsets_is_that_of_their_accuracies() -> None:
    drawn = evaluate([keep(MANY[0], [0, 1])], [1, 2], subsamples=100)  # one answer of two: 0 or 1
    majority = result_of(drawn, "majority@1")
    assert 0.3 < majority.value < 0.7
    assert majority.detail["spread"] == pytest.approx(math.sqrt(majority.value * (1 - majority.value)))
    text = describe(drawn)
    line = next(line for line in text.splitlines() if line.startswith("majority@1 "))
    assert line.split()[-1] == f"{100 * majority.detail['spread']:.1f}"
    assert text.count("spread") == 2 and "spread" not in describe(evaluate(MANY, [5]))


def test_the_same_seed_draws_the_same_subsets_of_a_problem_whichever_others_there_are() -> None:
    first, again = (evaluate(MANY, [2, 3], subsamples=20, subsample_seed=1) for _ in range(2))
    assert first == again
    assert values(first) != values(evaluate(MANY, [2, 3], subsamples=20, subsample_seed=2))
    alone = [values(evaluate([c], [3], subsamples=20, subsample_seed=1)) for c in MANY]
    assert values(first)["majority@3"] == pytest.approx(sum(found["majority@3"] for found in alone) / 3)


def test_answers_that_a_problem_lacks_count_as_without_a_result() -> None:
    short = keep(MANY[1], [2])  # one right answer, where another problem has five
    drawn = evaluate([MANY[0], short], [1, 5], subsamples=2000)
    found = values(drawn)
    assert drawn.counts["padded"] == 4
    assert sum(drawn.counts["answer_reasons"].values()) == 6
    assert found["pass@1"] == pytest.approx((2 / 5 + 1 / 5) / 2)
    assert found["best_of_n[a]@1"] == pytest.approx((2 / 5 + 1 / 5) / 2, abs=0.04)
    assert found["majority@5"] == (1 + 1) / 2
    assert result_of(drawn, "majority@5").answer_tokens == (23 + 5) / 2
    assert "4 answers that problems lack of the most that one has" in describe(drawn)
    with pytest.raises(ValueError, match="does not fit problems with 1 answers"):
        evaluate([MANY[0], short], [5])


def test_subsets_are_not_for_readers_and_not_more_than_there_is() -> None:
    with pytest.raises(ValueError, match="subsamples=4 with 1 readings"):
        evaluate(WORLD, [3], reading(*[final("1")] * 4), subsamples=4)
    with pytest.raises(ValueError, match="subsamples=0"):
        evaluate(WORLD, [3], subsamples=0)
    with pytest.raises(ValueError, match="does not fit problems with 3 answers"):
        evaluate(WORLD, [4], subsamples=4)


def test_pass_at_k_uses_every_answer_and_the_other_methods_the_first_k() -> None:
    more = [replace(c, verdicts=(*c.verdicts, verdict("1")), num_tokens=(*c.num_tokens, 7)) for c in WORLD]
    before, after = values(evaluate(WORLD, [3])), values(evaluate(more, [3]))
    assert after["pass@1"] == pytest.approx((3 + 2 + 2 + 1) / 4 / 4)
    assert after["pass@3"] == pytest.approx((1 + 1 + 1 + 3 / 4) / 4)  # one right of 4: 3 of the 4 triples hold it
    for label in ("oracle@3", "single@3", "majority@3", "length_weighted@3"):
        assert after[label] == before[label]


def test_only_methods_that_have_the_same_answers_are_compared() -> None:
    compared = [(d.method, d.baseline) for d in evaluate(WORLD, [2, 3]).differences]
    assert compared == [
        *((m, "majority@2") for m in ("oracle@2", "single@2", "length_weighted@2")),
        *((m, "majority@3") for m in ("pass@1", "pass@3", "oracle@3", "single@3", "length_weighted@3")),
    ]


def test_tokens_are_those_of_the_answers_used_and_of_the_reader() -> None:
    finals = reading(*(final("1", num_tokens=n) for n in (10, 20, 30, 40)))
    spent = {r.label: (r.answer_tokens, r.reader_tokens) for r in evaluate(WORLD, [2, 3], finals).results}
    assert spent["pass@1"] == (pytest.approx((10 + 4 + 8 + 3) / 4), 0)
    assert spent["pass@2"] == (pytest.approx(2 * (10 + 4 + 8 + 3) / 4), 0)
    assert spent["single@2"] == (13 / 2, 0)
    assert spent["majority@2"] == ((20 + 6 + 20 + 6) / 4, 0)
    assert spent["majority@3"] == ((30 + 12 + 24 + 9) / 4, 0)
    assert spent["aggregator@3"] == ((30 + 12 + 24 + 9) / 4, 25.0)


def test_intervals_and_differences_are_those_of_the_values_of_each_problem() -> None:
    evaluation = evaluate(WORLD, [2, 3], reading(*(final(text) for text in ("1", "2", "1", "1"))))
    majority, single, finals = [1, 0.5, 0, 0], [2 / 3, 1 / 3, 1 / 3, 0], [1, 0, 1, 1]
    result = result_of(evaluation, "majority@3")
    assert (result.low, result.high) == pytest.approx(bootstrap_interval(majority))
    for method, row in (("pass@1", single), ("aggregator@3", finals)):
        found = difference_of(evaluation, method, "majority@3")
        assert (found.difference, found.low, found.high, found.p_value) == pytest.approx(
            paired_bootstrap(row, majority)
        )
    assert difference_of(evaluation, "aggregator@3", "majority@3").difference == 3 / 4 - 1.5 / 4


def test_every_interval_holds_its_value() -> None:
    for result in evaluate(WORLD, [1, 2, 3]).results:
        assert result.low <= result.value <= result.high
        assert result.num_problems == 4


def test_counts_hold_the_outcome_of_every_verdict() -> None:
    counts = evaluate(WORLD, [3], reading(*(final(text) for text in ("1", "2", None, "1")))).counts
    none = {"bad_reference": 0, "timeout": 0, "error": 0}
    assert counts == {
        "problems": 4, "judged": 4, "left_out": {},
        "answer_reasons": {"match": 4, "mismatch": 4, "no_answer": 4, **none},
        "reader_reasons": {"aggregator@3": {"match": 2, "mismatch": 1, "no_answer": 1, **none}},
        "scores": {}, "padded": 0,
    }  # fmt: skip


def test_a_readers_answers_split_into_selected_synthesised_and_none() -> None:
    finals = reading(
        final("1", num_tokens=10),  # selected, right
        final("2", num_tokens=20, finish_reason="length"),  # selected, wrong
        final("3", num_tokens=30),  # offered were 2, 2, 1: synthesised, wrong
        final("1", num_tokens=40),  # nothing was offered: synthesised, right
    )
    result = result_of(evaluate(WORLD, [3], finals), "aggregator@3")
    assert result.value == 0.5
    assert result.detail == {
        "cut": 0.25,
        "mean_tokens": 25.0,
        "selected": {"num_problems": 2, "accuracy": 0.5},
        "synthesised": {"num_problems": 2, "accuracy": 0.5},
        "no_answer": {"num_problems": 0, "accuracy": None},
    }


def test_a_reader_of_two_answers_selects_among_these_two() -> None:
    finals = reading(*[final("1")] * 4, method="usc", k=2)
    result = result_of(evaluate(WORLD, [2, 3], finals), "usc@2")
    assert result.detail["selected"]["num_problems"] == 2  # the third problem offers 1 only as its third answer
    assert "usc@3" not in values(evaluate(WORLD, [2, 3], finals))


def test_a_reader_that_says_nothing_is_wrong_and_counted_apart() -> None:
    detail = evaluate(WORLD, [3], reading(*[final(None)] * 4)).results[-1].detail
    assert detail["no_answer"] == {"num_problems": 4, "accuracy": 0.0}
    assert detail["selected"]["accuracy"] is None


def test_a_problem_that_cannot_be_judged_is_left_out_for_every_method_and_k() -> None:
    world = [*WORLD]
    world[2] = replace(WORLD[2], verdicts=(verdict("2"), verdict("2", "timeout"), verdict("1", "bad_reference")))
    finals = reading(final("1"), final("1", reason="timeout"), final("1"), final("1"))
    evaluation = evaluate(world, [1, 3], finals)
    assert {result.num_problems for result in evaluation.results} == {2}
    assert {found.num_problems for found in evaluation.differences} == {2}
    assert values(evaluation)["pass@3"] == 0.5  # of problems 0 and 3
    assert evaluation.counts["left_out"] == {"timeout": 2}
    assert evaluation.counts["judged"] == 2
    assert "left out, because not every answer can be judged: timeout 2" in describe(evaluation)


def test_nothing_to_judge_is_the_users_error() -> None:
    world = [replace(WORLD[0], verdicts=(verdict("1", "bad_reference"),))]
    with pytest.raises(UserError, match=r"none of the 1 problems can be judged \(bad_reference 1\)"):
        evaluate(world, [1])


def test_more_answers_than_a_problem_has_are_refused() -> None:
    for ks in ([4], [0], []):
        with pytest.raises(ValueError, match="does not fit problems with 3 answers"):
            evaluate(WORLD, ks)


def test_problems_may_have_different_numbers_of_answers() -> None:
    world = [*WORLD[:3], replace(WORLD[3], verdicts=(verdict("1"),) * 5, num_tokens=(1,) * 5)]
    assert values(evaluate(world, [3]))["pass@1"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 3 + 1) / 4)


def test_the_callers_equality_decides_the_vote_and_the_selection() -> None:
    never = evaluate(WORLD, [3], reading(*[final("1")] * 4), equal=lambda a, b: False)
    majority = result_of(never, "majority@3")
    assert majority.detail["ties"] == 3  # each answer alone: every problem with a vote is a tie
    assert majority.value == pytest.approx((2 / 3 + 1 / 2 + 1 / 3) / 4)
    assert never.results[-1].detail["selected"]["num_problems"] == 0


def test_categories_have_their_own_accuracies_and_counts() -> None:
    named = [replace(c, category=name) for c, name in zip(WORLD, ("law", "art", "law", None), strict=True)]
    evaluation = evaluate(named, [3])
    found = {(c.category, c.method, c.k): (c.value, c.num_problems) for c in evaluation.categories}
    assert found["law", "majority", 3] == (0.5, 2)
    assert found["law", "pass", 1] == (pytest.approx(0.5), 2)
    assert found["art", "majority", 3] == (0.5, 1)
    assert found["(none)", "oracle", 3] == (0.0, 1)
    assert len(found) == 3 * len(evaluation.results)
    assert all(c.low <= c.value <= c.high for c in evaluation.categories)
    assert evaluate(WORLD, [3]).categories == ()


def test_the_description_of_votes_has_no_table_of_readers() -> None:
    assert "reader" not in describe(evaluate(WORLD, [3]))


def test_the_description_says_every_number() -> None:
    text = describe(evaluate(WORLD, [2, 3], reading(*[final("1", finish_reason="length")] * 4)))
    first, second, readers, outcomes, note = text.split("\n\n")
    assert re.search(r"^majority@2 +25\.0 +\[0\.0, 50\.0\] +13$", first, re.MULTILINE)
    assert re.search(r"^pass@1 +33\.3 +\[[^]]*\] +6$", first, re.MULTILINE)  # of 3 answers: not compared
    assert re.search(r"^single@2 +25\.0 +\[[^]]*\] +\+0\.0 \[[^]]*\] +1 +6$", first, re.MULTILINE)
    assert re.search(r"^pass@1 +33\.3 +\[[^]]*\] +-4\.2 \[[^]]*\] +[01]\.?\d* +6$", second, re.MULTILINE)
    assert "oracle@2" in first and "oracle@3" not in second and "single@3" not in second  # pass says it there
    assert re.search(r"^aggregator@3 +100\.0 +\[100\.0, 100\.0\] +\+62\.5 .* 29$", second, re.MULTILINE)
    assert "majority@3: 1 ties, 1 without a vote" in second
    assert readers.splitlines()[2].split() == ["aggregator@3", "3", "100.0", "1", "100.0", "0", "10", "100.0"]
    assert outcomes.splitlines()[0].split() == ["outcomes", "match", "mismatch", "no_answer"]
    assert [line.split() for line in outcomes.splitlines()[2:]] == [
        ["answers", "4", "4", "4"], ["aggregator@3", "4", "0", "0"],
    ]  # fmt: skip
    assert note == "aggregator@3: the same on every problem, so the interval is a point and says too little"


def test_a_table_is_aligned_in_text_and_in_markdown() -> None:
    rows = [["run", "%"], ["a", "5.0"], ["long", "50.0"]]
    assert format_table(rows) == "run      %\n----  ----\na      5.0\nlong  50.0"
    assert format_table(rows, markdown=True) == "| run  |    % |\n| ---- | ---: |\n| a    |  5.0 |\n| long | 50.0 |"
    assert format_table(rows[:1]) == "run  %\n---  --"


def report() -> Report:
    evaluation = evaluate([replace(c, category="art") for c in WORLD], [1, 3], reading(*[final("1")] * 4))
    return Report(
        answers="answers/demo", model="tiny", dataset="gsm8k", split="test", num_problems=4, num_samples=3,
        most_samples=3, num_answers=(1, 3), aggregator="a", prompt="ssa", usc_model=None, results=evaluation.results,
        differences=evaluation.differences, categories=evaluation.categories, counts=evaluation.counts,
        settings={"evaluate": {"seed": 0}}, versions={},
    )  # fmt: skip


def test_a_report_comes_back_as_it_was_written(tmp_path: Path) -> None:
    store.write_json(tmp_path / "results.json", asdict(report()))
    assert read_report(tmp_path / "results.json") == report()


def test_a_malformed_report_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    good = asdict(report())
    bad = [
        "{", "[]", json.dumps({**good, "results": 3}), json.dumps({**good, "extra": 1}),
        json.dumps({**good, "num_answers": "4"}), json.dumps({name: good[name] for name in ("answers", "model")}),
    ]  # fmt: skip
    for text in bad:
        path.write_text(text)
        with pytest.raises(UserError, match=str(path)):
            read_report(path)


def test_a_report_of_another_format_says_so(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for number, words in ((None, "its format is 1"), (3, "its format is 3")):
        row = {**asdict(report()), "format": number} if number else {"answers": "a", "num_answers": 4, "results": []}
        path.write_text(json.dumps(row))
        with pytest.raises(UserError, match=f"{words}, this version reads 2; evaluate again into a new folder"):
            read_report(path)


def test_results_can_be_changed_only_by_a_copy() -> None:
    result = Result(method="pass", k=1, value=0.0, low=0.0, high=0.0, num_problems=1, answer_tokens=1.0)
    assert replace(result, value=1.0).value == 1.0
    with pytest.raises(AttributeError):
        result.value = 1.0  # type: ignore[misc]
