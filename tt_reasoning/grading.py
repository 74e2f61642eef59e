"""The grader that reward, check, vote and evaluation share: extract → normalize → compare → Verdict.

Equal spellings and plain numbers are compared here, exactly. Everything else goes to math-verify in a
worker process that is killed and replaced when one comparison passes its limit, so no answer can hang or
crash the caller, from whichever thread it calls. There, and only there, decimals count to six places:
``1.414214`` is √2, but ``0.333333`` is not 1/3.

Fixed bounds: of a completion the last 1,000,000 characters are read (in linear time); an extracted answer
above 1,000 characters is a ``mismatch`` (no reference is that long, and "cannot judge" would let a model
escape by rambling); a reference above 1,000 characters is a ``bad_reference``; a worker may use 2 GiB.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import select
import subprocess
import sys
import time
import typing
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Literal

from tt_reasoning.types import Kind, Reason, Verdict

Fallback = Literal["none", "last_number"]

MAX_TEXT = 1_000_000  # characters of a completion, counted from its end
MAX_ANSWER = 1_000  # characters of an extracted answer or a reference
_MAX_LINE = 60
_WORKER_BYTES = 2 << 30
_WORKER_START_S = 120.0

# --- extract ---------------------------------------------------------------------------------------------

_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_BRACE = re.compile(r"\\{1,2}(?:boxed|fbox)\s*(\{)|\\.|[{}]", re.DOTALL)
_PHRASE = re.compile(r"(?<!#)####(?!#)|\bthe\s+(?:final\s+)?answer\s+is\b", re.IGNORECASE)
_DISPLAY = re.compile(r"(?:\\\[|\$\$).*?(?:\\\]|\$\$)|\$?\\begin\{(\w+\*?)\}.*?\\end\{\1\}\$?", re.DOTALL)
_SENTENCE_END = re.compile(
    r"\n|(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\bMrs)(?<!\.[A-Za-z])[.?](?=[\s*<]|$)|(?<!\\)!(?=\s)|</|<\|"
)
_MATH = re.compile(
    r"\$+((?:[^$\\]|\\.)+)\$+|\\\(((?:(?!\\[()]).)+)\\\)|\\\[((?:(?!\\[\[\]]).)+)\\\]", re.DOTALL
)
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_FRACTION = r"\\[dt]?frac\s*(?:\{\s*(-?[0-9]+)\s*\}|([0-9]))\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))"
_ANY_NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}.%])-)?[$€£¥]?(?:{_FRACTION}|{_DIGITS}/{_DIGITS}|{_DIGITS}(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)%?"
)
_LETTER = re.compile(
    r"(?:(?i:option|choice)\s+)?(?:\(([A-Za-z])\)|([A-Z])(?=$|[.):,])|([B-HJ-Z])(?=\s)|([a-z])(?=[.):]?$))"
)


def extract_answer(text: str, kind: Kind = "math", *, fallback: Fallback = "none") -> str | None:
    """The final answer that a completion states, or None when it states none.

    The most explicit form that is present decides, whatever stands after it; of several markers of that
    form the last one that is complete and not empty:

    1. ``<answer>x</answer>``; a box, ``####`` or phrase inside it is unwrapped.
    2. ``\\boxed{x}``, ``\\fbox{x}``; of nested boxes the innermost.
    3. ``#### x`` and ``The answer is: x`` (any case, also "final answer"), up to the end of the sentence,
       but never inside a decimal number.
    4. No marker, but the whole text is one line of at most 60 characters that is a number (a unit may
       follow) or a formula: that line.
    5. No marker, ``fallback="last_number"`` and kind ``math``: the last number of the text.

    For kind ``choice`` the marked text must begin with one letter that stands alone ("B", "(b)", "B. Paris",
    "option B"; not the article of "A dog"); its capital is the answer.

    >>> extract_answer("<think> \\\\boxed{3}? No. </think><answer>4</answer>")
    '4'
    >>> extract_answer("She pays 2 * $9. The Answer is: $18.50. That is all.")
    '$18.50'
    >>> extract_answer("The answer is (b).", "choice"), extract_answer("The answer is A dog.", "choice")
    ('B', None)
    >>> extract_answer("\\\\frac{1}{2}"), extract_answer("So she has 18 left.")
    ('\\\\frac{1}{2}', None)
    >>> extract_answer("So she has 18 left.", fallback="last_number")
    '18'
    """
    text = text[-MAX_TEXT:]
    tag = _last_tag(text)
    marked = _last_marked(text) if tag is None else _last_marked(tag) or tag
    if marked is None and _is_short_line(text) and (kind == "choice" or _is_formula(text)):
        marked = text
    if kind == "choice":
        return None if marked is None else _letter(marked)
    if marked is None and fallback == "last_number":
        marked = _last_number(text)
    return (_strip(marked) or None) if marked is not None else None


def _last_tag(text: str) -> str | None:
    """What the last complete ``<answer>`` tag holds."""
    start = last = None
    for match in _TAG.finditer(text):
        if not match[1]:
            start = match.end()
        elif start is not None:
            content = text[start : match.start()]
            last = content if content.strip() else last
            start = None
    return last


def _last_marked(text: str) -> str | None:
    """What the last box holds, else what follows the last ``####`` or phrase."""
    return _last_box(text) or _last_phrase(text)


