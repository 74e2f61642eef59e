"""The grader: what counts as the answer, what counts as equal, and that nothing hangs or crashes the caller."""

from __future__ import annotations

import asyncio
import doctest
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tt_reasoning.grading import (
    MAX_ANSWER,
    Grader,
    _shared_pool,
    accuracy,
    compare_fast,
    compare_numbers,
    count_reasons,
    extract,
    extract_answer,
    grade,
    normalize,
    values,
)
from tt_reasoning.store import dump_record
from tt_reasoning.types import Kind, Verdict

ROOT = Path(__file__).parents[2]
HANGS = "9^{9^{9}} \\mod 7"  # sympy computes a number of 370 million digits first


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(timeout_s=20) as grader:
        yield grader


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("16 - 3 - 4 = 9\n#### 18", "18"),
        ("#### 1,234\n", "1,234"),
        ("The Answer is: 18", "18"),
        ("the final answer is 3.50. Then she rests.", "3.50"),
        ("THE ANSWER IS: 5!", "5!"),
        ("The answer is 5! Well done.", "5"),
        ("**The Answer is:** 18.", "18"),
        ("The Answer is:\n\n18", "18"),
        ("The answer is 11,\\! 111.", "11,\\! 111"),
        ("The answer is Mrs. Hilt. She won.", "Mrs. Hilt"),
        ("The answer is \\[\n(1,\n2)\n\\] as shown.", "(1,\n2)"),
        ("so $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("\\fbox{7}", "7"),
        ("\\boxed{x = \\boxed{3}}", "3"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("<answer> 4 </answer>", "4"),
        ("<ANSWER>so \\boxed{4}</ANSWER>", "4"),
        ("<start_working_out>2 * 2 = 4<end_working_out>\n<SOLUTION>4</SOLUTION>", "4"),
        ("<SOLUTION> $1,234 </SOLUTION>", "$1,234"),
        ("<SOLUTION>The answer is 4.</SOLUTION>", "4"),
        ("<answer>#### 4</answer>", "4"),
        ("The correct answer is 4.", "4"),
        ("My final answer is: 4", "4"),
        ("So answer is $4$. I wonder which answer is best.", "4"),
        ("Let us see.\n**Final Answer:** 4\nThat is all.", "4"),
        ("So $x=14$.\n\n# Answer\n\n14", "14"),  # PRM800K
        ("答案是：4。", "4。"),
        ("The answer is \u200e18\u200b", "18"),
    ],
)  # fmt: skip
def test_every_form_of_a_marker_is_read(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>\\boxed{3} or #### 5</think><answer>4</answer> The answer is 6", "4"),
        ("\\boxed{3} and later The answer is 4", "3"),
        ("#### Step 2: add\nThe answer is 4", "4"),
        ("The answer is 4\n#### 5", "5"),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<start_working_out>\\boxed{3} or #### 5<end_working_out><SOLUTION>4</SOLUTION> The answer is 6", "4"),
        ("<SOLUTION>1</SOLUTION> no, <SOLUTION>2</SOLUTION>", "2"),
        ("<answer>1</answer><SOLUTION>2</SOLUTION>", "1"),
        ("<solution>She has 2.</solution> #### 4", "4"),  # around a whole solution, as many models write it
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("The answer is 1. Wait. The answer is 2.", "2"),
    ],
)
def test_the_most_explicit_form_decides_and_of_that_the_last(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text", ["\\boxed{1} then \\boxed{\\frac{2", "\\boxed{1} then \\boxed{ }", "<answer>1</answer><answer></answer>",
             "<SOLUTION>1</SOLUTION><SOLUTION> </SOLUTION>", "<SOLUTION>1</SOLUTION><SOLUTION>2"]
)  # fmt: skip
def test_a_cut_or_empty_marker_is_none(text: str) -> None:
    assert extract_answer(text) == "1"


@pytest.mark.parametrize("text", ["", "I do not.", "So it is 4.", "18 eggs,\nof them 9 sold", "<answer> 4", "####"])
def test_a_text_without_a_marker_states_no_answer(text: str) -> None:
    assert extract_answer(text) is None


@pytest.mark.parametrize("text", ["18", "$1,200", "\\frac{1}{2}", "x^2 + 1", "18 eggs.", "\\text{east}", "-3"])
def test_a_line_that_is_only_a_number_or_formula_is_the_answer(text: str) -> None:
    assert extract_answer(f" {text}\n") == text.rstrip(".")


@pytest.mark.parametrize(
    ("text", "answer"),
    [("3 + 4 = 7, so 7 eggs.", "7"), ("it costs $1,200.50!", "$1,200.50"), ("from 5 to -3", "-3"), ("A: 3/4", "3/4"),
     ("she has 10-3", "3"), ("no number", None)],
)  # fmt: skip
def test_the_last_number_is_read_only_when_asked_for(text: str, answer: str | None) -> None:
    assert extract_answer(text) is None
    assert extract_answer(text, fallback="last_number") == answer


def test_a_marker_goes_before_the_last_number() -> None:
    assert extract_answer("The Answer is: 5\nChecked 3 times.", fallback="last_number") == "5"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The Answer is: B", "B"),
        ("the answer is (c).", "C"),
        ("\\boxed{\\text{D}}", "D"),
        ("<answer>option B</answer>", "B"),
        ("#### A. Paris", "A"),
        ("The answer is B because it rains.", "B"),
        ("**C**", "C"),
        ("The answer is A dog", None),
        ("The answer is Dogs", None),
        ("A. is wrong\nB. too", None),
        ("Maybe B", None),
        ("\\boxed{B}. This is a solid choice.", "B"),
        ("answer is (B)", "B"),
        ("so the answer is (B)", "B"),
        ("The answer is Because", None),
        ("answer is Because", None),
        ("The answer is clear. I choose.\nC", "C"),
        ("Let us see.\n(c)", "C"),
        ("Let us see.\n**D**", "D"),
        ("Let us see.\nC. Rome", None),
        ("C. Rome", "C"),
        ("(A) is wrong. (B) is right", None),
        ("The correct option is B.", "B"),
        ("The best answer is D", "D"),
        ("Answer: B", "B"),
        ("The answer is B or C", None),
        ("\\boxed{A, B}", None),
        ("The answer is B, not C.", "B"),
        ("The answer is A because it rains.", "A"),
        ("THE ANSWER IS THAT NOBODY KNOWS", None),
    ],
)
def test_a_choice_is_one_letter_that_stands_alone(text: str, letter: str | None) -> None:
    assert extract_answer(text, "choice") == letter


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("$1,200.00", "1200"),
        ("0.5", "\\frac{1}{2}"),
        ("\\dfrac12", "2/4"),
        ("1\\frac{4}{5}", "9/5"),
        ("137 \\frac{1}{2}", "137.5"),
        ("-1 1/2", "-1.5"),
        ("50\\%", "50"),
        ("10,\\!080", "10080"),
        ("−5", "-5"),
        ("15\\mbox{ cm}^2", "15"),
        ("60 km/h", "60"),
        ("\\left( 3, \\tfrac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"),
        ("\\text{East}", "east"),
        ("3:30 p.m.", "3:30 PM"),
        ("\\text{(B)}", "B"),
        ("4210_{5}", "4210_5"),
        ("\\varnothing", "\\emptyset"),
        ("5 cm", "5"),
        ("2½", "5/2"),
        ("1.5 \\times 10^{-3}", "0.0015"),
        ("2e3", "2,000"),
        ("₹1,000", "1000"),
        ("5 percent", "5\\%"),
        ("\u202e18\u202c", "\u202e18\u202c"),
    ],
)
def test_dress_makes_no_difference(a: str, b: str) -> None:
    assert normalize(a) == normalize(b)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("10001", "10000"),
        ("10000.0000001", "10000"),
        ("0.333333", "1/3"),
        ("0.5", "50%"),
        ("5 \\text{ million}", "5"),
        ("18 or 20", "18"),
        ("-5", "5"),
        ("4210_6", "4210_5"),
        ("seat", "\\text{east}"),
        ("on", "no"),
        ("July 20", "June 20"),
        ("3ABCE", "3ABCD_{16}"),
        ("1.414214", "\\sqrt{2}"),
        ("1.41421356237309504880", "\\sqrt{2}"),
        ("3.141593", "\\pi"),
        ("0.0000002", "10^{-7}"),
        ("1024.0000001", "2^{10}"),
        ("10^{-20}\\sqrt{2}", "10^{-20}\\sqrt{3}"),
        ("(0.333333, 2)", "(\\frac13, 2)"),
        ("(50\\%, 2)", "(0.5, 2)"),
        ("[1,2]", "(1,2)"),
        ("[3,1)", "[1,3)"),
        ("x^2+3x+7=0", "x^2+2x+5=0"),
        ("9, 2, 3, 4, 5, 6, 7", "$1$, $2$, $3$, $4$, $5$, $6$, $7$"),
        ("3(8)", "11"),
        ("2 3", "5"),
        ("1 000", "1"),
        ("4(0.5)", "4.5"),
        ("at most $2\\sqrt{3}$", "2\\sqrt3"),
        ("$x=3$ fails but $x=5$ holds", "x=5"),
        ("9^{9^{9}}", "18"),
        ("5^(5^(5^5))", "\\pi"),
    ],
)
def test_near_is_not_equal(grader: Grader, answer: str, reference: str) -> None:
    assert grader.grade(f"\\boxed{{{answer}}}", reference).reason == "mismatch"


