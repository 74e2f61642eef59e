"""What each completion earns, part by part."""

from __future__ import annotations

import pytest

from tt_reasoning.grading import Grader
from tt_reasoning.rewards import SSAReward, WorkingOutReward
from tt_reasoning.working_out import write_response


@pytest.fixture(scope="module")
def grader() -> Grader:
    with Grader() as grader:
        yield grader


@pytest.mark.parametrize(
    ("text", "reference", "parts"),
    [
        ("<think>a</think> <answer>18</answer>", "18", {"identical": 100}),
        ("<think>a</think> <answer>36/2</answer>", "18", {"equal": 80}),
        ("<think>if 2 < 3 and x<y</think> <answer>18</answer>", "18", {"identical": 100}),
        ("<think>a</think> <answer>17</answer>", "18", {"answer_tag": 5, "think_tag": 5}),
        ("<think>a <answer>17</answer>", "18", {"answer_tag": 5}),
        ("<answer>18</answer> or <answer>17</answer>", "18", {"some_tag_equal": 20, "contains": 10}),
        ("<think>a</think> <answer>either 18 or 17</answer>", "18", {"answer_tag": 5, "think_tag": 5, "contains": 10}),
        ("<think>a</think> <answer>118</answer>", "18", {"answer_tag": 5, "think_tag": 5}),
        ("<think>18", "18", {}),
        ("<think>a</think> The answer is 18", "18", {"think_tag": 5}),
        ("", "18", {}),
    ],
)
def test_parts_of_the_reward(grader: Grader, text: str, reference: str, parts: dict[str, float]) -> None:
    assert SSAReward()(text, reference, grader.grade(text, reference)) == parts


def test_a_weight_of_zero_takes_a_part_out(grader: Grader) -> None:
    text = "<think>a</think> <answer>17</answer>"
    assert SSAReward(think_tag=0)(text, "18", grader.grade(text, "18")) == {"answer_tag": 5}


FORM = {"format_exact": 3.0, "format_approximate": 2.0}


@pytest.mark.parametrize(
    ("text", "reference", "parts"),
    [
        (write_response("a", "42"), "42", {**FORM, "answer_exact": 3, "number": 1.5}),
        (write_response("a", "$1,200.00"), "1200", {**FORM, "answer_exact": 3, "number": 1.5}),
        (write_response("a", "84/2"), "42", {**FORM, "answer_exact": 3, "number": 1.5}),
        (write_response("a", "42 apples"), "42", {**FORM, "answer_exact": 3, "number": 1.5}),
        (write_response("a", "45"), "42", {**FORM, "answer_near": 1}),  # 7 % above
        (write_response("a", "50"), "42", {**FORM, "answer_near": 0.5}),  # 19 % above
        (write_response("a", "36"), "42", {**FORM, "answer_near": 0.5}),  # 14 % below
        (write_response("a", "51"), "42", {**FORM, "answer_wrong": -1}),
        (write_response("a", "-42"), "42", {**FORM, "answer_wrong": -1}),
        (write_response("a", "0.1"), "0", {**FORM, "answer_wrong": -1}),  # nothing is near 0
        (write_response("a", "many"), "42", {**FORM, "answer_wrong": -1}),
        (write_response("a", "it is 42, I think"), "42", {**FORM, "number": 1.5, "answer_wrong": -1}),
        (write_response("a", "42") + " Done.", "42", {"format_approximate": 2, "answer_exact": 3, "number": 1.5}),
        ("so <SOLUTION>42</SOLUTION>", "42", {"format_approximate": 1, "answer_exact": 3, "number": 1.5}),
        ("so <SOLUTION>42", "42", {"format_approximate": 0.5, "number": 1.5}),
        ("42 it is: <SOLUTION>43", "42", {"format_approximate": 0.5}),
        ("6 * 7 = 42", "42", {"number": 1.5}),
        ("The answer is 42. I am 7.", "42", {"number": 1.5}),
        # The form's answer counts, and no other: what the grader reads first stands in another tag.
        ("<answer>42</answer><SOLUTION>7</SOLUTION>", "42", {"format_approximate": 1, "answer_wrong": -1}),
        ("42 <SOLUTION></SOLUTION>", "42", {"format_approximate": 1}),
        ("<SOLUTION>2:3</SOLUTION>", "2:3", {"format_approximate": 1, "answer_exact": 3}),
        ("", "42", {}),
    ],
)
def test_parts_of_the_studys_reward(grader: Grader, text: str, reference: str, parts: dict[str, float]) -> None:
    assert WorkingOutReward()(text, reference, grader.grade(text, reference)) == parts


@pytest.mark.parametrize(
    ("name", "earned"),
    [
        ("format_exact", "42"), ("format_approximate", "42"), ("answer_exact", "42"), ("number", "42"),
        ("answer_near", "45"), ("answer_wrong", "7"),
    ],
)  # fmt: skip
def test_every_part_of_the_studys_reward_has_its_weight(grader: Grader, name: str, earned: str) -> None:
    text = write_response("a", earned)
    verdict = grader.grade(text, "42")
    before = WorkingOutReward()(text, "42", verdict)
    assert WorkingOutReward(**{name: 0.0})(text, "42", verdict) == {k: v for k, v in before.items() if k != name}
    assert WorkingOutReward(**{name: 8.0})(text, "42", verdict) == {**before, name: 8.0}


def test_a_response_in_the_form_earns_more_the_better_its_answer_is(grader: Grader) -> None:
    texts = [write_response("a", answer) for answer in ("42", "45", "50", "7")] + ["so <SOLUTION>7</SOLUTION>", "?"]
    rewards = [sum(WorkingOutReward()(text, "42", grader.grade(text, "42")).values()) for text in texts]
    assert rewards == [9.5, 6.0, 5.5, 4.0, 0.0, 0.0]
