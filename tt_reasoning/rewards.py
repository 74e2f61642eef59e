"""Rewards over completions, for YAML's ``reward``: every part has a name, and the parts add up to the reward.

A reward is built once (its arguments come from YAML) and called with ``(text, reference, verdict)`` for
every completion that the grader could judge; it returns the parts that were earned.
"""

from __future__ import annotations

import re
from fractions import Fraction

from tt_reasoning.grading import extract_answer
from tt_reasoning.grading.values import ANY_NUMBER, read
from tt_reasoning.types import Verdict
from tt_reasoning.working_out import (
    BEGIN_SOLUTION,
    END_SOLUTION,
    TAGS,
    count_tags,
    has_form,
    read_solution,
)


class SSAReward:
    """The reward of the Sample Set Aggregator (arXiv 2506.09014), 0 to 100.

    A completion whose last answer tag holds the reference's own string earns ``identical``, one that is
    mathematically equal to it ``equal``. Otherwise its form earns a little: exactly one answer tag,
    exactly one think tag, some answer tag that is the reference, some that contains it. Tags are found in
    free text; ``<`` in mathematics is no tag and does no harm.

    Args:
        think_tag: set to 0 for a prompt without thinking (``ssa_no_think``).

    Example:
        >>> reward = SSAReward()
        >>> right = Verdict(answer_id="", extracted="4", correct=True, reason="match")
        >>> reward("<think> 2 < 3 </think> <answer>4</answer>", "4", right)
        {'identical': 100.0}
        >>> wrong = Verdict(answer_id="", extracted="5 or 4", correct=False, reason="mismatch")
        >>> reward("<answer>5 or 4</answer>", "4", wrong)
        {'answer_tag': 5.0, 'contains': 10.0}
    """

    def __init__(
        self,
        identical: float = 100.0,
        equal: float = 80.0,
        answer_tag: float = 5.0,
        think_tag: float = 5.0,
        some_tag_equal: float = 20.0,
        contains: float = 10.0,
    ) -> None:
        self.identical, self.equal = identical, equal
        self.answer_tag, self.think_tag = answer_tag, think_tag
        self.some_tag_equal, self.contains = some_tag_equal, contains

    def __call__(self, text: str, reference: str, verdict: Verdict) -> dict[str, float]:
        """The earned parts by name.

        Args:
            text: prefill and completion.
            verdict: the grader's word on the completion's final answer.
        """
        answers = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
        if verdict.correct and answers:
            same = (verdict.extracted or "").strip() == reference.strip()
            return {"identical": self.identical} if same else {"equal": self.equal}
        parts = {
            "answer_tag": self.answer_tag * (len(answers) == 1),
            "think_tag": self.think_tag * (text.count("<think>") == text.count("</think>") == 1),
            "some_tag_equal": self.some_tag_equal * any(a.strip() == reference.strip() for a in answers),
            "contains": self.contains * any(_holds(a, reference.strip()) for a in answers),
        }
        return {name: value for name, value in parts.items() if value}


class CorrectnessReward:
    """The same for every right answer and nothing else, whatever its form: for plain problems.

    >>> right = Verdict(answer_id="", extracted="4", correct=True, reason="match")
    >>> CorrectnessReward(correct=1.0)("The Answer is: 4", "4", right)
    {'correct': 1.0}
    """

    def __init__(self, correct: float = 1.0) -> None:
        self.correct = correct

    def __call__(self, text: str, reference: str, verdict: Verdict) -> dict[str, float]:
        """``{"correct": ...}`` for a right answer, no part for another."""
        return {"correct": self.correct} if verdict.correct else {}


