"""The evaluation of a tiny world, every number worked by hand."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tt_reasoning import store
from tt_reasoning.errors import UserError
from tt_reasoning.evaluation import Report, Result, describe, evaluate, format_table, read_report
from tt_reasoning.types import Answer, Problem, Sampling, Verdict

SAMPLING = Sampling(model="tiny", prompt="ssa")


def problem(number: int) -> Problem:
    return Problem(source="gsm8k", split="test", question=f"question {number}", reference="1")


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


PROBLEMS = [problem(number) for number in range(4)]
EXTRACTED = [["1", "2", "1.0"], ["2", "1", None], ["2", "2", "1"], [None, None, None]]
VERDICTS = {p.id: [verdict(text) for text in row] for p, row in zip(PROBLEMS, EXTRACTED, strict=True)}


def aggregated(*finals: tuple) -> dict:
    return {p.id: found for p, found in zip(PROBLEMS, finals, strict=True)}


def values(evaluation) -> dict[str, float]:
    return {result.method: result.value for result in evaluation.results}


def test_votes_are_worked_by_hand() -> None:
    evaluation = evaluate(PROBLEMS, VERDICTS)
    # correct: 2, 1, 1, 0 of 3; the majority picks 1 (right), 2 (tie, the earlier), 2, nothing
    assert values(evaluation) == {"pass@1": pytest.approx(4 / 12), "majority@3": 1 / 4, "pass@3": 3 / 4}
    assert evaluation.results[1].detail == {"ties": 1, "no_votes": 1}
    assert [(d.method, d.baseline, d.difference) for d in evaluation.differences] == [
        ("majority@3", "pass@1", pytest.approx(1 / 4 - 4 / 12))
    ]
    assert evaluation.counts == {
        "problems": 4, "judged": 4, "left_out": {}, "answer_reasons": {"match": 4, "mismatch": 4, "no_answer": 4},
    }  # fmt: skip


def test_every_interval_holds_its_value() -> None:
    for result in evaluate(PROBLEMS, VERDICTS).results:
        assert result.low <= result.value <= result.high
        assert result.num_problems == 4


def test_aggregator_answers_split_into_selected_synthesised_and_none() -> None:
    finals = aggregated(
        final("1", num_tokens=10),  # selected, right
        final("2", num_tokens=20, finish_reason="length"),  # selected, wrong
        final("3", num_tokens=30),  # offered were 2, 2, 1: synthesised, wrong
        final("1", num_tokens=40),  # nothing was offered: synthesised, right
    )
    evaluation = evaluate(PROBLEMS, VERDICTS, finals)
    result = evaluation.results[-1]
    assert (result.method, result.value) == ("aggregator", 0.5)
    assert result.detail == {
        "cut": 0.25,
        "mean_tokens": 25.0,
        "selected": {"num_problems": 2, "accuracy": 0.5},
        "synthesised": {"num_problems": 2, "accuracy": 0.5},
        "no_answer": {"num_problems": 0, "accuracy": None},
    }
    found = evaluation.differences[-1]
    assert (found.method, found.baseline, found.difference) == ("aggregator", "majority@3", 0.25)
    assert evaluation.counts["aggregator_reasons"] == {"match": 2, "mismatch": 2}


def test_an_aggregator_that_says_nothing_is_wrong_and_counted_apart() -> None:
    detail = evaluate(PROBLEMS, VERDICTS, aggregated(*[final(None)] * 4)).results[-1].detail
    assert detail["no_answer"] == {"num_problems": 4, "accuracy": 0.0}
    assert detail["selected"]["accuracy"] is None


def test_a_problem_that_cannot_be_judged_is_left_out_for_every_method() -> None:
    verdicts = {**VERDICTS, PROBLEMS[2].id: [verdict("2", "timeout"), verdict("2"), verdict("1", "bad_reference")]}
    finals = aggregated(final("1"), final("1", reason="timeout"), final("1"), final("1"))
    evaluation = evaluate(PROBLEMS, verdicts, finals)
    assert {result.num_problems for result in evaluation.results} == {2}
    assert {found.num_problems for found in evaluation.differences} == {2}
    assert values(evaluation)["pass@3"] == 0.5  # of problems 0 and 3
    assert evaluation.counts["left_out"] == {"timeout": 2}
    assert evaluation.counts["judged"] == 2
    assert "left out, because not every answer can be judged: timeout 2" in describe(evaluation)


def test_nothing_to_judge_is_the_users_error() -> None:
    with pytest.raises(UserError, match=r"none of the 1 problems can be judged \(bad_reference 1\)"):
        evaluate(PROBLEMS[:1], {PROBLEMS[0].id: [verdict("1", "bad_reference")]})


def test_problems_with_different_numbers_of_answers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same number of verdicts, at least one; found \[1, 3\]"):
        evaluate(PROBLEMS, {**VERDICTS, PROBLEMS[0].id: [verdict("1")]})


def test_one_answer_has_no_oracle_row_beside_pass_at_1() -> None:
    evaluation = evaluate(PROBLEMS, {name: row[:1] for name, row in VERDICTS.items()})
    assert values(evaluation) == {"pass@1": 0.25, "majority@1": 0.25}


def test_the_callers_equality_decides_the_vote_and_the_selection() -> None:
    never = evaluate(PROBLEMS, VERDICTS, aggregated(*[final("1")] * 4), equal=lambda a, b: False)
    assert never.results[1].detail["ties"] == 3  # each answer alone: every problem with a vote is a tie
    assert never.results[-1].detail["selected"]["num_problems"] == 0


def test_the_description_says_every_number() -> None:
    text = describe(evaluate(PROBLEMS, VERDICTS, aggregated(*[final("1", finish_reason="length")] * 4)))
    assert re.search(r"^aggregator +100\.0 +\[100\.0, 100\.0\] +4$", text, re.MULTILINE)
    assert "aggregator - majority@3: +75.0 points" in text
    assert "majority@3: 1 ties, 1 without a vote" in text
    assert "3 selected (100.0 % correct), 1 synthesised (100.0 % correct), 0 no answer; 10 tokens" in text
    assert "100.0 % cut" in text
    assert "aggregator: the same on every problem, so the interval is a point" in text


def test_a_table_is_aligned_in_text_and_in_markdown() -> None:
    rows = [["run", "%"], ["a", "5.0"], ["long", "50.0"]]
    assert format_table(rows) == "run      %\n----  ----\na      5.0\nlong  50.0"
    assert format_table(rows, markdown=True) == "| run  |    % |\n| ---- | ---: |\n| a    |  5.0 |\n| long | 50.0 |"
    assert format_table(rows[:1]) == "run  %\n---  --"


def report() -> Report:
    evaluation = evaluate(PROBLEMS, VERDICTS)
    return Report(
        answers="answers/demo", model="tiny", dataset="gsm8k", split="test", num_problems=4, num_answers=3,
        aggregator=None, prompt=None, results=evaluation.results, differences=evaluation.differences,
        counts=evaluation.counts, tokens={"answers": 100}, versions={},
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


def test_results_can_be_changed_only_by_a_copy() -> None:
    result = Result(method="pass@1", value=0.0, low=0.0, high=0.0, num_problems=1)
    assert replace(result, value=1.0).value == 1.0
    with pytest.raises(AttributeError):
        result.value = 1.0  # type: ignore[misc]