def _last_box(text: str) -> str | None:
    """What the box that opens last holds, of those that close: one pass over all braces, so linear time."""
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


def _last_phrase(text: str) -> str | None:
    """The sentence behind the last ``####`` or "the answer is" that says anything."""
    end = len(text)
    for match in reversed(list(_PHRASE.finditer(text))):
        tail = text[match.end() : min(end, match.end() + 2 * MAX_ANSWER)].lstrip(" \t\r\n:*")
        display = _DISPLAY.match(tail)
        sentence = display[0] if display else _SENTENCE_END.split(tail, maxsplit=1)[0]
        if _strip(sentence):
            return sentence
        end = match.start()
    return None


def _is_short_line(text: str) -> bool:
    return len(text.strip()) <= _MAX_LINE and "\n" not in text.strip()


def _is_formula(line: str) -> bool:
    """Whether a line is a number, a unit allowed, or mathematics without words."""
    without_commands = re.sub(r"\\[A-Za-z]+(?:\{[A-Za-z .()]*\})?", "", line)
    words = re.search(r"[^\W\d_]{3}|[^\W\d_]{2}\s|\s[^\W\d_]{2}\b|[^\W\d_]:", without_commands)
    symbols = re.search(r"\w", line) and re.search(r"[0-9\\+*/^=-]", line)
    return _read_number(_plain(line)) is not None or bool(symbols and not words)


def _last_number(text: str) -> str | None:
    last = deque(_ANY_NUMBER.finditer(text.replace("−", "-")), maxlen=1)
    return last[0][0] if last else None


def _letter(text: str) -> str | None:
    """The letter that a multiple-choice answer begins with, as a capital."""
    match = _LETTER.match(_plain(text[:MAX_ANSWER]))
    return match[match.lastindex].upper() if match else None


def _strip(text: str) -> str:
    """Without what surrounds an answer and is no part of it: blanks, emphasis, quotes, stops, math delimiters."""
    while True:
        inner = text.lstrip(' \t\r\n*"`:').rstrip(' \t\r\n*"`:.,;')
        math = _MATH.fullmatch(inner) if len(inner) <= MAX_ANSWER else None
        inner = math[math.lastindex] if math else inner
        if inner == text:
            return text
        text = inner


# --- normalize -------------------------------------------------------------------------------------------

_DASHES_AND_BLANKS = str.maketrans({"−": "-", "–": "-", "’": "'", "\u00a0": " ", "\u2009": " ", "\u202f": " "})
_REWRITES = [
    (re.compile(pattern), to)
    for pattern, to in (
        (r"\\(?:left|right|displaystyle)(?![A-Za-z])", ""),
        (r"\\[dt]frac(?![A-Za-z])", r"\\frac"),
        (r"\{,\}", ","),
        (r"(?<!\\)\\!\s*", ""),
        (r"(?<=[0-9])\\,(?=[0-9]{3})", ""),
        (r"(?<!\\)\\[()\[\]]", ""),
        (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r" \1"),
        (r"\\([$%])", r"\1"),
        (r"\s+", " "),
    )
]
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\ ?[$€£¥]?\ ?(?P<sign2>-?)"
    rf"(?:(?:(?P<whole>{_DIGITS})\ )?(?P<over>{_DIGITS})\ ?/\ ?(?P<under>{_DIGITS})"
    rf"|(?P<decimal>{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+))"
    r"(?:\ ?%|\ percent\b|\ ?\^\{?\\circ\}?|\ ?°)?\ ?[$€£¥]?"
    r"(?P<unit>(?![0-9.,/^]).*)"
)
_UNIT = re.compile(r"[a-z][a-z'/-]*")
_SHORT_UNITS = {"mm", "cm", "km", "mg", "kg", "ml", "lb", "oz", "ft", "in", "yd", "mi", "hr"}
_NO_UNIT = re.compile(  # words that make another number, or none, of the number beside them
    r"(?<!\\)\b(?:or|not|plus|minus|negative|than|least|most|under|over|squared|cubed|factorial|half|halves"
    r"|(?:third|quarter|fourth|fifth|dozen|hundred|thousand|million|billion|trillion)s?)\b",
    re.IGNORECASE,
)
_PROSE = re.compile(r"[^\W_](?:[^\W_]|[ ,.:'-])*")
_WORD = re.compile(r"[^\W\d_]{4}|\b(?:yes|no|am|pm)\b", re.IGNORECASE)
_LOOSE_BLANK = re.compile(r"(?<!\w) | (?!\w)")
_BASED = re.compile(r"([0-9A-Z]+)_([0-9]+)")


