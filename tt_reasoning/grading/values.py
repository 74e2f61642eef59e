"""What an answer says: its text without dress, its exact value where it is a number, and when two are equal.

Half of the grader (``grading.py``): everything here is strings and exact fractions, bounded in time, without
sympy. What only mathematics can decide is ``None`` here and goes to a worker.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import Literal, NamedTuple

MAX_ANSWER = 1_000  # characters of an extracted answer or a reference

DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
CURRENCY = "$€£¥₹₩₽"
FRACTION = r"\\[dt]?frac\s*(?:\{\s*(-?[0-9]+)\s*\}|([0-9]))\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))"
ANY_NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}.%])-)?[{CURRENCY}]?"
    rf"(?:{FRACTION}|{DIGITS}/{DIGITS}|{DIGITS}(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)%?"
)

# --- dress -----------------------------------------------------------------------------------------------

_CHARACTERS = str.maketrans(
    {"−": "-", "–": "-", "’": "'", "\u00a0": " ", "\u2009": " ", "\u202f": " "}
    | {"½": " 1/2", "⅓": " 1/3", "⅔": " 2/3", "¼": " 1/4", "¾": " 3/4"}
)
_MATH = re.compile(r"\$+((?:[^$\\]|\\.)+)\$+|\\\(((?:(?!\\[()]).)+)\\\)|\\\[((?:(?!\\[\[\]]).)+)\\\]", re.DOTALL)
_REWRITES = [
    (re.compile(pattern), to)
    for pattern, to in (
        (r"\\(?:left|right|displaystyle)(?![A-Za-z])", ""),
        (r"\\[dt]frac(?![A-Za-z])", r"\\frac"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\{,\}", ","),
        (r"(?<!\\)\\!\s*", ""),
        (r"(?<=[0-9])\\,(?=[0-9]{3})", ""),
        (r"(?<!\\)\\[()\[\]]", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r" \1"),
        (r"\\([$%])", r"\1"),
    )
]
_PROSE = re.compile(r"[^\W_](?:[^\W_]|[ ,.:'-])*")
_WORD = re.compile(r"[^\W\d_]{4}|\b(?:yes|no|am|pm)\b", re.IGNORECASE)
_LOOSE_BLANK = re.compile(r"(?<!\w) | (?!\w)")
_BASED = re.compile(r"([0-9A-Z]+)_([0-9]+)")


def strip(text: str) -> str:
    """Without what surrounds an answer and is no part of it: blanks, emphasis, quotes, stops, math delimiters."""
    while True:
        inner = text.lstrip(' \t\r\n*"`:').rstrip(' \t\r\n*"`:.,;')
        math = _MATH.fullmatch(inner) if len(inner) <= MAX_ANSWER else None
        inner = math[math.lastindex] if math else inner
        if inner == text:
            return text
        text = inner


def plain(answer: str) -> str:
    """The text without LaTeX's spacing, sizing and text commands."""
    text = strip(answer.translate(_CHARACTERS))
    if "\\" in text or "~" in text or "{" in text:
        for pattern, to in _REWRITES:
            text = pattern.sub(to, text)
    return strip(" ".join(text.split()))


def normalize(answer: str) -> str:
    """One spelling for answers that differ in dress only: the exact value of a number, else tidy text.

    Numbers lose commas, currency, unit and percent sign ("50%" is 50, never 0.5); decimals, ``a/b``,
    ``\\frac``, mixed numbers and ``5e3`` become a reduced fraction. Words lose their case.

    >>> [normalize(x) for x in ("$1,200.00", "18 eggs", "0.5", "\\\\dfrac12", "1\\\\frac{4}{5}", "50\\\\%")]
    ['1200', '18', '1/2', '1/2', '9/5', '50']
    >>> normalize("\\\\left( 3, \\\\tfrac{\\\\pi}{2} \\\\right)"), normalize("\\\\text{East}"), normalize("5 million")
    ('(3,\\\\frac{\\\\pi}{2})', 'east', '5 million')
    """
    return read(answer).normalized


class Reading(NamedTuple):
    """An answer as it is compared: without dress, in its one spelling, and its value if all of it is one number."""

    plain: str
    normalized: str
    number: Fraction | None


