"""The second rule set: that it reads, spells and compares as it says, by itself, and that nothing stops it."""

from __future__ import annotations

import ast
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tt_reasoning.grading import audit as grading_audit
from tt_reasoning.grading.audit import Unreadable, audit, disagree, evaluate, find_answer, same
from tt_reasoning.store import dump_record
from tt_reasoning.types import Kind, Verdict


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The final answer is $x+1$. I hope it is correct.", "x+1"),
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("so $\\boxed 3$", "3"),
        ("Hence the answer is 18. It was easy.", "18"),
        ("THE ANSWER IS: 3.50", "3.50"),
        ("16 - 3 = 13\n#### 1,234", "1,234"),
        ("答案是 5。", "5。"),
        ("<think>\\boxed{3}</think><answer> 4 </answer>", "4"),
        ("<answer>\\boxed{4}</answer>", "4"),
        ("x^2 + 1", "x^2 + 1"),
        ("So it is 4.", None),
        ("İ" * 50 + " the answer is 5", "5"),  # its small letter is two characters
    ],
)
def test_the_first_form_that_is_there_gives_the_answer(text: str, answer: str | None) -> None:
    assert find_answer(text) == answer


def test_the_last_number_counts_only_when_asked_for() -> None:
    assert find_answer("First 3, so there are -1,234.5 left.", last_number=True) == "-1234.5"
    assert find_answer("First 3, so there are -1,234.5 left.") is None
    assert find_answer("That makes 8-4 of them.", last_number=True) == "4"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\\dfrac12", "0.5"),
        ("$1{,}200.00$", "1200"),
        ("10,\\!080", "10080"),
        ("15\\mbox{ cm}^2", "15"),
        ("18 eggs", "18"),
        ("50\\%", "50"),
        ("90^\\circ", "90"),
        ("Twelve", "12"),
        ("1\\frac{4}{5}", "9/5"),
        ("2 1/2", "2.5"),
        ("\\text{East}", "east"),
        ("\\text{(C)}", "C"),
        ("4210_{5}", "4210"),
        ("2, 1", "\\{1,2\\}"),
        ("1 and 2", "2,1"),
        ("1 \\pm \\sqrt{19}", "1-\\sqrt{19}, 1+\\sqrt{19}"),
        ("(3, \\frac{\\pi}{2})", "\\left(3,\\tfrac{1}{2}\\pi\\right)"),
        ("\\begin{bmatrix} 0.2 \\\\ 2 \\end{bmatrix}", "\\begin{pmatrix} 1/5 \\\\ 2 \\end{pmatrix}"),
        ("(-\\infty,2)\\cup(3,4)", "(3,4)\\cup(-\\infty,2)"),
        ("2(k+1)", "2k+2"),
        ("\\sqrt{8}", "2\\sqrt2"),
        ("\\frac{1}{\\sqrt2}", "\\frac{\\sqrt{2}}{2}"),
        ("\\sin^2 x+\\cos^2 x", "1"),
        ("x=5", "5"),
        ("y=2x+3", "2y-4x=6"),
        ("9*2=18", "18"),
    ],
)
def test_equal_answers_are_equal_both_ways(one: str, other: str) -> None:
    assert same(one, other)
    assert same(other, one)


