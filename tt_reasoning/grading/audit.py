r"""A second opinion on verdicts: other rules, written apart from ``grading.py``, so that both are seldom wrong alike.

The rules are those that most evaluation scripts of MATH-like benchmarks go by (Hendrycks et al. 2021, appendix;
Lewkowycz et al. 2022, arXiv 2206.14858, appendix D.1): find the answer, rewrite its LaTeX to one spelling, compare
strings, numbers, lists, intervals, matrices, equations. Without their known faults: numbers are exact (10000 is not
10001, and 50 is not 0.5), words keep their letters, a multiple-choice letter must be marked.

Where grading asks math-verify, this evaluates both sides at a few points (two expressions that agree to 9 digits at
three random points count as one; Schwartz 1980). So it needs neither sympy nor a time limit: input is cut, powers and
factorials are bounded, and what it cannot read is compared as text.
"""

from __future__ import annotations

import cmath
import math
import random
import re
from collections.abc import Callable
from fractions import Fraction

from tt_reasoning.types import Kind, Verdict

_TEXT = 200_000  # characters read, from the end
_LONGEST = 1_000  # characters of an answer or reference
_DEEPEST = 40
_POINTS = 3
_BITS = 4_000  # of an exact integer

Number = Fraction | complex


class Unreadable(ValueError):
    """This text is not among the mathematics that the audit can evaluate."""


def audit(text: str, reference: str, kind: Kind = "math", *, last_number: bool = False, answer_id: str = "") -> Verdict:
    r"""The verdict by these rules: ``match``, ``mismatch``, ``no_answer``, or ``bad_reference`` for an empty one.

    >>> audit("so \\boxed{\\frac{2}{4}}.", "0.5")
    Verdict(answer_id='', extracted='\\frac{2}{4}', correct=True, reason='match')
    >>> [audit(f"The answer is {x}", y).reason for x, y in (("10001", "10000"), ("2(k+1)", "2k+2"), ("50", "0.5"))]
    ['mismatch', 'match', 'mismatch']
    >>> audit("\\boxed{B}. This is a solid choice.", "B", "choice").extracted
    'B'
    """
    if not reference.strip() or len(reference) > _LONGEST:
        return Verdict(answer_id=answer_id, extracted=None, correct=None, reason="bad_reference")
    found = find_answer(text, last_number=last_number or kind == "numeric")
    if kind == "choice":
        found = find_choice(found if found is not None else _last_line(text))
        reference = find_choice(reference) or ""
    if not found:
        return Verdict(answer_id=answer_id, extracted=None, correct=False, reason="no_answer")
    correct = len(found) <= _LONGEST and same(found, reference)
    return Verdict(answer_id=answer_id, extracted=found, correct=correct, reason="match" if correct else "mismatch")


# --- find ------------------------------------------------------------------------------------------------