@pytest.mark.parametrize(
    ("answer", "reference"), [("Janet makes $18 every day", "18"), ("16-3-4 = 9 eggs", "9"), ("18 dollars a day", "18")]
)
def test_a_sentence_with_one_number_says_that_number(answer: str, reference: str) -> None:
    assert compare_fast(answer, reference) == "match"


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("2(k+1)", "2k+2"),
        ("5", "x=5"),
        ("2^{10}", "1024"),
        ("3 < x \\le 4", "(3,4]"),
        ("2, 1", "1,2"),
        ("-\\sqrt{19}+1, 1+\\sqrt{19}", "1 \\pm \\sqrt{19}"),
        ("\\begin{bmatrix} 0.2 \\\\ 2 \\end{bmatrix}", "\\begin{pmatrix} 1/5 \\\\ 2 \\end{pmatrix}"),
        ("2x^2+4x=-10", "x^2+2x+5=0"),
        ("y-2x=3", "y=2x+3"),
        ("3(8)", "24"),
        ("(3)\\left(8\\right)(2)", "48"),
        ("2x-x", "x"),
        ("(-2\\frac12, 2 1/2)", "(-2.5, 2.5)"),
        ("0.00000001", "10^{-8}"),
        ("0.1+0.2", "0.3"),
        ("the length is $2\\sqrt{3}$ units", "2\\sqrt3"),
        ("$7$, $6$, $5$, $4$, $3$, $2$ and $1$", "$1$, $2$, $3$, $4$, $5$, $6$, $7$"),
        ("\\sqrt{5+2\\sqrt{6}}", "\\sqrt2+\\sqrt3"),
        ("\\sin^2 x + \\cos^2 x + k", "k+1"),
    ],
)
def test_mathematics_decides_what_spelling_cannot(grader: Grader, answer: str, reference: str) -> None:
    assert compare_fast(answer, reference) is None
    assert grader.grade(f"\\boxed{{{answer}}}", reference).reason == "match"