class WorkingOutReward:
    """The reward of the GSM8K study, for completions in the form of ``working_out``: five parts, each with its weight.

    | part | earned by | default |
    |---|---|---|
    | ``format_exact`` | the whole form, nothing around it | 3 |
    | ``format_approximate`` | a quarter of it for each of the four tags that is there once | 2 |
    | ``answer_exact`` | a ``<SOLUTION>`` that the grader finds equal to the reference | 3 |
    | ``answer_near`` | a number there within 10 % of the reference; half of it within 20 % | 1 |
    | ``number`` | the number of the free text is the reference's (below) | 1.5 |
    | ``answer_wrong`` | a ``<SOLUTION>`` that is neither equal nor near | -1 |

    The number of the free text is the first behind the last ``<SOLUTION>``, closed or not, with words around it or
    not; without that tag the one that the grader marks out, else the last of the text. So a right result counts
    before the form is learned.

    These are of the usual order of magnitude: the form earns 3, each tag 0.5, an equal answer 3, a near one 0.5 or
    0.25, a wrong one -1, a number 1.5. Often 0.5 is taken for every tag that is missing or there twice; here that is
    0, since what is taken from all alike changes no advantage. Without the penalty for a wrong answer a guess would
    cost nothing. A weight of 0 takes a part out.

    Example:
        >>> reward = WorkingOutReward()
        >>> right = Verdict(answer_id="", extracted="42", correct=True, reason="match")
        >>> text = "<start_working_out>6 * 7 = 42<end_working_out><SOLUTION>42</SOLUTION>"
        >>> reward(text, "42", right)
        {'format_exact': 3.0, 'format_approximate': 2.0, 'answer_exact': 3.0, 'number': 1.5}
        >>> wrong = Verdict(answer_id="", extracted="45", correct=False, reason="mismatch")
        >>> reward("6 * 7 = 45, so <SOLUTION>45</SOLUTION>", "42", wrong)
        {'format_approximate': 1.0, 'answer_near': 1.0}
        >>> reward("It is 42", "42", Verdict(answer_id="", extracted=None, correct=False, reason="no_answer"))
        {'number': 1.5}
    """

    def __init__(
        self,
        format_exact: float = 3.0,
        format_approximate: float = 2.0,
        answer_exact: float = 3.0,
        answer_near: float = 1.0,
        number: float = 1.5,
        answer_wrong: float = -1.0,
    ) -> None:
        self.format_exact, self.format_approximate = format_exact, format_approximate
        self.answer_exact, self.answer_near, self.number = answer_exact, answer_near, number
        self.answer_wrong = answer_wrong

    def __call__(self, text: str, reference: str, verdict: Verdict) -> dict[str, float]:
        """The earned parts by name.

        Args:
            text: prefill and completion.
            verdict: the grader's word on the completion's final answer.
        """
        nearness = 0.0
        gold, solution = read(reference).number, read_solution(text)
        stated = extract_answer(f"{BEGIN_SOLUTION}{solution}{END_SOLUTION}") if solution else None
        # The verdict may be on another answer, in an <answer> tag: that is none in this form.
        equal = bool(verdict.correct) and stated is not None and stated == verdict.extracted
        if stated is not None and not equal:
            nearness = _nearness(read(stated).number, gold)
        parts = {
            "format_exact": self.format_exact * has_form(text),
            "format_approximate": self.format_approximate * count_tags(text) / len(TAGS),
            "answer_exact": self.answer_exact * equal,
            "answer_near": self.answer_near * nearness,
            "number": self.number * (gold is not None and _free_number(text) == gold),
            "answer_wrong": self.answer_wrong * (solution is not None and not equal and not nearness),
        }
        return {name: value for name, value in parts.items() if value}


def _nearness(value: Fraction | None, gold: Fraction | None) -> float:
    """1 within 10 % of the gold answer, 0.5 within 20 %, else 0; by ratio, so nothing is near 0.

    >>> [_nearness(Fraction(value), Fraction(50)) for value in (45, 55, 40, 60, 39, 61, -50)]
    [1.0, 1.0, 0.5, 0.5, 0.0, 0.0, 0.0]
    """
    if value is None or not gold:
        return 0.0
    distance = abs(value / gold - 1)
    return 1.0 if distance <= Fraction(1, 10) else 0.5 if distance <= Fraction(1, 5) else 0.0


def _free_number(text: str) -> Fraction | None:
    """The first number behind the last ``<SOLUTION>``; without that tag a marked one, else the last of the text.

    >>> _free_number("so 7 it is: <SOLUTION> about $1,200, I"), _free_number("7 + 5 = 12 apples."), _free_number("no")
    (Fraction(1200, 1), Fraction(12, 1), None)
    """
    _, tag, behind = text.rpartition(BEGIN_SOLUTION)
    if tag:
        found = ANY_NUMBER.search(behind)
        return read(found[0]).number if found else None
    numbers = [match[0] for match in ANY_NUMBER.finditer(extract_answer(text, "numeric") or "")]
    return read(numbers[-1]).number if numbers else None


def _holds(text: str, reference: str) -> bool:
    """Whether ``reference`` stands in ``text`` as a word of its own: 4 is not in 14."""
    return bool(reference) and re.search(rf"(?<![\w.]){re.escape(reference)}(?![\w]|\.\d)", text) is not None