@functools.lru_cache(maxsize=4096)
def read(answer: str) -> Reading:
    """How an answer is compared. Cached: a reference is read once for all the answers to it."""
    text = plain(answer)
    number = read_number(text)
    return Reading(text, str(number) if number is not None else _tidy(text), number)


def _tidy(text: str) -> str:
    text = _LOOSE_BLANK.sub("", text)
    text = re.sub(r"([_^])\{(\w+)\}", lambda m: m[1] + m[2] if m[1] == "_" or len(m[2]) == 1 else m[0], text)
    text = re.sub(r"^\(([A-Za-z])\)$", r"\1", text)
    text = re.sub(r"(?<=[A-Za-z])\.(?![0-9])", "", text)  # p.m. is pm
    return re.sub(r"^(?:an?|the) ", "", text.casefold()) if _is_prose(text) else text


def _is_prose(text: str) -> bool:
    """Whether a text is words, a date or a time rather than a product of variables: "east", "3:30 pm", not "xy"."""
    return bool(_PROSE.fullmatch(text) and _WORD.search(text))


# --- numbers ---------------------------------------------------------------------------------------------

_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\ ?[{CURRENCY}]?\ ?(?P<sign2>-?)"
    rf"(?:(?:(?P<whole>{DIGITS})\ )?(?P<over>{DIGITS})\ ?/\ ?(?P<under>{DIGITS})"
    rf"|(?P<decimal>{DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?:[eE](?P<e>[-+]?[0-9]{1,3})"
    r"|\ ?(?:×|\*|\\times|\\cdot)\ ?10\ ?\^\ ?(?:(?P<ten>[0-9])|\{(?P<tens>-?[0-9]{1,3})\}))?)"
    rf"(?:\ ?%|\ percent\b|\ ?\^\{{?\\circ\}}?|\ ?°)?(?:\ ?[{CURRENCY}])?"
    r"(?P<unit>(?![0-9.,/^]).*)"
)
_UNIT = re.compile(r"[a-z][a-z'/-]*")
_SHORT_UNITS = {"mm", "cm", "km", "mg", "kg", "ml", "lb", "oz", "ft", "in", "yd", "mi", "hr"}
_NO_UNIT = re.compile(  # words that make another number, or none, of the number beside them
    r"(?<!\\)\b(?:or|not|plus|minus|negative|than|least|most|under|over|squared|cubed|factorial|half|halves"
    r"|(?:third|quarter|fourth|fifth|dozen|hundred|thousand|million|billion|trillion)s?)\b",
    re.IGNORECASE,
)


def read_number(text: str) -> Fraction | None:
    """The exact value of a plain number with its sign, currency, percent sign and unit; None for anything else."""
    if len(text) > MAX_ANSWER:
        return None
    if text.isascii() and text.isdigit():  # most answers to word problems
        return Fraction(int(text))
    if "\\" in text:
        text = re.sub(r"\s*" + FRACTION, lambda m: f" {m[1] or m[2]}/{m[3] or m[4]}", text).strip()
    match = _NUMBER.fullmatch(text)
    if not match or not is_unit(match["unit"]):
        return None
    sign = -1 if (match["sign"] == "-") != (match["sign2"] == "-") else 1
    if match["decimal"]:
        exponent = int(match["e"] or match["ten"] or match["tens"] or 0)
        return sign * Fraction(match["decimal"].replace(",", "")) * Fraction(10) ** exponent
    whole, over, under = (int((match[name] or "0").replace(",", "")) for name in ("whole", "over", "under"))
    return sign * (whole + Fraction(over, under)) if under else None


def is_unit(text: str) -> bool:
    """Whether words behind a number only say what is counted: "eggs per day", but not "million" or "xy"."""
    words = [word.strip("(),") for word in re.sub(r"\^\{?[23]\}?|[²³]", "", text).split()]
    if not words:
        return True
    if _NO_UNIT.search(text) or not all(_UNIT.fullmatch(word.lower()) for word in words):
        return False
    first = words[0].lower()
    if text[0] not in " (":  # "90degrees", but 2ABCD is a number in base 16
        return first in _SHORT_UNITS or len(first) >= 4 and words[0] == first
    return first in _SHORT_UNITS or len(first) >= 3 or first == "a" and len(words) > 1