@pytest.mark.parametrize(
    ("answer", "reference"), [("y=5", "x=5"), ("(2,1)", "(1,2)"), ("5x", "5"), ("x^3", "x^2"), ("\\frac{", "\\pi")]
)
def test_mathematics_tells_unlike_answers_apart(grader: Grader, answer: str, reference: str) -> None:
    assert grader.grade(f"<answer>{answer}</answer>", reference).reason == "mismatch"


GOLDS = [
    "18", "1,080", "145.0", "9 (apples)", "-7", "\\$18.90", "11,\\! 111,\\! 100", "3/4", "\\frac{270}7\\text{ degrees}",
    "1\\frac{4}{5}", "90^\\circ", "50\\%", "4210_{5}", "\\left( 3, \\frac{\\pi}{2} \\right)", "(3,4]",
    "(-\\infty, 2) \\cup (3, \\infty)", "x \\in [-2,7]", "\\{1\\pm\\sqrt{5},-2\\}", "3, 5, 7", "6 - 5i",
    "\\begin{pmatrix} -1 & 0 \\\\ 0 & -1 \\end{pmatrix}", "\\text{Navin}", "\\text{(C)}", "864 \\mbox{ inches}^2",
    "y = 2x + 3", "11\\sqrt2", "x^5 - x^4 + 1", "yes", "3:30 p.m.", "Mrs. Hilt", "5:6", "February 3rd",
]  # fmt: skip


@pytest.mark.parametrize("form", ["The Answer is: {}.", "so \\boxed{{{}}}.", "<answer>{}</answer>", "reason\n#### {}"])
def test_every_gold_answer_grades_itself_correct(grader: Grader, form: str) -> None:
    verdicts = {gold: grader.grade(form.format(gold), gold) for gold in GOLDS}
    assert {gold: verdict for gold, verdict in verdicts.items() if verdict.correct is not True} == {}


def test_a_percent_sign_says_nothing_unless_asked_for(grader: Grader) -> None:
    assert grader.grade("\\boxed{50\\%}", "50").reason == "match"
    assert grader.grade("\\boxed{50\\%}", "0.5").reason == "mismatch"
    with Grader(percent_as_fraction=True) as lenient:
        assert lenient.grade("\\boxed{50\\%}", "0.5").reason == "match"
        assert lenient.grade("\\boxed{0.5}", "50\\%").reason == "match"
        assert lenient.grade("\\boxed{50}", "0.5").reason == "mismatch"  # no sign, no leniency
        assert lenient.grade("\\boxed{5\\%}", "0.5").reason == "mismatch"