def normalize(answer: str) -> str:
    """One spelling for answers that differ in dress only: the exact value of a number, else tidy text.

    Numbers lose commas, currency, unit and percent sign ("50%" is 50, never 0.5); decimals, ``a/b``,
    ``\\frac`` and mixed numbers become a reduced fraction. Words lose their case.

    >>> [normalize(x) for x in ("$1,200.00", "18 eggs", "0.5", "\\\\dfrac12", "1\\\\frac{4}{5}", "50\\\\%")]
    ['1200', '18', '1/2', '1/2', '9/5', '50']
    >>> normalize("\\\\left( 3, \\\\tfrac{\\\\pi}{2} \\\\right)"), normalize("\\\\text{East}"), normalize("5 million")
    ('(3,\\\\frac{\\\\pi}{2})', 'east', '5 million')
    """
    return _normalize_plain(_plain(answer))


def _normalize_plain(plain: str) -> str:
    number = _read_number(plain)
    if number is not None:
        return str(number)
    text = _LOOSE_BLANK.sub("", plain)
    text = re.sub(r"([_^])\{(\w+)\}", lambda m: m[1] + m[2] if m[1] == "_" or len(m[2]) == 1 else m[0], text)
    text = re.sub(r"^\(([A-Za-z])\)$", r"\1", text)
    text = re.sub(r"(?<=[A-Za-z])\.(?![0-9])", "", text)  # p.m. is pm
    return re.sub(r"^(?:an?|the) ", "", text.casefold()) if _is_prose(text) else text


def _plain(answer: str) -> str:
    """The text without LaTeX's spacing, sizing and text commands."""
    text = _strip(answer.translate(_DASHES_AND_BLANKS))
    for pattern, to in _REWRITES:
        text = pattern.sub(to, text)
    return _strip(text)


def _is_prose(text: str) -> bool:
    """Whether a text is words, a date or a time rather than a product of variables: "east", "3:30 pm", not "xy"."""
    return bool(_PROSE.fullmatch(text) and _WORD.search(text))


def _read_number(plain: str) -> Fraction | None:
    """The exact value of a number with its sign, currency, percent sign and unit; None for anything else."""
    if len(plain) > MAX_ANSWER:
        return None
    text = re.sub(r"\s*" + _FRACTION, lambda m: f" {m[1] or m[2]}/{m[3] or m[4]}", plain).strip()
    match = _NUMBER.fullmatch(text)
    if not match or not _is_unit(match["unit"]):
        return None
    sign = -1 if (match["sign"] == "-") != (match["sign2"] == "-") else 1
    if match["decimal"]:
        return sign * Fraction(match["decimal"].replace(",", ""))
    whole, over, under = (int((match[name] or "0").replace(",", "")) for name in ("whole", "over", "under"))
    return sign * (whole + Fraction(over, under)) if under else None


def _is_unit(text: str) -> bool:
    """Whether words behind a number only say what is counted: "eggs per day", but not "million" or "xy"."""
    words = [word.strip("(),").lower() for word in re.sub(r"\^\{?[23]\}?|[²³]", "", text).split()]
    if not words:
        return True
    if _NO_UNIT.search(text) or not all(_UNIT.fullmatch(word) for word in words):
        return False
    glued = text[0] not in " ("
    return words[0] in _SHORT_UNITS or len(words[0]) >= (4 if glued else 3) or words[0] == "a" and len(words) > 1


