"""The child process behind ``grading.Grader``: one JSON line ``[reference, answer]`` in, one word out.

It runs as a plain script (``python -P worker.py MEMORY_BYTES LIMIT_S``), so it imports nothing of the
caller and forks none of the caller's threads. It says ``ready`` once its imports are done, so that their
time counts against no comparison. Whoever started it kills it when an answer takes too long; should that
process be gone, an alarm of its own ends it. It ends with its standard input.

math-verify decides, made stricter where it calls unequal things equal, and faster where a few digits tell two
expressions apart (``_adapt_math_verify``).
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import resource
import signal
import sys

_DOLLARS = re.compile(r"(?<!\\)\$+((?:[^$\\]|\\.)+)\$+", re.DOTALL)
_JOINT = re.compile(r"[\s,;.]*(?:\b(?:and|or)\b)?[\s,;.]*", re.IGNORECASE)
_OTHERWISE = re.compile(r"\b(?:not|or|than|least|most|between|except|unless|if|where|when|for)\b", re.IGNORECASE)
_INTEGER = re.compile(r"-?[0-9]{1,1000}")
_PERCENT = re.compile(r"\\?%")
_MIXED = re.compile(r"(?<![0-9.])([0-9]+) ([0-9]+)/([0-9]+)(?![0-9.])")
_DIGITS_AFTER_POINT = 50  # two expressions that agree so far are equal, if sympy cannot tell otherwise


def compare(reference: str, answer: str) -> str:
    """``match``, ``mismatch``, ``bad_reference`` (it cannot be read) or ``error`` (math-verify raised).

    An answer that cannot be read is a mismatch: the reference is sound, so the answer is to blame. A decimal is
    the number it writes and no other; percent signs say nothing.

    >>> compare("(3,4]", "3 < x \\\\le 4"), compare("2k+2", "2(k+1)"), compare("x=5", "y=5"), compare("{", "5")
    ('match', 'match', 'mismatch', 'bad_reference')
    >>> compare("\\\\sqrt{2}", "1.414214"), compare("10^{-8}", "0.0000001"), compare("10^{-8}", "0.00000001")
    ('mismatch', 'mismatch', 'match')
    >>> compare("x^2+2x+5=0", "x^2+3x+7=0"), compare("x^2+2x+5=0", "2x^2+4x=-10")
    ('mismatch', 'match')
    >>> compare("2\\\\sqrt{3}", "the length is $2\\\\sqrt3$"), compare("2\\\\sqrt{3}", "at most $2\\\\sqrt3$")
    ('match', 'mismatch')
    """
    from math_verify import verify

    _adapt_math_verify()
    gold, given = read(reference, prose=False), read(answer, prose=True)
    if not gold:
        return "bad_reference"
    if not given or _unlike(gold[0], given[0]):
        return "mismatch"
    try:
        equal = verify(
            gold, given, numeric_precision=_DIGITS_AFTER_POINT, allow_set_relation_comp=True,
            timeout_seconds=None, raise_on_error=True,
        )  # fmt: skip
    except MemoryError:
        raise
    except Exception as error:  # sympy raises anything; the caller counts it as `error`
        unlike = isinstance(error, ValueError) and str(error).startswith("zip()")  # so many against so many
        return "mismatch" if unlike else "error"
    return "match" if equal else "mismatch"


@functools.lru_cache(maxsize=1024)
def read(text: str, prose: bool) -> list:
    """What math-verify makes of a text, as a list of one; empty when it cannot be read as mathematics.

    Text without dollars is mathematics as a whole; mathematics between dollars may be a list. Around a single one
    ``prose`` allows words that do not change what it says.
    """
    from latex2sympy2_extended.sets import FiniteSet

    line = " ".join(_PERCENT.sub("", text).split())
    parts = _DOLLARS.findall(line)
    if not parts:
        return _parse(line)
    around = _DOLLARS.split(line)[::2]
    if all(_JOINT.fullmatch(words) for words in around):
        members = [_parse(part) for part in parts]
        if len(members) == 1 or not all(members):
            return members[0] if len(members) == 1 else []
        return [FiniteSet(*(each for [member] in members for each in _elements(member)))]
    return _parse(parts[0]) if prose and len(parts) == 1 and not _OTHERWISE.search(" ".join(around)) else []


def _parse(mathematics: str) -> list:
    from math_verify import LatexExtractionConfig, parse
    from sympy import Integer, S

    if _INTEGER.fullmatch(mathematics):
        return [Integer(mathematics)]
    mathematics = _MIXED.sub(r"(\1+\\frac{\2}{\3})", mathematics)
    parsed = parse(f"${mathematics}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
    # [3,1) is no interval; the empty set that it becomes would equal every other such slip.
    return [] if parsed == [S.EmptySet] and re.search(r"[\[(]", mathematics) else parsed


def _elements(value: object) -> tuple:
    from sympy import FiniteSet

    return value.args if isinstance(value, FiniteSet) else (value,)


def _unlike(gold: object, given: object) -> bool:
    """Whether one of two is an interval, a union or a tuple, and the other a single value."""
    from sympy import Expr, Interval, MatrixBase, MatrixExpr, Tuple, Union

    def is_value(each: object) -> bool:
        return isinstance(each, Expr) and not isinstance(each, MatrixBase | MatrixExpr)

    several = Interval, Union, Tuple
    return is_value(gold) and isinstance(given, several) or is_value(given) and isinstance(gold, several)


def _plainly_differ(one: object, other: object) -> bool:
    """Whether two expressions have different values where every letter is some number between 1 and 2."""
    from sympy import Expr, Rational

    if not isinstance(one, Expr) or not isinstance(other, Expr):
        return False
    try:
        difference = one - other
        letters = sorted(difference.free_symbols, key=str)
        numbers = [Rational(101 + 17 * place % 97, 101) for place in range(1, len(letters) + 1)]
        value = difference.subs(dict(zip(letters, numbers, strict=True))).evalf(20)
        return bool(value.is_number and value.is_finite and abs(value) > 1e-9)
    except MemoryError:
        raise
    except Exception:  # sympy raises anything; then math-verify may try
        return False


@functools.cache
def _adapt_math_verify() -> None:
    """Correct math-verify 0.9.0, in this process: decimals are exact, equations without solutions are not all equal.

    As it is, it rounds decimals to six places, so that 0.333333 is 1/3 and 0.0000002 is 10^-7; it takes any two
    equations for equal that have no real solution; it adds what stands side by side, so that 3(8) and "3 8" are 11
    (meant for mixed numbers); and it compares a single letter with an expression as text, so that 2x - x is not x.

    And speed it up: what simplifies to zero is zero everywhere, so two expressions with unlike values need no
    simplifying; and what ANTLR's SLL mode can parse, it parses as the slower LL mode would (its documentation of
    ``PredictionMode``), which is left for the rest.
    """
    from antlr4.atn.PredictionMode import PredictionMode
    from latex2sympy2_extended import latex2sympy2
    from math_verify import grader
    from sympy import Eq, Expr, MatrixBase, Rational, simplify, solve

    reader = latex2sympy2._Latex2Sympy
    create_parser, parse, read_number = reader.create_parser, reader.parse, reader.parse_number
    compare_solutions = grader.sympy_solve_and_compare
    multiply = reader.convert_postfix_list
    compare_letters = grader.sympy_compare_symbols
    compare_values = grader.sympy_numeric_eq
    compare_symbolically = grader.sympy_symbolic_eq

    def read_exactly(self: object, text: str) -> object:
        return Rational(text.replace(",", "")) if "." in text else read_number(self, text)

    def multiply_neighbours(self: object, factors: list, place: int = 0) -> object:
        first = self.convert_postfix(factors[place])
        if place + 1 == len(factors):
            return first
        if not isinstance(first, Expr | MatrixBase):
            return multiply(self, factors, place)  # a derivative
        one, other = factors[place].getText(), factors[place + 1].getText()
        if one.isdigit() and other[0].isdigit():
            raise ValueError(f"{one} {other} is no number and no product")
        rest = self.convert_postfix_list(factors, place + 1)
        if isinstance(first, MatrixBase) or isinstance(rest, MatrixBase):
            return self.mat_mul_flat(first, rest)
        is_mixed = one.isdigit() and other.startswith("\\frac") and place + 2 == len(factors)
        return first + rest if is_mixed and rest.is_Rational else self.mul_flat(first, rest)

    def compare_equations(gold: object, given: object, *precision: int) -> bool:
        if isinstance(gold, Eq) and isinstance(given, Eq):
            ratio = simplify((gold.lhs - gold.rhs) / (given.lhs - given.rhs))
            if ratio.is_number and ratio.is_finite and ratio.is_nonzero:
                return True
            if not solve(gold, gold.free_symbols):
                return False
        return compare_solutions(gold, given, *precision)

    def compare_numerically(gold: object, given: object, *precision: int) -> bool:
        return not _plainly_differ(gold, given) and compare_values(gold, given, *precision)

    def simplify_difference(gold: object, given: object) -> bool:
        return not _plainly_differ(gold, given) and compare_symbolically(gold, given)

    def create_fast_parser(self: object, text: str) -> object:
        parser = create_parser(self, text)
        parser._interp.predictionMode = PredictionMode.SLL
        return parser

    def parse_in_two_stages(self: object, text: str) -> object:
        self.create_parser = functools.partial(create_fast_parser, self)
        try:
            return parse(self, text)
        except MemoryError:
            raise
        except Exception:  # whatever it raises for what it cannot parse
            del self.create_parser
            return parse(self, text)

    def compare_letter(gold: object, given: object) -> bool:
        return compare_letters(gold, given) or grader.sympy_symbolic_eq(gold, given)

    reader.parse, reader.parse_number = parse_in_two_stages, read_exactly
    reader.convert_postfix_list = multiply_neighbours
    grader.sympy_compare_symbols = compare_letter
    grader.sympy_solve_and_compare = compare_equations
    grader.sympy_numeric_eq = compare_numerically
    grader.sympy_symbolic_eq = simplify_difference


def _limit_memory(num_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        num_bytes = min(num_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, hard))


def main() -> None:
    memory_bytes, limit_s = int(sys.argv[1]), float(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the default ends the process, even inside a huge power
    _limit_memory(memory_bytes)
    logging.disable()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the parser prints must not pass for a reply
    compare("x + 1", "1 + x")  # imports and builds the parser
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        reply = compare(*json.loads(line))  # out of memory: this process ends, and another takes over
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(reply, file=replies, flush=True)


if __name__ == "__main__":
    main()
