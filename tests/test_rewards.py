"""What each completion earns, part by part."""

from __future__ import annotations

import pytest

from tt_reasoning.grading import Grader
from tt_reasoning.rewards import SSAReward


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