@pytest.mark.parametrize(
    ("text", "reference", "reason"),
    [
        ("16 - 3 - 4 = 9, and 9 * 2 = 18\nA: 18", "18", "match"),
        ("18", "18.0", "match"),
        ("$1,800.50", "1800.5", "match"),
        ("\\boxed{18}, as 20 - 2 = 18", "18", "match"),
        ("The answer is 18, since 18 eggs are left.", "18", "match"),
        ("<answer>1\\frac{1}{2}</answer>", "3/2", "match"),
        ("The answer is 18 or 20.", "18", "mismatch"),
        ("\\boxed{2^{10}}", "1024", "mismatch"),
        ("It is 10001.", "10000", "mismatch"),
        ("The answer is not 18.", "18", "mismatch"),
        ("\\boxed{9^{9^9}}", "18", "mismatch"),
        ("I do not know.", "18", "no_answer"),
        ("18", "eighteen", "bad_reference"),
        ("18", "1/0", "bad_reference"),
    ],
)
def test_a_numeric_answer_is_read_as_a_number_and_no_worker_is_asked(text: str, reference: str, reason: str) -> None:
    with Grader() as grader:
        assert grader.grade(text, reference, "numeric").reason == reason
        assert grader.pool._slots.queue == [None]


def test_a_choice_is_compared_as_a_letter(grader: Grader) -> None:
    assert grader.grade("The answer is (b).", "B", "choice").reason == "match"
    assert grader.grade("The answer is C", "B", "choice").reason == "mismatch"
    assert grader.grade("The answer is B", "Paris", "choice").reason == "bad_reference"


@pytest.mark.parametrize("reference", ["", "  ", "{", "1" * (MAX_ANSWER + 1)])
def test_a_reference_that_cannot_be_read_is_not_judged(grader: Grader, reference: str) -> None:
    verdict = grader.grade("The Answer is: \\pi", reference)
    assert (verdict.correct, verdict.reason) == (None, "bad_reference")


def test_a_comparison_that_raises_is_not_judged(grader: Grader) -> None:
    verdict = grader.grade("The Answer is: 5", "1/0")
    assert (verdict.correct, verdict.reason) == (None, "error")


def test_no_answer_is_wrong(grader: Grader) -> None:
    assert grader.grade("Hm.", "5", answer_id="a") == Verdict(
        answer_id="a", extracted=None, correct=False, reason="no_answer"
    )


def test_another_kind_is_refused(grader: Grader) -> None:
    with pytest.raises(ValueError, match="'poem'"):
        grader.grade("print(1)", "1", "poem")


def test_a_program_is_run_alone_and_among_mathematics(grader: Grader) -> None:
    tests = '{"inputs": ["1", "2"], "outputs": ["2", "4"]}'
    right, wrong = "```python\nprint(2 * int(input()))\n```", "```python\nprint(2)\n```"
    assert grader.grade(right, tests, "code", answer_id="a") == Verdict(
        answer_id="a", extracted="print(2 * int(input()))\n", correct=True, reason="match"
    )
    items = [
        ("a", right, tests, "code"), ("b", "\\boxed{2(k+1)}", "2k+2", "math"), ("c", wrong, tests, "code"),
        ("d", right, tests, "code"), ("e", "Hm.", tests, "code"), ("f", right, "", "code"),
    ]  # fmt: skip
    verdicts = grader.grade_many(items)
    assert [verdict.answer_id for verdict in verdicts] == list("abcdef")
    reasons = ["match", "match", "mismatch", "match", "no_answer", "bad_reference"]
    assert [verdict.reason for verdict in verdicts] == reasons
    assert [verdict.correct for verdict in verdicts] == [True, True, False, True, False, None]


def test_a_timeout_returns_and_leaves_the_next_verdict_alone() -> None:
    with Grader(timeout_s=1) as grader:
        began = time.monotonic()
        hanging = grader.grade(f"\\boxed{{{HANGS}}}", "\\pi")
        assert time.monotonic() - began < 60  # a guard against hanging, not a measurement
        assert (hanging.correct, hanging.reason) == (None, "timeout")
        assert grader.grade("\\boxed{2(k+1)}", "2k+2").reason == "match"


def test_the_start_of_a_worker_does_not_count() -> None:
    with Grader(timeout_s=0.2) as grader:  # Python alone with sympy takes longer to start
        assert grader.grade("\\boxed{k+1}", "1+k").reason == "match"


