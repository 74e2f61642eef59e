r"""How many tokens texts have, without tokenizing the same word twice.

A tokenizer's time goes into words, and solutions repeat few of them many times. Byte-level tokenizers (SmolLM2's,
Qwen's, Llama 3's, GPT-2's) first cut a text into parts that no token crosses, and no part goes on over a space that
follows anything but whitespace. So a text may be cut at such spaces and the counts of its words added: the sum is the
length that the tokenizer itself gives. Three things make that fast: a word is looked up; a new one is cut into its
parts, which are looked up too, so that few are ever tokenized; and where every digit is a token of its own, words that
differ in their digits alone are one. A tokenizer of any other kind gets whole texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tt_reasoning.errors import UserError

CountTokens = Callable[[list[str]], list[int]]

_MAX_WORDS = 50_000  # some 10 MB at most, however long the run
_DIGITS = "0123456789"

# How published tokenizers cut a text: ByteLevel's own pattern, and the one of Llama 3, Qwen and others of their line.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# SmolLM2 cuts at each digit first: behind that cut, whitespace in front of a digit stands at an end.
_SMOLLM2 = _GPT2.replace(r" ?\p{N}+", r"\p{N}").replace(r"(?!\S)", r"(?![^\s\p{N}])")
_CUTS = {
    ("ByteLevel",): _GPT2,
    ("Digits", "ByteLevel"): _SMOLLM2,
    (_QWEN2, "bytes"): _QWEN2,
    (_LLAMA3, "bytes"): _LLAMA3,
}


def load_token_counter(tokenizer: str | Path) -> CountTokens:
    """Counts tokens by the ``tokenizer.json`` of a model's folder, without special tokens, truncation or padding.

    Raises UserError when there is no such file, or it is none.
    """
    path = Path(tokenizer) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"no tokenizer at {path}; name a model's folder, such as one of tools/get_model.py")
    try:
        loaded = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise UserError(f"{path} is no tokenizer: {error}") from None
    loaded.no_truncation()
    loaded.no_padding()
    description = json.loads(path.read_text(encoding="utf-8"))
    cut = _cut_of(description)
    if cut is None:
        return lambda texts: [len(e) for e in loaded.encode_batch_fast(texts, add_special_tokens=False)]
    return _WordCounter(loaded, cut, [token["content"] for token in description["added_tokens"]])


def _cut_of(description: dict[str, Any]) -> str | None:
    """The pattern that cuts a text into parts; None where this module knows none, or a word's length is its text's."""
    normalizer = description["normalizer"]
    if normalizer and normalizer["type"] != "NFC":  # composes nothing with a space, and leaves ASCII as it is
        return None
    if description["model"].get("dropout"):
        return None
    for token in description["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"] or re.search(r"\s", token["content"]):
            return None
    step = description["pre_tokenizer"] or {"type": None}
    steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
    return _CUTS.get(tuple(map(_kind_of, steps)))


def _kind_of(step: dict[str, Any]) -> str | None:
    kind = step["type"]
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return "ByteLevel" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step["individual_digits"]:
        return "Digits"
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return step["pattern"].get("Regex")
    return None


def _in_ascii(pattern: str) -> re.Pattern[str]:
    r"""The pattern for ASCII texts alone: Python's ``re`` knows no Unicode classes.

    >>> _in_ascii(r" ?[^\s\p{L}\p{N}]+|\p{N}{1,3}").pattern
    ' ?[^\\sA-Za-z0-9]+|[0-9]{1,3}'
    """
    inside = re.sub(r"\[.*?\]", lambda m: m[0].replace(r"\p{L}", "A-Za-z").replace(r"\p{N}", "0-9"), pattern)
    return re.compile(inside.replace(r"\p{L}", "[A-Za-z]").replace(r"\p{N}", "[0-9]"), re.ASCII)


class _Counts(dict[str, int]):
    """Counts by what was counted; emptied when full, so that memory stays flat."""

    def __init__(self, count: Callable[[str], int]) -> None:
        self._count = count

    def __missing__(self, text: str) -> int:
        if len(self) >= _MAX_WORDS:
            self.clear()
        self[text] = count = self._count(text)
        return count


class _NotAWord(Exception):
    """What ends in whitespace: the space behind it is no place to cut."""


class _WordCounter:
    r"""Counts tokens word by word. A word is known without the space in front of it, and with \0 for spaces in it."""

    def __init__(self, tokenizer: Tokenizer, cut: str, added_tokens: list[str]) -> None:
        self._tokenizer = tokenizer
        self._cut = _in_ascii(cut)
        self._added_token = re.compile("|".join(map(re.escape, added_tokens)) or "(?!)")
        self._words = _Counts(self._count_word)
        self._parts = _Counts(self._tokenize)
        # A digit that is cut off alone and makes one token, wherever it stands, may be any other.
        alone = cut in (_QWEN2, _SMOLLM2) and not set("".join(added_tokens)) & set(_DIGITS)
        folds = alone and all(self._tokenize(digit) == 1 for digit in _DIGITS)
        self._fold = str.maketrans(_DIGITS, "0" * 10) if folds else {}

    def __call__(self, texts: list[str]) -> list[int]:
        return [self._count_text(text) for text in texts]

    def _count_text(self, text: str) -> int:
        if "\0" in text:
            return self._tokenize(text)
        first, *words = _mark_inner_spaces(text.translate(self._fold)).split(" ")
        try:
            return self._count_first(first) + sum(map(self._words.__getitem__, words))
        except _NotAWord:
            return self._tokenize(text)

    def _count_first(self, word: str) -> int:
        if word and word[-1].isspace():
            raise _NotAWord
        return self._count_parts(word.replace("\0", " "))

    def _count_word(self, word: str) -> int:
        if not word or word[-1] == "\0" or word[-1].isspace():
            raise _NotAWord
        return self._count_parts(" " + word.replace("\0", " "))

    def _count_parts(self, text: str) -> int:
        if not text.isascii() or self._added_token.search(text):
            return self._tokenize(text)
        return sum(map(self._parts.__getitem__, self._cut.findall(text)))

    def _tokenize(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))


def _mark_inner_spaces(text: str) -> str:
    r"""The text with \0 for each space that follows a space or a line's end: where it may not be cut.

    >>> _mark_inner_spaces("We know:\n   x  = 3")
    'We know:\n\x00\x00\x00x \x00= 3'
    """
    if "\n " in text:
        text = text.replace("\n   ", "\n\0\0\0").replace("\n ", "\n\0")  # the first is for speed: most indents are 3
    if "  " in text:
        text = text.replace("  ", " \0")
    while "\0 " in text:
        text = text.replace("\0 ", "\0\0")
    return text