def _find_number(plain: str) -> Fraction | None:
    """The number of an answer that says exactly one: alone, behind the last equals sign or in a sentence."""
    left, equals, right = plain.rpartition("=")
    if equals:
        several = re.search(r"[,;<>!]|\b(?:or|and)\b", re.sub(r",(?=[0-9]{3})", "", left))
        return None if several else _read_number(right.strip())
    sentence = re.match(r"(?:(?:[A-Za-z][A-Za-z',:-]+|[aAI]) )+", plain)
    return _read_number(plain[sentence.end() :] if sentence and not _NO_UNIT.search(sentence[0]) else plain)


# --- compare ---------------------------------------------------------------------------------------------


def compare_fast(answer: str, reference: str) -> Literal["match", "mismatch"] | None:
    """The verdict on two short texts when spelling or exact arithmetic decides it; None when mathematics must.

    Two numbers are equal or not, without tolerance. A sentence or an equation with one number says that
    number, if the reference is a number; "5 million" and "5 or 6" are not 5. Of two numbers in a written
    base (``4210_5``) digits and base must agree; a base that only one of them writes is taken to be the
    question's. Words, dates and times are compared as text.

    >>> compare_fast("Janet makes $18 a day", "18"), compare_fast("10001", "10000"), compare_fast("0.333", "1/3")
    ('match', 'mismatch', 'mismatch')
    >>> compare_fast("4210_6", "4210_5"), compare_fast("4210", "4210_5"), compare_fast("2(k+1)", "2k+2")
    ('mismatch', 'match', None)
    """
    plain, plain_reference = _plain(answer), _plain(reference)
    normalized, normalized_reference = _normalize_plain(plain), _normalize_plain(plain_reference)
    if normalized == normalized_reference:
        return "match"
    gold = _read_number(plain_reference)
    number = _find_number(plain) if gold is not None else None
    if number is not None:
        return "match" if number == gold else "mismatch"
    if gold is not None and _NO_UNIT.search(plain):
        return "mismatch"
    based, gold_based = _BASED.fullmatch(normalized), _BASED.fullmatch(normalized_reference)
    if based and gold_based:
        return "mismatch"
    if based and gold is not None or gold_based and normalized.isalnum():
        digits = based[1] if based else normalized
        return "match" if digits == (gold_based[1] if gold_based else normalized_reference) else "mismatch"
    return "mismatch" if _is_prose(normalized_reference) else None


