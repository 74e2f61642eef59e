"""Rewards over completions, for YAML's ``reward``: every part has a name, and the parts add up to the reward.

A reward is built once (its arguments come from YAML) and called with ``(text, reference, verdict)`` for
every completion that the grader could judge; it returns the parts that were earned.
"""

from __future__ import annotations

import re

from tt_reasoning.types import Verdict


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


def _holds(text: str, reference: str) -> bool:
    """Whether ``reference`` stands in ``text`` as a word of its own: 4 is not in 14."""
    return bool(reference) and re.search(rf"(?<![\w.]){re.escape(reference)}(?![\w]|\.\d)", text) is not None