def test_a_killed_worker_is_replaced() -> None:
    with Grader(timeout_s=20) as grader:
        assert grader.grade("\\boxed{k+1}", "1+k").reason == "match"
        process = grader.pool._slots.queue[0].process
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert grader.grade("\\boxed{k+1}", "1+k").reason == "match"


def test_a_worker_that_dies_in_a_comparison_is_an_error_and_replaced() -> None:
    with Grader(timeout_s=30) as grader:
        grader.grade("\\boxed{k+1}", "1+k")
        process = grader.pool._slots.queue[0].process
        killer = threading.Timer(0.5, process.kill)
        killer.start()
        verdict = grader.grade(f"\\boxed{{{HANGS}}}", "\\pi")
        killer.join()
        assert (verdict.correct, verdict.reason) == (None, "error")
        assert grader.grade("\\boxed{k+1}", "1+k").reason == "match"


def test_a_worker_may_use_two_gibibytes() -> None:
    with Grader(timeout_s=20) as grader:
        grader.grade("\\boxed{k+1}", "1+k")
        process = psutil.Process(grader.pool._slots.queue[0].process.pid)
        assert process.rlimit(psutil.RLIMIT_AS)[0] <= 2 << 30


def test_closing_ends_the_workers() -> None:
    with Grader() as grader:
        grader.grade("\\boxed{k+1}", "1+k")
        process = grader.pool._slots.queue[0].process
    assert process.returncode == -signal.SIGKILL


def test_threads_share_a_grader() -> None:
    items = [(f"\\boxed{{{n}(k+1)}}", f"{n}k+{n}" if n % 2 else "k") for n in range(2, 22)]
    with Grader(timeout_s=20, num_workers=2) as grader, ThreadPoolExecutor(4) as pool:
        reasons = [verdict.reason for verdict in pool.map(lambda item: grader.grade(*item), items)]
    assert reasons == ["match" if n % 2 else "mismatch" for n in range(2, 22)]


def test_many_are_graded_in_their_order() -> None:
    items = [(str(n), f"\\boxed{{{n}(k+1)}}", "4k+4", "math") for n in range(8)]
    with Grader(timeout_s=20, num_workers=2) as grader:
        verdicts = grader.grade_many(items)
    assert [verdict.answer_id for verdict in verdicts] == [str(n) for n in range(8)]
    assert [verdict.correct for verdict in verdicts] == [n == 4 for n in range(8)]


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 100_000 + "4" + "}" * 100_000,
        "\\boxed{" * 140_000,
        "{" * 500_000 + "}" * 500_000,
        "The answer is " * 70_000,
        "#### " * 200_000,
        "<answer>" * 120_000,
        "<answer>" + "\\(" * 400_000 + "</answer>",
        "<answer>" + ": ." * 300_000 + "</answer>",
        "the " + " " * 900_000 + "answer",
        "1" * 1_000_000,
        "1," * 500_000,
        "the final final " * 60_000,
        "\n" * 900_000 + "answer",
        "5" + "!" * 10_000,
        "*" * 900_000 + " answer",
    ],
    ids=range(15),
)
def test_a_huge_text_is_read_in_linear_time(grader: Grader, text: str) -> None:
    began = time.monotonic()
    for fallback in ("none", "last_number"):
        extract_answer(text, fallback=fallback)
    assert grader.grade(text, "\\pi").correct is False
    assert time.monotonic() - began < 60  # quadratic time would be hours


def test_a_long_answer_is_wrong_without_asking_mathematics() -> None:
    with Grader() as grader:
        assert grader.grade(f"\\boxed{{{'(' * 2000}}}", "\\pi").reason == "mismatch"
        assert grader.pool._slots.queue[0] is None  # no worker was started


@pytest.mark.parametrize("text", ["\x00", "\\boxed{\x00}", "\\boxed{5\x00}", "\\boxed{٥}", "\\boxed{²}", "\\boxed{🥚}"])
def test_odd_characters_are_wrong_answers_at_most(grader: Grader, text: str) -> None:
    assert grader.grade(text, "\\pi").correct is False


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["\\boxed{", "}", "{", "$", "<answer>", "</answer>", "#### ", "The answer is ", "\\frac", "1",
                         "/", "0", ",", ".", " ", "\n", "-", "%", "^", "_", "\\", "=", "(", "\\text{", "x", "or"])
        | st.text(max_size=5),
        max_size=20,
    ),
    st.sampled_from(["18", "\\pi", "(1,2)", "x=5"]),
)  # fmt: skip
def test_any_text_gets_a_verdict_that_can_be_stored(grader: Grader, parts: list[str], reference: str) -> None:
    verdict = grader.grade("".join(parts), reference)
    assert (verdict.correct is None) == (verdict.reason in ("bad_reference", "timeout", "error"))
    assert dump_record(verdict).encode()