class _Worker:
    """One running ``grading_worker.py``. Raises RuntimeError when it cannot start."""

    def __init__(self, timeout_s: float) -> None:
        script = Path(__file__).with_name("grading_worker.py")
        # -P: the script's folder holds a types.py that must not hide the standard library's.
        command = [sys.executable, "-P", str(script), str(_WORKER_BYTES), str(timeout_s + 10)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            started = self._read(_WORKER_START_S) == "ready"
        except BaseException:
            self.stop()
            raise
        if not started:
            self.stop()
            raise RuntimeError(f"the grading worker does not start; see what `{' '.join(command)}` says")

    def ask(self, reference: str, answer: str, timeout_s: float) -> str | None:
        """The worker's word, ``timeout``, or None when it died. It must be stopped after either of these."""
        try:
            self.process.stdin.write(json.dumps([reference, answer]).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        return self._read(timeout_s)

    def _read(self, timeout_s: float) -> str | None:
        deadline = time.monotonic() + timeout_s
        out = self.process.stdout.fileno()
        poll = select.poll()
        poll.register(out, select.POLLIN)
        line = b""
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return "timeout"
            data = os.read(out, 4096)
            if not data:
                return None
            line += data
        return line.decode().strip()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


class Grader:
    """Grades completions; safe to share between threads. Close it, or use it in a ``with`` block.

    Args:
        timeout_s: limit of one comparison, without the start of the worker (about a second, once).
        num_workers: worker processes, started when first needed.
        fallback: see ``extract_answer``.

    Example:
        >>> with Grader() as grader:
        ...     grader.grade("So the sum is \\\\boxed{2(k+1)}.", "2k+2")
        ...     grader.grade("I do not know.", "18").reason
        Verdict(answer_id='', extracted='2(k+1)', correct=True, reason='match')
        'no_answer'
    """

    def __init__(self, *, timeout_s: float = 5.0, num_workers: int = 1, fallback: Fallback = "none") -> None:
        if timeout_s <= 0:
            raise ValueError(f"timeout_s={timeout_s} is not positive")
        if num_workers < 1:
            raise ValueError(f"num_workers={num_workers} is below 1")
        if fallback not in typing.get_args(Fallback):
            raise ValueError(f"fallback={fallback!r} is none of {', '.join(typing.get_args(Fallback))}")
        self.timeout_s = timeout_s
        self.num_workers = num_workers
        self.fallback = fallback
        self._slots: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(num_workers):
            self._slots.put(None)

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers, once running comparisons have ended. Grading again starts new ones."""
        for worker in [self._slots.get() for _ in range(self.num_workers)]:
            if worker is not None:
                worker.stop()
            self._slots.put(None)

    def grade(self, text: str, reference: str, kind: Kind = "math", *, answer_id: str = "") -> Verdict:
        """The verdict on one completion. ``correct`` is None for everything that cannot be judged.

        Reasons: ``match``; ``mismatch``; ``no_answer`` (wrong: nothing is stated); ``bad_reference`` (it is
        empty, too long, no letter of a choice, or mathematics that cannot be read); ``timeout``; ``error``
        (the comparison raised or killed its worker). Only the first three are judged.

        Raises:
            ValueError: kind ``code``, which is graded by running it.
        """
        extracted = extract_answer(text, kind, fallback=self.fallback)
        reason = self._judge(extracted, reference, kind)
        correct = {"match": True, "mismatch": False, "no_answer": False}.get(reason)
        return Verdict(answer_id=answer_id, extracted=extracted, correct=correct, reason=reason)

    def grade_many(self, items: Iterable[tuple[str, str, str, Kind]]) -> list[Verdict]:
        """The verdicts on ``(answer_id, text, reference, kind)`` items, in their order, ``num_workers`` at a time."""
        with ThreadPoolExecutor(self.num_workers) as pool:
            return list(pool.map(lambda item: self.grade(*item[1:], answer_id=item[0]), items))

    def _judge(self, extracted: str | None, reference: str, kind: Kind) -> Reason:
        if kind not in ("math", "choice"):
            raise ValueError(f"kind {kind!r} is not graded by comparing texts")
        gold = _letter(reference) if kind == "choice" else reference.strip()
        if not gold or len(reference) > MAX_ANSWER:
            return "bad_reference"
        if extracted is None:
            return "no_answer"
        if len(extracted) > MAX_ANSWER:
            return "mismatch"
        if kind == "choice":
            return "match" if extracted == gold else "mismatch"
        return compare_fast(extracted, gold) or self._compare_slowly(extracted, gold)

    def _compare_slowly(self, answer: str, reference: str) -> Reason:
        worker = self._slots.get()
        reply = None
        try:
            if worker is not None and worker.process.poll() is not None:  # something else killed it meanwhile
                worker.stop()
                worker = None
            worker = worker or _Worker(self.timeout_s)
            reply = worker.ask(_strip(reference), _strip(answer), self.timeout_s)
        finally:
            if worker is not None and reply in (None, "timeout"):
                worker.stop()
                worker = None
            self._slots.put(worker)
        return typing.cast(Reason, reply or "error")


# --- summarize -------------------------------------------------------------------------------------------


def count_reasons(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many verdicts have each reason, in the order of ``types.Reason``; zeros are there too.

    >>> count_reasons([Verdict(answer_id="a", extracted=None, correct=False, reason="no_answer")])
    {'match': 0, 'mismatch': 0, 'no_answer': 1, 'bad_reference': 0, 'timeout': 0, 'error': 0}
    """
    counts = dict.fromkeys(typing.get_args(Reason), 0)
    for verdict in verdicts:
        counts[verdict.reason] += 1
    return counts


def accuracy(verdicts: Iterable[Verdict]) -> float | None:
    """The share of correct verdicts among the judged ones (``correct`` is not None), in [0, 1]; None if none is.

    >>> from functools import partial; verdict = partial(Verdict, answer_id="a", extracted="4")
    >>> accuracy([verdict(correct=True, reason="match"), verdict(correct=False, reason="mismatch"),
    ...           verdict(correct=None, reason="timeout")])
    0.5
    """
    judged = [verdict.correct for verdict in verdicts if verdict.correct is not None]
    return sum(judged) / len(judged) if judged else None
