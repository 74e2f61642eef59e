"""The form of the GSM8K study: worked out between two tags, then the number alone between two more.

    <start_working_out>
    It takes 2/2=1 bolt of white fiber. In all 2+1=3 bolts.
    <end_working_out>
    <SOLUTION>3</SOLUTION>

Everything that writes, reads, rewards or measures this form asks here: the system message (prompt ``working_out``),
the data set (``datasets.working_out_dataset``), the reward (``rewards.WorkingOutReward``) and the grader, for which
``<SOLUTION>`` is a marker of the answer like ``<answer>``. The exact form allows blanks alone between the sections
and around them, and each tag once: what is rewarded is what the examples show.

    python tools/generate_answers.py --model models/smollm2-135m --dataset gsm8k --prompt working_out --out answers/base

Standard library only: prompts and grader import it.
"""

from __future__ import annotations

from typing import NamedTuple

BEGIN_REASONING, END_REASONING = "<start_working_out>", "<end_working_out>"
BEGIN_SOLUTION, END_SOLUTION = "<SOLUTION>", "</SOLUTION>"
TAGS = (BEGIN_REASONING, END_REASONING, BEGIN_SOLUTION, END_SOLUTION)


class Response(NamedTuple):
    """What a completion says, without blanks at the ends; None for a section that is not there, not whole or empty."""

    reasoning: str | None
    solution: str | None


def write_response(reasoning: str, solution: str) -> str:
    """A response in this form, as the SFT stages teach it.

    Raises:
        ValueError: a section is empty, or holds one of the tags.

    >>> print(write_response("2 + 1 = 3", "3"))
    <start_working_out>
    2 + 1 = 3
    <end_working_out>
    <SOLUTION>3</SOLUTION>
    """
    for name, text in (("reasoning", reasoning), ("solution", solution)):
        if not text.strip():
            raise ValueError(f"the {name} is empty")
        for tag in TAGS:
            if tag in text:
                raise ValueError(f"the {name} holds {tag}, which marks the sections")
    return f"{BEGIN_REASONING}\n{reasoning.strip()}\n{END_REASONING}\n{BEGIN_SOLUTION}{solution.strip()}{END_SOLUTION}"


def read_response(text: str) -> Response:
    """The two sections of a completion, wherever they stand in it: the first reasoning, the last solution.

    >>> read_response("<start_working_out>2 + 1 = 3<end_working_out> so <SOLUTION> 3 </SOLUTION>")
    Response(reasoning='2 + 1 = 3', solution='3')
    >>> read_response("<start_working_out>2 + 1 = 3, so <SOLUTION>3")
    Response(reasoning=None, solution=None)
    """
    _, _, behind = text.partition(BEGIN_REASONING)
    reasoning, end, _ = behind.partition(END_REASONING)
    return Response(reasoning.strip() or None if end else None, read_solution(text))


def read_solution(text: str) -> str | None:
    """What the last ``<SOLUTION>`` that is closed and not empty holds, without blanks at its ends; else None.

    >>> read_solution("<SOLUTION>1</SOLUTION> no, <SOLUTION>2</SOLUTION>"), read_solution("<SOLUTION>3")
    ('2', None)
    """
    end = len(text)
    while (close := text.rfind(END_SOLUTION, 0, end)) >= 0:
        begin = text.rfind(BEGIN_SOLUTION, 0, close)
        if begin < 0:
            return None
        content, _, _ = text[begin + len(BEGIN_SOLUTION) : close].partition(END_SOLUTION)
        if content.strip():
            return content.strip()
        end = begin
    return None


def count_tags(text: str) -> int:
    """How many of the four tags a completion has exactly once, in whatever order: the form, approximately.

    >>> count_tags("<start_working_out>3</end_working_out><SOLUTION>3</SOLUTION><SOLUTION>")
    2
    """
    return sum(text.count(tag) == 1 for tag in TAGS)


def has_form(text: str) -> bool:
    """Whether a completion has exactly this form: reasoning, then solution, each tag once, and nothing but blanks
    before, between and behind them.

    >>> has_form(write_response("2 + 1 = 3", "3")), has_form(write_response("2 + 1 = 3", "3") + " Done.")
    (True, False)
    """
    if count_tags(text) < len(TAGS):
        return False
    before, rest = text.split(BEGIN_REASONING)
    parts = [before]
    for tag in TAGS[1:]:
        part, found, rest = rest.partition(tag)
        if not found:  # it is there, but before the one that it should follow
            return False
        parts.append(part)
    before, reasoning, between, solution, behind = (part.strip() for part in (*parts, rest))
    return bool(reasoning and solution) and not (before or between or behind)