def test_a_sentence_with_one_number_says_that_number() -> None:
    assert same("Janet makes $18 a day", "18")
    assert not same("Janet makes $18 or $20 a day", "18")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("10001", "10000"),
        ("50", "0.5"),
        ("0.333333", "1/3"),
        ("1.414214", "\\sqrt2"),
        ("band", "b"),
        ("i", "j"),
        ("21/2", "2 1/2"),
        ("1 2", "12"),
        ("5 million", "5"),
        ("18 or 20", "18"),
        ("(1,2)", "[1,2]"),
        ("(2,1)", "(1,2)"),
        ("(1,2)", "1,2"),
        ("1,2", "1,2,3"),
        ("4210_5", "4210_6"),
        ("x^2+2x+5=0", "x^2+3x+7=0"),
        ("y=2x", "y=3x"),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\\\3\\\\4\\end{pmatrix}"),
        ("5x", "5"),
        ("9^(9^9)", "18"),
        ("400!!", "18"),
    ],
)
def test_unequal_answers_are_unequal_both_ways(one: str, other: str) -> None:
    assert not same(one, other)
    assert not same(other, one)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("\\boxed{B}. This is a solid choice.", "B"),
        ("The answer is (c).", "C"),
        ("Let us see.\nD", "D"),
        ("The answer is Because", None),
        ("Dogs bark.", None),
    ],
)
def test_a_choice_is_a_marked_letter(text: str, letter: str | None) -> None:
    assert audit(text, "B", "choice").extracted == letter


def test_it_agrees_where_both_judge_and_where_neither_matches() -> None:
    def verdict(correct: bool | None, reason: str) -> Verdict:
        return Verdict(answer_id="", extracted="4", correct=correct, reason=reason)

    right, wrong, unknown = verdict(True, "match"), verdict(False, "mismatch"), verdict(None, "timeout")
    assert not disagree(right, right) and not disagree(wrong, wrong) and not disagree(unknown, wrong)
    assert disagree(right, wrong) and disagree(wrong, right) and disagree(unknown, right)


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9}}", "10^{5000}", "401!", "((((" * 100, "-" * 400 + "1", "\\sin" * 399 + "1", "\\frac" * 200, "1/0",
        "0^{-1}", "x+", "", "\\unknown", "1" * 1000 + "^{999}", "\\tan^{999}1e^{999}", "e^{e^{e^{e}}}",
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_said_to_be_so(text: str) -> None:
    with pytest.raises(Unreadable):
        evaluate(text)


@settings(max_examples=200, deadline=None)
@given(st.fractions(max_denominator=1000), st.fractions(max_denominator=1000))
def test_arithmetic_is_exact(a: Fraction, b: Fraction) -> None:
    one, other = (f"({x.numerator}/{x.denominator})" for x in (a, b))
    assert evaluate(f"{one}+{other}") == a + b
    assert evaluate(f"{one}\\cdot{other}-{other}^2") == a * b - b**2
    assert same(f"\\frac{{{a.numerator}}}{{{a.denominator}}}", str(b)) == (a == b)


PARTS = [
    "\\boxed{", "}", "{", "the answer is ", "<answer>", "</answer>", "\\frac", "1", "/", "0", "^", "(", "[", ")", ",",
    "=", "\\sqrt", "x", "!", "\\pm", "\\sin", "|", "99", "\\\\", "&", "\\begin{pmatrix}", "\\end{pmatrix}", "\\cup",
    "_5", " ", "\n",
]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.characters(exclude_categories=()), max_size=20)
    | st.lists(st.sampled_from(PARTS), max_size=25).map("".join),
    st.sampled_from(["18", "\\pi", "(1,2)", "x=5", "B", "\ud800", "{", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"]),
    st.sampled_from(["math", "choice", "numeric"]),
)
def test_any_text_gets_a_verdict_that_can_be_stored(text: str, reference: str, kind: Kind) -> None:
    assert dump_record(audit(text, reference, kind, last_number=True)).encode()


HUGE = [
    "\\boxed{" * 100_000, "1" * 1_000_000, "1," * 500_000, "<answer>" * 100_000 + "</answer>" * 9,
    "the answer is " * 70_000, "\\boxed{" + "(" * 900 + "}", "." + "0" * 900 + "1",
]  # fmt: skip


@pytest.mark.parametrize("text", HUGE, ids=range(len(HUGE)))
def test_a_huge_text_gets_a_verdict(text: str) -> None:
    assert audit(text, "\\pi", last_number=True).correct is False


def test_no_rule_is_the_graders() -> None:
    tree = ast.parse(Path(grading_audit.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {module for module in imported if module.startswith("tt_reasoning")} == {"tt_reasoning.types"}
