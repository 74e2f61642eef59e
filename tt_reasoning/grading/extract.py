"""Which part of a completion is its answer: tags, boxes, ``####``, phrases, bare answers.

Half of the grader (``grading.py``). Every rule reads the text in linear time, whatever stands in it.
"""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Iterator
from typing import Literal, NamedTuple

from tt_reasoning.grading.values import ANY_NUMBER, MAX_ANSWER, plain, read_number, strip
from tt_reasoning.types import Kind
from tt_reasoning.working_out import read_solution

Fallback = Literal["none", "last_number"]

MAX_TEXT = 1_000_000  # characters of a completion, counted from its end
_WINDOW = 64  # characters
_MAX_WORDS = 60  # of a line that is an answer as a whole
_MAX_FORMULA = 240

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_INVISIBLE = re.compile(r"[\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_BRACE = re.compile(r"\\{1,2}(?:boxed|fbox)\s*(\{)|\\.|[{}]", re.DOTALL)
_ADJECTIVES = r"(?:(?:final|best|correct|right)\s+){0,2}"
_HEADING = r"^[ \t>*_#]*(?:final\s+)?answer[ \t*_]*:|^#{1,6}[ \t]*(?:final[ \t]+)?answer[ \t]*\n\s*"
_ARTICLE = rf"\b(?:the|my|our|final|best|correct)\s+{_ADJECTIVES}"
_SAID = (
    rf"(?<!#)####(?!#)|{_HEADING}|答案(?:是|为|[:：])|{_ARTICLE}answer\s+is\b"
    r"|\banswer\s+is\b(?=[\s:*]*[-$\\(\[0-9])"  # "so answer is 5", but not "which answer is best"
)
_HINTS = ("answer", "####", "答案", "option", "choice")
_PHRASE = re.compile(_SAID, re.IGNORECASE | re.MULTILINE)
_CHOICE_PHRASE = re.compile(
    rf"{_SAID}|\banswer\s+is\b|\b(?:the|best|correct|right)\s+{_ADJECTIVES}(?:option|choice)\s+is\b",
    re.IGNORECASE | re.MULTILINE,
)
_DISPLAY = re.compile(r"(?:\\\[|\$\$).*?(?:\\\]|\$\$)|\$?\\begin\{(\w+\*?)\}.*?\\end\{\1\}\$?", re.DOTALL)
_SENTENCE_END = re.compile(
    r"\n|(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bMrs)(?<!\.[A-Za-z])[.?](?=[\s*<]|$)|(?<!\\)!(?=\s)|</|<\|"
)
_LETTER = re.compile(
    r"(?:(?i:option|choice)\s+)?(?:\(([A-Za-z])\)|([A-Z])(?=$|[.):,])|([B-HJ-Z])(?=\s)|([a-z])(?=[.):]?$)"
    r"|([AI])(?=\s+(?:because|since|as|due|given|[^\w\s])))"
)
_SECOND_LETTER = re.compile(
    r"[.)]*\s*(?:[,/&]|\band\b|\bor\b)+\s*(?:and\s|or\s)?\s*(?:\([A-Za-z]\)|[A-Z](?=$|[\s.,:)]))"
)
_LETTER_ALONE = re.compile(r"(?:(?:option|choice)\s+)?(?:\([A-Za-z]\)|[A-Za-z][.):]?)", re.IGNORECASE)
_LETTER_WITH_VALUE = re.compile(r"\(([A-E])\)[\s:.,]*(.*)", re.DOTALL)
_OPTION = re.compile(r"(?:\([A-Za-z]\)|[A-Za-z][.):])(?!\s*(?:is|are|was|and|or|can|could|would|may|might|does)\b)")


def extract_answer(text: str, kind: Kind = "math", *, fallback: Fallback = "none") -> str | None:
    """The final answer that a completion states, or None when it states none.

    The most explicit form that is present decides, whatever stands after it; of several markers of that
    form the last one that is complete and not empty:

    1. ``<answer>x</answer>``, else ``<SOLUTION>x</SOLUTION>`` in capitals; a box, ``####`` or phrase inside it is
       unwrapped.
    2. ``\\boxed{x}``, ``\\fbox{x}``; of nested boxes the innermost.
    3. ``#### x``, ``The answer is: x`` (any case; the final, best, correct answer), a line that begins with
       ``Answer:``, and what stands below a heading ``# Answer``; up to the end of the sentence, but never inside a
       decimal number.
    4. No marker, but the whole text is one line that is a number (a unit may follow, at most 60 characters) or a
       formula (at most 240): that line.
    5. No marker, kind ``numeric`` or ``fallback="last_number"``: the last number of the text.

    For kind ``choice`` the marked text must begin with one letter that stands alone ("B", "(b)", "B. Paris",
    "option B"; not the article of "A dog", not "B or C"); its capital is the answer. "The correct option is" marks
    it too, as does a last line that is a letter and nothing else; "B. Paris" answers if it is the whole text.

    Characters that nobody sees (zero width, direction marks) are left out.

    >>> extract_answer("<think> \\\\boxed{3}? No. </think><answer>4</answer>")
    '4'
    >>> extract_answer("She pays 2 * $9. The Answer is: $18.50. That is all.")
    '$18.50'
    >>> extract_answer("The answer is (b).", "choice"), extract_answer("The answer is A dog.", "choice")
    ('B', None)
    >>> extract_answer("\\\\frac{1}{2}"), extract_answer("So she has 18 left.")
    ('\\\\frac{1}{2}', None)
    >>> extract_answer("So she has 18 left.", fallback="last_number"), extract_answer("She has 18 left.", "numeric")
    ('18', '18')
    """
    text = _readable(text[-MAX_TEXT:])
    if kind == "choice":
        return _extract_letter(text)
    tag = _last_tag(text)
    marked = _last_marked(text) if tag is None else _last_marked(tag) or tag
    if marked is None and _is_bare(text):
        marked = text
    if marked is None and (kind == "numeric" or fallback == "last_number"):
        marked = _last_number(text)
    return (strip(marked) or None) if marked is not None else None


def extract_box(text: str) -> str | None:
    """What the last box of a text holds that closes and is not empty, as ``extract_answer`` reads it; else None.

    >>> print(extract_box("So \\\\boxed{1} or \\\\boxed{\\\\frac{1}{2}}, not \\\\boxed{3"))
    \\frac{1}{2}
    """
    box = _last_box(_readable(text[-MAX_TEXT:]))
    return (strip(box) or None) if box is not None else None


def read_letter(text: str) -> str | None:
    """The letter that a multiple-choice answer begins with, as a capital; None when it names two.

    >>> read_letter("B. Paris"), read_letter("(b)"), read_letter("B or C"), read_letter("Because")
    ('B', 'B', None, None)
    """
    text = plain(text[:MAX_ANSWER])
    match = _LETTER.match(text)
    if not match or _SECOND_LETTER.match(text, match.end()):
        return None
    return match[match.lastindex].upper()


class Option(NamedTuple):
    """An option of a question: its letter, and its value where that is given too."""

    letter: str
    value: str


@functools.lru_cache(maxsize=4096)  # every answer to a problem asks about the same reference
def read_option(answer: str) -> Option | None:
    """The option that an answer names by its letter in parentheses; None of any other answer.

    Solutions of AMC and AIME problems box letter and value together.

    >>> read_option("\\\\textbf{(B)}\\\\ 11"), read_option("\\\\text{(C)}"), read_option("(3, 4)"), read_option("B")
    (Option(letter='B', value='11'), Option(letter='C', value=''), None, None)
    """
    match = _LETTER_WITH_VALUE.fullmatch(plain(answer[:MAX_ANSWER]))
    return Option(match[1], match[2]) if match else None


def _readable(text: str) -> str:
    """Without invisible characters; a lone surrogate, which no file can hold, is the replacement character."""
    return text if text.isascii() else _INVISIBLE.sub("", _SURROGATE.sub("\ufffd", text))


def _extract_letter(text: str) -> str | None:
    tag = _last_tag(text)
    if tag is not None:
        return read_letter(_last_marked(tag) or tag)
    box = _last_box(text)
    if box is not None:
        return read_letter(box)
    for sentence in _phrases(text, _CHOICE_PHRASE):
        letter = read_letter(sentence)
        if letter:
            return letter
    stripped = text.strip()
    line = stripped[stripped.rfind("\n") + 1 :]
    bare = plain(line) if len(line) <= _MAX_WORDS else ""
    if _LETTER_ALONE.fullmatch(bare) or line == stripped and _OPTION.match(bare):
        return read_letter(line)
    return None


def _last_tag(text: str) -> str | None:
    """What the last complete ``<answer>`` tag holds; without one, the last ``<SOLUTION>``.

    (Models write ``<solution>`` around a whole solution, so that is no marker of the answer.)
    """
    start = last = None
    for match in _TAG.finditer(text):
        if not match[1]:
            start = match.end()
        elif start is not None:
            content = text[start : match.start()]
            last = content if content.strip() else last
            start = None
    return read_solution(text) if last is None else last


def _last_marked(text: str) -> str | None:
    """What the last box holds, else what follows the last ``####`` or phrase."""
    return _last_box(text) or next(_phrases(text, _PHRASE), None)


def _last_box(text: str) -> str | None:
    """What the box that opens last holds, of those that close and are not empty."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    return None if start < 0 else _innermost_box(text[start:]) or _innermost_box(text)


def _innermost_box(text: str) -> str | None:
    """The box of a text that opens last: one pass over all braces, so linear time."""
    open_braces: list[int] = []  # where a box's content begins, -1 for a brace that is none
    last_start = last_end = -1
    for match in _BRACE.finditer(text):
        if match[1]:
            open_braces.append(match.end())
        elif match[0] == "{":
            open_braces.append(-1)
        elif match[0] == "}" and open_braces:
            start = open_braces.pop()
            if start > last_start and not text[start : match.start()].isspace() and start < match.start():
                last_start, last_end = start, match.start()
    return text[last_start:last_end] if last_start >= 0 else None


def _phrases(text: str, phrase: re.Pattern[str]) -> Iterator[str]:
    """The sentences behind ``####`` or "the answer is" that say anything, the last one first."""
    small = text.lower()
    if not any(hint in small for hint in _HINTS):
        return
    end = len(text)
    for match in reversed(list(phrase.finditer(text))):
        tail = text[match.end() : min(end, match.end() + 2 * MAX_ANSWER)].lstrip(" \t\r\n:：*")
        display = _DISPLAY.match(tail)
        sentence = display[0] if display else _SENTENCE_END.split(tail, maxsplit=1)[0]
        if strip(sentence):
            yield sentence
        end = match.start()


def _is_bare(text: str) -> bool:
    """Whether a text is one line that is a number, a unit allowed, or mathematics without words."""
    line = text.strip()
    if len(line) > _MAX_FORMULA or "\n" in line:
        return False
    if len(line) <= _MAX_WORDS and read_number(plain(line)) is not None:
        return True
    without_commands = re.sub(r"\\[A-Za-z]+(?:\{[A-Za-z .()]*\})?", "", line)
    words = re.search(r"[^\W\d_]{3}|[^\W\d_]{2}\s|\s[^\W\d_]{2}\b|[^\W\d_]:", without_commands)
    return bool(re.search(r"\w", line) and re.search(r"[0-9\\+*/^=-]", line) and not words)


def _last_number(text: str) -> str | None:
    """The last number: looked for in the last lines that hold a digit, and in all of the text if it begins there."""
    text = text.replace("−", "-")
    digit = max(map(text.rfind, "0123456789"))
    if digit < 0:
        return None
    start = max(text.rfind("\n", 0, max(0, digit - _WINDOW)), 0)
    last = deque(ANY_NUMBER.finditer(text, start), maxlen=1)
    if start and (not last or last[0].start() < start + _WINDOW // 2):
        last = deque(ANY_NUMBER.finditer(text), maxlen=1)
    return last[0][0] if last else None