_MARKS = ("he answer is", "final answer is", "####", "答案是")
_ENDS = re.compile(r"\n|\.(?=\s|$)|<")
_SMALL = {ord(letter): letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}  # str.lower may change the length
_LAST_NUMBER = re.compile(r"(?:(?<![\d)\]}])-)?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def find_answer(text: str, *, last_number: bool = False) -> str | None:
    r"""What a text gives as its answer; the first of these that it has.

    Its last answer tag; ``final answer is $x$. I hope``; its last box (without braces up to ``$``); what follows
    the last "he answer is", "final answer is", "####" or "答案是"; a single line of figures; its last number, if
    ``last_number``.

    >>> find_answer("The final answer is $x+1$. I hope it is correct."), find_answer("\\boxed 3$"), find_answer("Hm.")
    ('x+1', '3', None)
    """
    text = text[-_TEXT:].encode("utf-8", "replace").decode()
    small = text.translate(_SMALL)
    end = small.rfind("</answer>")
    start = small.rfind("<answer>", 0, max(end, 0))
    if start >= 0:
        inside = text[start + len("<answer>") : end]
        return find_answer(inside) or _trim(inside)
    hope = re.search(r"final answer is \$([^$]{1,1000})\$\. I hope", text)
    if hope:
        return _trim(hope[1])
    if "boxed" in text:
        return _trim(_box(text[text.rindex("boxed") + len("boxed") :]))
    for mark in _MARKS:
        if mark in small:
            return _trim(_sentence(text[small.rindex(mark) + len(mark) :][: 2 * _LONGEST].lstrip(" :*\n")))
    if _is_figures(text.strip()):
        return _trim(text)
    numbers = _LAST_NUMBER.findall(text) if last_number else []
    return numbers[-1].replace(",", "") if numbers else None


def find_choice(text: str | None) -> str | None:
    """The capital letter that a choice begins with.

    >>> find_choice("(c) because"), find_choice("B"), find_choice("Because"), find_choice(None)
    ('C', 'B', None, None)
    """
    bare = re.sub(r"\\(?:text\w*|mathrm|mathbf)|[\\{}$*:\s]+", " ", text or "").strip()
    found = re.match(r"(?:[Oo]ption |[Cc]hoice )?\(?(?:([A-Za-z])(?:[).,:]|$)|([B-HJ-Z]) (?!or\b|and\b))", bare)
    return (found[1] or found[2]).upper() if found else None


def _is_figures(line: str) -> bool:
    """Whether a text is one line of mathematics, without a word."""
    if len(line) > 240 or "\n" in line:
        return False
    letters = re.sub(r"\\[A-Za-z]+(?:\{[A-Za-z() ]*\})?", "", line)
    return bool(re.search(r"[\d\\^+=/-]", line)) and not re.search(r"[^\W\d_]{3}|\b[^\W\d_]{2}\s", letters)


def _sentence(text: str) -> str:
    display = re.match(r"\$\$.+?\$\$|\\\[.+?\\\]", text, re.DOTALL)
    return display[0] if display else _ENDS.split(text, maxsplit=1)[0]


def _last_line(text: str) -> str | None:
    line = text.strip().rpartition("\n")[2]
    return line if len(line) <= 12 else None


def _box(after: str) -> str:
    depth = 0
    after = after.lstrip()
    if not after.startswith("{"):
        return after.partition("$")[0]
    for index, character in enumerate(after):
        depth += (character == "{") - (character == "}")
        if not depth:
            return after[1:index]
    return ""


def _trim(text: str) -> str | None:
    text = " ".join(text.split()).lstrip(":").strip("*` ").rstrip("./").strip()
    return text or None


# --- one spelling ----------------------------------------------------------------------------------------

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SPELL: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"\\left|\\right|\\!|\\displaystyle|\\limits", ""),
    (r"\\[dt]frac", r"\\frac"),
    (r"(?<!\\)\\[,;: ]|\\q?quad|~|[\u00a0\u2009\u202f]", " "),
    (r"\^\s*\{?\s*\\circ\s*\}?|°|\\degree", ""),
    (r"\\?%", ""),
    (r"\\\$|[€£]", ""),
    (r"\\\(|\\\)|\\\[|\\\]", ""),
    (r"\{,\}", ","),
    (r"−|–", "-"),
    (r"\\(?:text|mbox|textbf|mathrm|textit|operatorname)\s*\{\s*([^{}]*?)\s*\}(?:\^\{?[23]\}?)?", r" \1 "),
    (r"(?<=\d),(?=\d{3}(?!\d))", ""),
    (r"(?<![\d.])(\d+)\s+(\d+)/(\d+)", r"(\1+\2/\3)"),
    (r"(?<=\d)\s+(?=\d)", "~"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
    (r"(?<![\d.])\.(?=\d)", "0."),
    (r"(\.\d*?)0+(?!\d)", r"\1"),
    (r"(?<=\d)\.(?!\d)", ""),
    (r"\\(?:le|leqslant)(?![a-z])", r"\\leq"),
    (r"\\(?:ge|geqslant)(?![a-z])", r"\\geq"),
]
_COMPILED = [(re.compile(pattern), to) for pattern, to in _SPELL]


def spell(answer: str) -> str:
    r"""The answer in one spelling.

    >>> spell("\\dfrac12 \\text{ cm}^2"), spell("$1{,}200.50$"), spell("\\left(3,\\,4\\right)"), spell("Twelve")
    ('\\frac{1}{2}cm', '1200.5', '(3,4)', '12')
    """
    text = answer.replace("$", "") if "\\$" not in answer else re.sub(r"(?<!\\)\$", "", answer)
    for pattern, to in _COMPILED:
        text = pattern.sub(to, text)
    words = text.strip(" .").casefold()
    if words in _WORDS:
        return str(_WORDS.index(words))
    text = re.sub(r"(\\[A-Za-z]+ )\s*(?=[A-Za-z])|\s+", r"\1", text.strip(" ."))  # \cot x is no \cotx
    return re.sub(r"^\(([A-Za-z])\)$", r"\1", text)


