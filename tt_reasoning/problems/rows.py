"""Reading one field of a benchmark's row: present, of the right type, in one spelling."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
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


def optional_text_field(row: dict[str, Any], name: str) -> str | None:
    """A text that not every copy of a benchmark has: None when it is missing or empty.

    >>> optional_text_field({"subfield": "Algebra"}, "subfield"), optional_text_field({}, "subfield")
    ('Algebra', None)
    """
    return text_field(row, name) if row.get(name) else None


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


def texts_field(row: dict[str, Any], name: str) -> list[str]:
    """A list of texts, each stripped. Raises ValueError when it is missing or empty or holds anything else.

    >>> texts_field({"choices": ["3", " 4"]}, "choices")
    ['3', '4']
    """
    value = _field(row, (name,))
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name}={value!r} should be a list of texts")
    return [text.strip() for text in value]


def position_field(row: dict[str, Any], name: str, labels: Sequence[str]) -> int:
    """Where the row's label stands among ``labels``, from 0; a number that is no label is that position itself.

    Raises ValueError when it is missing or stands nowhere.

    >>> position_field({"answer": "B"}, "answer", "ABCD"), position_field({"answer": 1}, "answer", "ABCD")
    (1, 1)
    >>> position_field({"answerKey": "2"}, "answerKey", ["1", "2", "3"])
    1
    """
    value = _field(row, (name,))
    label = value.strip() if isinstance(value, str) else str(value)
    if label in list(labels):
        return list(labels).index(label)
    if type(value) is int and 0 <= value < len(labels):
        return value
    raise ValueError(f"{name}={value!r} is none of the {len(labels)} options {', '.join(labels)}")


def _present(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in row), None)


def _field(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    name = _present(row, names)
    if name is None:
        raise ValueError(f"no field {' or '.join(map(repr, names))}")
    return row[name]