@settings(max_examples=100, deadline=None)
@given(st.fractions(max_denominator=1000))
def test_a_number_equals_itself_in_every_dress_and_no_neighbour(number) -> None:
    a, b = number.numerator, number.denominator
    dresses = [f"\\frac{{{a}}}{{{b}}}", f"{a}/{b}", f"${a}/{b}$", f"{a:,}/{b}"] + ([f"{a:,}.00"] if b == 1 else [])
    assert {normalize(dress) for dress in dresses} == {str(number)}
    assert compare_fast(f"{a + 1}/{b}", str(number)) == "mismatch"


MIXED = (
    st.integers(-9999, 9999)
    .filter(bool)
    .flatmap(
        lambda whole: st.tuples(
            st.just(whole), st.integers(2, 99).flatmap(lambda n: st.tuples(st.integers(1, n - 1), st.just(n)))
        )
    )
)


@settings(max_examples=100, deadline=None)
@given(MIXED)
def test_a_mixed_number_is_its_fraction_and_no_other(parts: tuple[int, tuple[int, int]]) -> None:
    whole, (over, under) = parts
    value = Fraction(over, under) + abs(whole)
    value = value if whole > 0 else -value
    for dress in (
        f"{whole} {over}/{under}",
        f"{whole}\\frac{{{over}}}{{{under}}}",
        f"{whole:,} \\dfrac{{{over}}}{{{under}}}",
    ):
        assert compare_fast(dress, str(value)) == compare_fast(str(value), dress) == "match"
        assert compare_fast(dress, str(value + Fraction(1, under))) == "mismatch"
        assert compare_numbers(dress, str(-value)) == "mismatch"


@settings(max_examples=100, deadline=None)
@given(st.decimals(min_value=0, max_value=10**9, places=2), st.sampled_from("$€£"))
def test_money_is_its_amount_and_no_cent_more(amount: Decimal, sign: str) -> None:
    for dress in (
        f"{sign}{amount}",
        f"\\{sign}{amount:,}",
        f"{amount:,} {sign}",
        f"{amount} dollars",
        f"{sign}{amount} a day",
    ):
        dress = dress.replace("\\€", "€").replace("\\£", "£")
        assert compare_fast(dress, str(amount)) == "match", dress
        assert compare_fast(dress, str(amount + Decimal("0.01"))) == "mismatch"


PLAIN = st.one_of(
    st.fractions(max_denominator=50).map(str),
    st.integers(-3000, 3000).map(lambda n: f"{n:,}"),
    st.decimals(-99, 99, places=3).map(str),
    st.sampled_from(
        ["east", "\\text{East}", "x+1", "1+x", "(1,2)", "[1,2]", "50\\%", "$5", "5 million", "12_3", "12", "\\pi"]
    ),
)


@settings(max_examples=200, deadline=None)
@given(PLAIN, PLAIN)
def test_two_plain_answers_compare_alike_both_ways(one: str, other: str) -> None:
    assert compare_fast(one, one) == "match"
    outcomes = {compare_fast(one, other), compare_fast(other, one)}
    assert not {"match", "mismatch"} <= outcomes
    assert "match" not in outcomes or outcomes == {"match"}


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(exclude_categories=()), max_size=30).flatmap(
        lambda text: st.sampled_from([text, f"\\boxed{{{text}}}", f"<answer>{text}</answer>", f"The answer is {text}"])
    ),
    st.text(st.characters(exclude_categories=()), max_size=8),
    st.sampled_from(["math", "choice", "numeric"]),
)
def test_any_characters_get_a_verdict_that_can_be_stored(grader: Grader, text: str, reference: str, kind: Kind) -> None:
    assert dump_record(grader.grade(text, reference, kind)).encode()


def test_a_lone_surrogate_does_no_harm(grader: Grader) -> None:
    verdict = grader.grade("\\boxed{\ud800 k+1}", "1+k")
    assert verdict.extracted == "\ufffd k+1" and verdict.correct is False
    assert grader.grade("\\boxed{k+1}", "\udfff").correct is not True


PARTS = ["\\boxed{", "\\\\boxed{", "\\fbox {", "\\boxed 3", "}", "{", "\\", "1", "23", "4,567", ".5", "\\frac{1}",
         "{2}", "3/4", " ", "\n", "-", "$", "%", "a", "\n\n", " " * 40, "words " * 12]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=25).map("".join))