# --- equality --------------------------------------------------------------------------------------------


def same(answer: str, reference: str) -> bool:
    r"""Whether two answers are equal by these rules.

    >>> same("1 \\pm \\sqrt{2}", "1-\\sqrt2, 1+\\sqrt2"), same("[1,2)", "(1,2)"), same("y = 2x", "2x-y=0")
    (True, False, True)
    >>> same("x=5", "5"), same("2 1/2", "2.5"), same("Janet makes $18 a day", "18"), same("5 million", "5")
    (True, True, True, False)
    """
    if spell(answer).casefold() == spell(reference).casefold():
        return True
    gold = _only_value(reference)
    if gold is not None and re.search(r"[A-Za-z]{2}", re.sub(r"\\[A-Za-z]+", "", answer)):
        value = _value_in_words(answer)
        if value is not None:
            return value == gold
    one, other = _without_base(spell(_without_unit(answer)), spell(_without_unit(reference)))
    return one == other or _same_parts(_split_lists(one), _split_lists(other))


_OTHER_NUMBER = re.compile(
    r"\b(?:million|billion|thousand|hundred|dozen|half|or|not|than|least|most|negative|minus)\b", re.IGNORECASE
)


def _only_value(text: str) -> Fraction | None:
    try:
        value = evaluate(spell(_without_unit(text)))
    except Unreadable:
        return None
    return value if isinstance(value, Fraction) else None


def _value_in_words(text: str) -> Fraction | None:
    """The one number of a sentence, unless a word makes another of it."""
    if _OTHER_NUMBER.search(text):
        return None
    numbers = set(_LAST_NUMBER.findall(text.replace("$", "").rpartition("=")[2]))
    return _only_value(numbers.pop()) if len(numbers) == 1 else None


def _without_unit(text: str) -> str:
    if _OTHER_NUMBER.search(text):
        return text
    text = re.sub(r"(?<=[\d}\w)])\s*\\(?:text|mbox|mathrm)\s*\{[^{}]*\}(?:\^\{?[23]\}?)?\s*[.$]*$", "", text.strip())
    return re.sub(r"(?<=[\d}])\s+[A-Za-z][A-Za-z. /]{2,}(?:\^\{?[23]\}?)?$|\s*\([a-z ]{3,}\)$", "", text)


def _without_base(one: str, other: str) -> tuple[str, str]:
    """Both without the base of a number (4210_5), if only one of them writes it."""
    based = re.compile(r"([0-9A-Za-z]+)_\{?\d+\}?")
    found, wanted = based.fullmatch(one), based.fullmatch(other)
    if bool(found) == bool(wanted):
        return one, other
    return (found[1], other) if found else (one, wanted[1])


def _split_lists(text: str) -> list[str]:
    """The members of a list or set, each with ``\\pm`` written out; a single answer is a list of one."""
    inside = re.fullmatch(r"\\\{(.*)\\\}", text)
    text = re.sub(r"(?<=[\d})])(?:and|or)(?=[\d\\(x-z-])", ",", inside[1] if inside else text)
    text = re.sub(r"^[A-Za-z]\\in(?![a-z])", "", text)
    members = []
    for part in _split(text, ","):
        members += [part.replace("\\pm", sign) for sign in "+-"] if "\\pm" in part else [part]
    return members


