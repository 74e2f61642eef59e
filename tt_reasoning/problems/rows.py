"""Reading one field of a benchmark's row: present, of the right type, in one spelling."""

from __future__ import annotations

import math
import re
from typing import Any

_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)(/\d+)?")


def text_field(row: dict[str, Any], *names: str) -> str:
    """The first of ``names`` that the row has, as stripped text. Raises ValueError when it is missing or empty.

    >>> text_field({"input": " How many? "}, "question", "input")
    'How many?'
    """
    value = _field(row, names)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{_present(row, names)}={value!r} should be a text")
    return value.strip()


def number_field(row: dict[str, Any], *names: str) -> str:
    """The first of ``names`` that the row has, as a number in its shortest spelling.

    Thousands separators go; a fraction stays one. Raises ValueError when it is missing or no number.

    >>> [number_field({"x": x}, "x") for x in (145.0, "145.0", 9.43, "1,080", "3/4", "-2.50")]
    ['145', '145', '9.43', '1080', '3/4', '-2.5']
    """
    value = _field(row, names)
    text = value.strip() if isinstance(value, str) else repr(value)
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        text = str(int(value))
    text = re.sub(r"(?<=\d)[,_](?=\d{3})", "", text)
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{_present(row, names)}={value!r} should be a number")
    return re.sub(r"\.0*$|(\.\d*?[1-9])0+$", r"\1", text)


def _present(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in row), None)


def _field(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    name = _present(row, names)
    if name is None:
        raise ValueError(f"no field {' or '.join(map(repr, names))}")
    return row[name]