def test_reading_from_the_end_finds_what_reading_it_all_finds(text: str) -> None:
    assert extract._last_box(text) == (extract._innermost_box(text) or None)
    numbers = [match[0] for match in values.ANY_NUMBER.finditer(text)]
    assert extract._last_number(text) == (numbers[-1] if numbers else None)


def test_counts_and_accuracy_leave_out_what_was_not_judged() -> None:
    graded = [
        Verdict(answer_id=str(n), extracted="4", correct=correct, reason=reason)
        for n, (correct, reason) in enumerate(
            [(True, "match"), (False, "mismatch"), (False, "no_answer"), (None, "bad_reference"), (None, "timeout")]
        )
    ]
    counts = {"match": 1, "mismatch": 1, "no_answer": 1, "bad_reference": 1, "timeout": 1, "error": 0}
    assert list(count_reasons(graded).items()) == list(counts.items())
    assert accuracy(graded) == 1 / 3
    assert accuracy(graded[3:]) is None


PATHOLOGICAL = {
    "9^(9^9)": "mismatch",
    "5^(5^(5^5))": "mismatch",
    "(10^{9})!": "mismatch",
    "\\sum_{n=1}^{10^{10}} \\frac{1}{n^n}": "mismatch",
    HANGS: "timeout",
    "8^{9^{9}} \\mod 7": "timeout",
    "{" * 100_000 + "}" * 100_000: "mismatch",
    "1" * 900_000: "mismatch",
    "1" * 1_000_000: "no_answer",  # its tag opens before what is read
    "5" + "!" * 10_000: "mismatch",
    "5" + "!" * 900: "mismatch",
    "5\x00": "mismatch",
    "\u202e81\u202c": "mismatch",
    "\ud83d 5": "mismatch",
}


def test_no_other_verdict_is_disturbed_by_what_hangs() -> None:
    good = [(f"good {n}", f"\\boxed{{{n}(k+1)}}", f"{n}k+{n}" if n % 2 else "k", "math") for n in range(2, 42)]
    bad = [(text, f"<answer>{text}</answer>", "\\pi", "math") for text in PATHOLOGICAL]
    mixed = [item for pair in zip(good, (bad * 4)[: len(good)], strict=True) for item in pair]
    with Grader(timeout_s=2, num_workers=2) as grader:
        reasons = {verdict.answer_id: verdict.reason for verdict in grader.grade_many(mixed)}
        assert grader.grade("\\boxed{2(k+1)}", "2k+2").reason == "match"
    assert {name: reason for name, reason in reasons.items() if name.startswith("good")} == {
        f"good {n}": "match" if n % 2 else "mismatch" for n in range(2, 42)
    }
    assert {name: reason for name, reason in reasons.items() if name in PATHOLOGICAL} == PATHOLOGICAL


def test_the_same_comparison_is_made_once() -> None:
    with Grader(num_workers=2) as grader:
        items = [(str(n), f"Sample {n}: \\boxed{{2(k+1)}}", "2k+2", "math") for n in range(50)]
        assert all(verdict.correct for verdict in grader.grade_many(items))
        assert grader.pool._known == {("2(k+1)", "2k+2"): "match"}