def find_number(text: str) -> Fraction | None:
    """The number of a plain answer that says exactly one: alone, behind the last equals sign or in a sentence."""
    left, equals, right = text.rpartition("=")
    if equals:
        several = re.search(r"[,;<>!]|\b(?:or|and)\b", re.sub(r",(?=[0-9]{3})", "", left))
        return None if several else read_number(right.strip())
    sentence = re.match(r"(?:(?:[A-Za-z][A-Za-z',:-]+|[aAI]) )+", text)
    return read_number(text[sentence.end() :] if sentence and not _NO_UNIT.search(sentence[0]) else text)


def changes_number(text: str) -> bool:
    """Whether words in a text make another number, or none, of the numbers beside them: "5 million", "not 5"."""
    return bool(_NO_UNIT.search(text))


def _only_number(text: str) -> Fraction | None:
    """The value that all numbers of a plain text have, whatever stands between them."""
    if changes_number(text):
        return None
    values = {read_number(match[0]) for match in ANY_NUMBER.finditer(text)}
    return values.pop() if len(values) == 1 else None


# --- equality --------------------------------------------------------------------------------------------


def compare_fast(
    answer: str, reference: str, *, percent_as_fraction: bool = False
) -> Literal["match", "mismatch"] | None:
    """The verdict on two short texts when spelling or exact arithmetic decides it; None when mathematics must.

    Two numbers are equal or not, without tolerance. A sentence or an equation with one number says that
    number, if the reference is a number; "5 million" and "5 or 6" are not 5. Of two numbers in a written
    base (``4210_5``) digits and base must agree; a base that only one of them writes is taken to be the
    question's. Words, dates and times are compared as text. A percent sign says nothing, unless
    ``percent_as_fraction``: then a number with one is also equal to its hundredth without one.

    >>> compare_fast("Janet makes $18 a day", "18"), compare_fast("10001", "10000"), compare_fast("0.333", "1/3")
    ('match', 'mismatch', 'mismatch')
    >>> compare_fast("4210_6", "4210_5"), compare_fast("4210", "4210_5"), compare_fast("2(k+1)", "2k+2")
    ('mismatch', 'match', None)
    >>> compare_fast("50%", "0.5"), compare_fast("50%", "0.5", percent_as_fraction=True)
    ('mismatch', 'match')
    """
    given, gold = read(answer), read(reference)
    if given.normalized == gold.normalized:
        return "match"
    if gold.number is not None:
        number = given.number if given.number is not None else find_number(given.plain)
        if number is not None:
            return _verdict(_equal_numbers(number, given.plain, gold, percent_as_fraction))
        if changes_number(given.plain):
            return "mismatch"
    based, gold_based = _BASED.fullmatch(given.normalized), _BASED.fullmatch(gold.normalized)
    if based and gold_based:
        return "mismatch"
    if based and gold.number is not None or gold_based and given.normalized.isalnum():
        digits = based[1] if based else given.normalized
        gold_digits = gold_based[1] if gold_based else gold.normalized
        return _verdict(digits.casefold() == gold_digits.casefold())
    return "mismatch" if _is_prose(gold.normalized) else None


def compare_numbers(
    answer: str, reference: str, *, percent_as_fraction: bool = False
) -> Literal["match", "mismatch", "bad_reference"]:
    """The verdict when the reference is a number and nothing but reading numbers may decide.

    Like ``compare_fast``, but an answer of many words also says the one value that all its numbers have.

    >>> compare_numbers("18, as 18 eggs are left", "18"), compare_numbers("18 of 20", "18"), compare_numbers("2^3", "8")
    ('match', 'mismatch', 'mismatch')
    >>> compare_numbers("18", "eighteen")
    'bad_reference'
    """
    given, gold = read(answer), read(reference)
    if gold.number is None:
        return "bad_reference"
    number = given.number
    number = find_number(given.plain) if number is None else number
    number = _only_number(given.plain) if number is None else number
    return _verdict(number is not None and _equal_numbers(number, given.plain, gold, percent_as_fraction))


def _verdict(equal: bool) -> Literal["match", "mismatch"]:
    return "match" if equal else "mismatch"


def _equal_numbers(number: Fraction, text: str, gold: Reading, percent_as_fraction: bool) -> bool:
    if number == gold.number:
        return True
    if not percent_as_fraction or _is_percent(text) == _is_percent(gold.plain):
        return False
    return number == gold.number * 100 if _is_percent(text) else number * 100 == gold.number


def _is_percent(text: str) -> bool:
    return "%" in text or " percent" in text
