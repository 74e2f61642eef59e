"""The grader: what counts as the answer, what counts as equal, and that nothing hangs or crashes the caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tt_reasoning.grading import (
    MAX_ANSWER,
    Grader,
    accuracy,
    compare_fast,
    count_reasons,
    extract_answer,
    normalize,
)
from tt_reasoning.store import dump_record
from tt_reasoning.types import Verdict

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
        ("<answer>#### 4</answer>", "4"),
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
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("The answer is 1. Wait. The answer is 2.", "2"),
    ],
)
def test_the_most_explicit_form_decides_and_of_that_the_last(text: str, answer: str) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text", ["\\boxed{1} then \\boxed{\\frac{2", "\\boxed{1} then \\boxed{ }", "<answer>1</answer><answer></answer>"]
)
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


def test_code_is_not_compared(grader: Grader) -> None:
    with pytest.raises(ValueError, match="'code'"):
        grader.grade("print(1)", "1", "code")


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
    ],
    ids=range(11),
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


def test_grading_needs_no_torch() -> None:
    code = "import sys, tt_reasoning.grading; sys.exit('torch' in sys.modules or 'sympy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_wrong_settings_are_refused() -> None:
    for settings_ in ({"timeout_s": 0}, {"num_workers": 0}, {"fallback": "first"}):
        with pytest.raises(ValueError, match=next(iter(settings_))):
            Grader(**settings_)