def test_grade_shares_workers_that_end_with_the_process() -> None:
    code = """
import os, threading
from tt_reasoning.grading import _shared_pool, grade
def one():
    assert grade("\\\\boxed{2(k+1)}", "2k+2").correct and grade("So 18.", "18", fallback="last_number").correct
threads = [threading.Thread(target=one) for _ in range(3)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
print([worker.process.pid for worker in _shared_pool()._running])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pids = json.loads(done.stdout)
    assert pids
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def grade_sum(n: int) -> tuple[int, bool]:
    """In whatever process: one comparison that takes a worker, and whose worker it was."""
    verdict = grade(f"\\boxed{{{n}(k+1)}}", f"{n}k+{n}")
    return next(iter(_shared_pool()._running)).owner, verdict.correct


def test_a_forked_process_has_workers_of_its_own() -> None:
    assert grade_sum(2) == (os.getpid(), True)
    before = [worker.process.pid for worker in _shared_pool()._running]
    with multiprocessing.get_context("fork").Pool(2) as forked:
        answers = forked.map(grade_sum, range(3, 9), chunksize=1)
    assert all(correct for _, correct in answers)
    assert os.getpid() not in {owner for owner, _ in answers}
    assert grade_sum(9) == (os.getpid(), True)
    assert [worker.process.pid for worker in _shared_pool()._running] == before


def test_a_fork_while_a_thread_compares_does_not_wait_for_it() -> None:
    with Grader(timeout_s=30) as grader, ThreadPoolExecutor(1) as thread:
        grader.grade("\\boxed{k+1}", "1+k")
        hanging = thread.submit(grader.grade, f"\\boxed{{{HANGS}}}", "\\pi")
        while grader.pool._slots.queue:  # until that thread has the only worker
            time.sleep(0.01)
        with multiprocessing.get_context("fork").Pool(1, initializer=FORKED.append, initargs=(grader,)) as forked:
            assert forked.apply(grade_in_fork) == "match"
        next(iter(grader.pool._running)).process.kill()
        assert hanging.result().reason == "error"


FORKED: list[Grader] = []


def grade_in_fork() -> str:
    return FORKED[0].grade("\\boxed{2(k+1)}", "2k+2").reason


def test_workers_of_a_data_loader_grade_after_their_parent_did() -> None:
    from torch.utils.data import DataLoader

    assert grade_sum(2)[1]
    loader = DataLoader(
        list(range(3, 9)), num_workers=2, batch_size=None, collate_fn=grade_sum, multiprocessing_context="fork"
    )
    assert all(correct for _, correct in loader)


def test_an_event_loop_grades_in_threads() -> None:
    async def grade_all() -> list[Verdict]:
        return await asyncio.gather(
            *(asyncio.to_thread(grade, f"\\boxed{{{n}(k+1)}}", f"{n}k+{n}") for n in range(2, 12))
        )

    assert all(verdict.correct for verdict in asyncio.run(grade_all()))


def test_a_pickled_grader_keeps_its_settings_and_starts_its_own_workers() -> None:
    with Grader(timeout_s=9, num_workers=2, fallback="last_number", percent_as_fraction=True) as grader:
        grader.grade("\\boxed{k+1}", "1+k")
        with pickle.loads(pickle.dumps(grader)) as copy:
            assert (copy.fallback, copy.percent_as_fraction) == ("last_number", True)
            assert (copy.pool.timeout_s, copy.pool.num_workers, copy.pool._running) == (9, 2, set())
            assert copy.grade("\\boxed{k+1}", "1+k").correct


def test_ray_actors_grade() -> None:
    import ray

    @ray.remote(num_cpus=1)
    class Actor:
        def __init__(self, grader: Grader) -> None:
            self.grader = grader

        def grade_many(self, items: list[tuple[str, str, str, Kind]]) -> list[Verdict]:
            return self.grader.grade_many(items)

    items = [(str(n), f"\\boxed{{{n}(k+1)}}", f"{n}k+{n}" if n % 2 else "k", "math") for n in range(2, 12)]
    with Grader(timeout_s=30) as grader:
        expected = grader.grade_many(items)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            actors = [Actor.remote(grader) for _ in range(2)]
            assert ray.get([actor.grade_many.remote(items) for actor in actors]) == [expected, expected]
        finally:
            ray.shutdown()


def test_grading_needs_no_torch() -> None:
    code = "import sys, tt_reasoning.grading; sys.exit('torch' in sys.modules or 'sympy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_examples_of_the_docs_hold() -> None:
    assert doctest.testfile(str(ROOT / "docs/grading.md"), module_relative=False).failed == 0


def test_wrong_settings_are_refused() -> None:
    for settings_ in ({"timeout_s": 0}, {"num_workers": 0}, {"fallback": "first"}):
        with pytest.raises(ValueError, match=next(iter(settings_))):
            Grader(**settings_)


@pytest.mark.parametrize(
    ("reference", "answer", "reason"),
    [
        (r"\textbf{(B)}\ 11", "B", "match"),
        (r"\textbf{(B)}\ 11", "(B)", "match"),
        (r"\textbf{(B)}\ 11", "11", "match"),
        (r"\textbf{(B)}\ 11", r"\textbf{(B)}\ 11", "match"),
        (r"\textbf{(B)}\ 11", r"\text{(C)}\ 11", "mismatch"),  # the letter decides where one is given
        (r"\textbf{(B)}\ 11", "C", "mismatch"),
        (r"\textbf{(B)}\ 11", "12", "mismatch"),
        (r"\mathrm{(D)}~2\sqrt{3}", r"\sqrt{12}", "match"),
        (r"\mathrm{(D)}~2\sqrt{3}", r"\sqrt{13}", "mismatch"),
        (r"\text{(C)}", "C", "match"),
        (r"\text{(C)}", "3", "mismatch"),
        ("(A, B)", "A", "mismatch"),  # a pair is no option
    ],
)
def test_a_boxed_option_is_its_letter_or_its_value(reference: str, answer: str, reason: str) -> None:
    text = f"\\boxed{{{answer}}}"
    assert grade(text, reference).reason == reason
    with Grader() as grader:
        assert [verdict.reason for verdict in grader.grade_many([("a", text, reference, "math")] * 2)] == [reason] * 2