def _split(text: str, separator: str) -> list[str]:
    """``text`` cut at a separator that no bracket encloses."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == separator and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _same_parts(ours: list[str], theirs: list[str]) -> bool:
    """Whether two lists have the same members, in any order; one that repeats counts once."""
    if max(len(ours), len(theirs)) > 30:
        return sorted(ours) == sorted(theirs)

    def covers(ones: list[str], others: list[str]) -> bool:
        return all(any(_same_one(one, other) for other in others) for one in ones)

    return covers(ours, theirs) and covers(theirs, ours)


def _same_one(one: str, other: str) -> bool:
    if one == other:
        return True
    for shape in (_union, _tuple, _matrix):
        ours, theirs = shape(one), shape(other)
        if ours or theirs:
            return bool(ours and theirs) and len(ours) == len(theirs) and all(map(_same_one, ours, theirs))
    if one.count("=") == other.count("=") == 1:
        return _same_equation(one, other)
    one, other = (side if "=" in one and "=" in other else side.rpartition("=")[2] for side in (one, other))
    try:
        return all(_near(evaluate(one, point), evaluate(other, point)) for point in range(_POINTS))
    except Unreadable:
        return False


def _tuple(text: str) -> list[str] | None:
    """The members of a tuple or interval, its brackets first."""
    if len(text) < 2 or text[0] not in "([" or text[-1] not in ")]":
        return None
    members = _split(text[1:-1], ",")
    return [text[0] + text[-1], *members] if len(members) > 1 else None


def _matrix(text: str) -> list[str] | None:
    """The entries of a matrix, the number of its rows first."""
    found = re.fullmatch(r"\\begin\{[pbv]?(?:matrix|array)\}(?:\{[lcr|]+\})?(.*)\\end\{[pbv]?(?:matrix|array)\}", text)
    rows = re.split(r"\\\\", found[1].rstrip("\\")) if found else []
    return [f"rows{len(rows)}", *(entry for row in rows for entry in row.split("&"))] if rows else None


def _union(text: str) -> list[str] | None:
    return sorted(text.split("\\cup")) if "\\cup" in text else None


def _same_equation(one: str, other: str) -> bool:
    """Whether two equations say the same: left minus right of one is a constant times that of the other."""
    ratios = []
    try:
        for point in range(_POINTS):
            left, right = (evaluate(f"({a})-({b})", point) for a, b in (one.split("="), other.split("=")))
            if not right:
                return False
            ratios.append(_float(left) / _float(right))
    except Unreadable:
        return False
    return all(_near(ratio, ratios[0]) for ratio in ratios) and abs(ratios[0]) > 1e-9


def _near(one: Number, other: Number) -> bool:
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    one, other = _float(one), _float(other)
    return abs(one - other) <= 1e-9 * max(abs(one), abs(other))


# --- evaluate --------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\d+(?:\.\d+)?|\\[A-Za-z]+|[A-Za-z](?:_(?:\{\w+\}|\w))?|[-+*/^!|()\[\]{}]")
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "\\sin": cmath.sin, "\\cos": cmath.cos, "\\tan": cmath.tan, "\\ln": cmath.log, "\\exp": cmath.exp,
    "\\log": cmath.log10, "\\arcsin": cmath.asin, "\\arccos": cmath.acos, "\\arctan": cmath.atan,
    "\\cot": lambda x: 1 / cmath.tan(x), "\\sec": lambda x: 1 / cmath.cos(x), "\\csc": lambda x: 1 / cmath.sin(x),
}  # fmt: skip
_CONSTANTS: dict[str, complex] = {"\\pi": math.pi, "e": math.e, "i": 1j}


def evaluate(text: str, point: int = 0) -> Number:
    r"""The value of an expression in one spelling, with a number for every letter that ``point`` decides.

    Raises:
        Unreadable: anything but arithmetic, powers, roots, factorials and common functions; or a value too large.

    >>> evaluate("\\frac{1}{2}+2^3"), evaluate("2(k+1)", 1) == evaluate("2k+2", 1)
    (Fraction(17, 2), True)
    """
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text.replace(" ", "") or not tokens or len(tokens) > 400:
        raise Unreadable(text)
    reader = _Reader(tokens, point)
    try:
        value = reader.sum(0)
    except (ArithmeticError, ValueError, IndexError) as error:
        raise Unreadable(text) from error
    if reader.at != len(tokens):
        raise Unreadable(text)
    return value


class _Reader:
    """Reads tokens from left to right and computes as it goes."""

    def __init__(self, tokens: list[str], point: int) -> None:
        self.tokens = tokens
        self.point = point
        self.at = 0

    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        token = self.next()
        if token not in wanted:
            return ""
        self.at += 1
        return token

    def expect(self, token: str) -> None:
        if not self.take(token):
            raise Unreadable(f"no {token}")

    def sum(self, depth: int) -> Number:
        total = self.product(depth)
        while sign := self.take("+", "-"):
            term = self.product(depth)
            total = _bounded(total + term if sign == "+" else total - term)
        return total

    def product(self, depth: int) -> Number:
        if sign := self.take("+", "-"):
            value = self.product(depth)
            return -value if sign == "-" else value
        value, last = self.power(depth), self.tokens[self.at - 1]
        while True:
            if self.take("*", "\\cdot", "\\times"):
                value = _bounded(value * self.signed(depth))
            elif self.take("/", "\\div"):
                value = _bounded(value / self.signed(depth))
            elif self.next() == "\\frac" and last.isdigit() and isinstance(value, Fraction):
                value += self.power(depth)  # a mixed number
            elif self.next() and (self.next()[0].isalnum() or self.next()[0] in "\\({["):
                value = _bounded(value * self.power(depth))
            else:
                return value
            last = self.tokens[self.at - 1]

    def signed(self, depth: int) -> Number:
        sign = self.take("-", "+")
        value = self.power(depth)
        return -value if sign == "-" else value

    def power(self, depth: int) -> Number:
        value = self.atom(depth)
        while self.take("!"):
            value = _factorial(value)
        if self.take("^"):
            exponent = self.argument(depth)
            return _power(value, exponent)
        return value

    def argument(self, depth: int) -> Number:
        if self.take("{"):
            value = self.sum(depth + 1)
            self.expect("}")
            return value
        token = self.next()
        if token[:1].isdigit() and len(token) > 1:  # ^12 is ^1 and then 2
            raise Unreadable(token)
        return self.atom(depth + 1)

    def atom(self, depth: int) -> Number:
        token = self.next()
        self.at += 1
        if not token or depth > _DEEPEST:
            raise Unreadable("ends early, or too deep")
        if token[0].isdigit():
            return _bounded(Fraction(token))
        if token in "([{|":
            value = self.sum(depth + 1)
            self.expect({"(": ")", "[": "]", "{": "}", "|": "|"}[token])
            return value if token != "|" else abs(value)
        if token == "\\frac":
            above = self.argument(depth)
            return _bounded(above / self.argument(depth))
        if token == "\\sqrt":
            degree = Fraction(2)
            if self.take("["):
                degree = self.sum(depth + 1)
                self.expect("]")
            return _power(self.argument(depth), 1 / degree)
        if token in _FUNCTIONS:
            return self.function(_FUNCTIONS[token], depth)
        if token in _CONSTANTS:
            return complex(_CONSTANTS[token])
        if token[0].isalpha() or token in ("\\theta", "\\alpha", "\\beta", "\\gamma", "\\lambda"):
            return Fraction(random.Random(f"{token} {self.point}").randrange(1_000_003, 3_000_000), 1_000_003)
        raise Unreadable(token)

    def function(self, apply: Callable[[complex], complex], depth: int) -> complex:
        exponent = self.argument(depth) if self.take("^") else Fraction(1)
        return _power(_bounded(apply(_float(self.power(depth + 1)))), exponent)


def _bounded(value: Number) -> Number:
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > _BITS:
            raise Unreadable("too large")
    elif not cmath.isfinite(value) or abs(value) > 1e150:
        raise Unreadable("too large")
    return value


def _float(value: Number) -> complex:
    try:
        return complex(value)
    except OverflowError:
        raise Unreadable("too large") from None


def _factorial(value: Number) -> Fraction:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 400:
        raise Unreadable("factorial")
    return Fraction(math.factorial(value.numerator))


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if exponent.denominator == 1 and abs(exponent) * max(base.numerator.bit_length(), 1) <= _BITS:
            return _bounded(base**exponent.numerator)
        root = _exact_root(base, exponent) if base >= 0 else None
        if root is not None:
            return root
    return _bounded(_float(base) ** _float(exponent))


def _exact_root(base: Fraction, exponent: Fraction) -> Fraction | None:
    """The square root of a perfect square, exactly."""
    if exponent != Fraction(1, 2):
        return None
    root = Fraction(math.isqrt(base.numerator), math.isqrt(base.denominator))
    return root if root * root == base else None


# --- disagreements ---------------------------------------------------------------------------------------


def disagree(verdict: Verdict, second: Verdict) -> bool:
    """Whether a verdict is worth reading again: both judged and differ, or only one found a match.

    >>> from functools import partial; verdict = partial(Verdict, answer_id="a", extracted="4")
    >>> right, unknown = verdict(correct=True, reason="match"), verdict(correct=None, reason="timeout")
    >>> disagree(right, right), disagree(unknown, right), disagree(unknown, verdict(correct=False, reason="mismatch"))
    (False, True, False)
    """
    return bool(verdict.correct) != bool(second.correct)
