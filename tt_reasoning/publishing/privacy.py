"""What must not leave this machine with a file that is published: secrets, and where things lie on it.

Secrets are found by their form (the tokens of the usual services, private keys, passwords in addresses) and, where
this process has them in its environment, by their value. They are named by kind, file and line, never shown. Files
stream through, so one of many gigabytes takes no memory. Nothing is found in compressed files, in pictures, or in
a password that looks like any other word.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

_SECRETS: tuple[tuple[str, tuple[bytes, ...], str], ...] = (  # kind, how it begins, its form
    ("a Hugging Face token", (b"hf_", b"api_org_"), r"(?<!\w)(?:hf|api_org)_[A-Za-z0-9]{30,}"),
    ("an Anthropic key", (b"sk-ant-",), r"(?<!\w)sk-ant-[\w-]{20,}"),
    ("an OpenAI key", (b"sk-",), r"(?<![\w-])sk-(?!ant-)(?=[A-Za-z_-]*[0-9])[\w-]{20,}"),
    ("a GitHub token", (b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_"), r"(?<!\w)gh[pousr]_[A-Za-z0-9]{30,}"),
    ("a GitHub token", (b"github_pat_",), r"(?<!\w)github_pat_\w{22,}"),
    ("a GitLab token", (b"glpat-",), r"(?<!\w)glpat-[\w-]{20,}"),
    ("an AWS key", (b"AKIA", b"ASIA"), r"(?<!\w)A(?:KIA|SIA)[0-9A-Z]{16}(?!\w)"),
    ("a Google key", (b"AIza",), r"(?<!\w)AIza[\w-]{35}"),
    ("a Slack token", (b"xox",), r"(?<!\w)xox[abeoprs]-[A-Za-z0-9-]{10,}"),
    ("a bearer token", (b"Bearer ", b"bearer "), r"[Bb]earer +(?=[A-Za-z._~+/-]*[0-9])[\w.~+/-]{20,}"),
    ("a JSON web token", (b"eyJ",), r"(?<!\w)eyJ[\w-]{10,}\.eyJ[\w-]{10,}\."),
    ("a private key", (b"-----BEGIN ",), r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY"),
    ("a password in an address", (b"://",), r"://[^\s/:@\"'<>\\]+:[^\s/:@\"'<>\\]{3,}@\w"),
)
_COMPILED = tuple((kind, beginnings, re.compile(form.encode())) for kind, beginnings, form in _SECRETS)
_SECRET_FILES = (
    ".env", ".env.*", "*.env", ".netrc", ".npmrc", ".pypirc", ".git-credentials", "id_rsa", "id_ed25519", "id_ecdsa",
    "*.pem", "*.key", "*.p12", "*.pfx", "*.kdbx", "credentials", "credentials.json", "stored_tokens",
)  # fmt: skip
_OWN_NAMES = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL")
_OVERLAP = 1024  # bytes of a block that are looked at again with the next one: more than a match needs
_BLOCK = 1 << 20


class Secret(NamedTuple):
    """Something that looks like a secret: its kind and the line it stands on, from 1."""

    line: int
    kind: str


def is_secret_file(name: str) -> bool:
    """Whether a file of that name is made to hold secrets.

    >>> [is_secret_file(name) for name in (".env", "prod.env", "deploy.pem", "environment.md", "tokenizer.json")]
    [True, True, True, False, False]
    """
    return any(fnmatch(name.lower(), pattern) for pattern in _SECRET_FILES)


def own_secrets(environment: Mapping[str, str] | None = None) -> dict[str, bytes]:
    """The values of the environment's variables that are called token, key, secret or password, by their kind.

    >>> own_secrets({"MY_API_KEY": "correct-horse-battery", "HOME": "/home/ada", "SSH_KEY": "/home/ada/.ssh/id"})
    {'the value of MY_API_KEY': b'correct-horse-battery'}
    """
    return {
        f"the value of {name}": value.encode()
        for name, value in (os.environ if environment is None else environment).items()
        if _OWN_NAMES.search(name.upper()) and len(value) >= 12 and not re.search(r"\s|^[/~.]|^https?:", value)
    }


def find_secrets(blocks: Iterable[bytes], values: Mapping[str, bytes] | None = None) -> Iterator[Secret]:
    """What looks like a secret in a stream of bytes, each once.

    Args:
        blocks: the stream in pieces of any length.
        values: what else to look for, by its kind, such as ``own_secrets()``.

    >>> list(find_secrets([b"one\\ntwo ghp_" + b"0" * 20, b"1" * 16 + b"\\n"]))
    [Secret(line=2, kind='a GitHub token')]
    """
    tail, base, line, seen = b"", 0, 1, set()
    for block in blocks:
        buffer = tail + block
        for kind, start in _matches(buffer, values or {}):
            # A match at the very start was seen whole in the buffer before, with the letters in front of it.
            if (kind, base + start) not in seen and (start or not base):
                seen.add((kind, base + start))
                yield Secret(line + buffer.count(b"\n", 0, start), kind)
        keep = max(0, len(buffer) - _OVERLAP)
        tail, base, line = buffer[keep:], base + keep, line + buffer.count(b"\n", 0, keep)


def _matches(buffer: bytes, values: Mapping[str, bytes]) -> Iterator[tuple[str, int]]:
    for kind, beginnings, form in _COMPILED:
        for beginning in beginnings:  # to find these first is many times faster than the form alone
            yield from ((kind, start) for start in _find_all(buffer, beginning) if form.match(buffer, start))
    for kind, value in values.items():
        yield from ((kind, start) for start in _find_all(buffer, value))


def _find_all(buffer: bytes, value: bytes) -> Iterator[int]:
    start = buffer.find(value)
    while start >= 0:
        yield start
        start = buffer.find(value, start + 1)


def read_blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, a mebibyte at a time."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def text_blocks(path: Path) -> Iterator[bytes]:
    """What can be read in a file, for ``find_secrets``: a Parquet file row by row, one line a row; of a safetensors
    file its header; of any other all bytes."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256):
            yield "".join(json.dumps(row, default=str, ensure_ascii=False) + "\n" for row in batch.to_pylist()).encode()
    elif path.suffix == ".safetensors":
        with path.open("rb") as file:
            yield file.read(min(int.from_bytes(file.read(8), "little"), 100_000_000))
    else:
        yield from read_blocks(path)


_STRING = r'"(?:[^"\\]|\\.)*"'
_ANY_STRING = re.compile(_STRING)
_BY_KEY = {
    "records": re.compile(rf'("(?:value_)?model"\s*:\s*)({_STRING})'),
    "rows": re.compile(rf'("source"\s*:\s*)({_STRING})'),
    "configs": re.compile(
        rf'("(?:\w*name_or_path|tokenizer_file|vocab_file|special_tokens_map_file)"\s*:\s*)({_STRING})'
    ),
}
_WHOLE_PATH = re.compile(r"(?:/|~[\w-]*/|\.\./|[A-Za-z]:[\\/]|\\\\)[^\n]*|\.\.")
# Two names at least, so that "/4" and "and/or" stay; not behind what an address or a relative path begins with.
_INNER_PATH = re.compile(r"(?<![\w.:/\\~>-])(?:~[\w-]*|\.\.(?:/\.\.)*)?/[\w.@+-]+(?:/[\w.@+-]+)+/?")
_INNER_WINDOWS = re.compile(r"(?<!\w)[A-Za-z]:\\[\w.@+-]+(?:\\[\w.@+-]+)*")


def scrub_paths(text: str) -> str:
    """A text without the folders of this machine: of a path that is absolute or leads out (``..``) the name is left.

    >>> scrub_paths("/home/ada/models/qwen"), scrub_paths("answers/demo"), scrub_paths("../x/train.jsonl")
    ('qwen', 'answers/demo', 'train.jsonl')
    >>> scrub_paths("cannot read /home/ada/key.txt: see https://example.org/a/b")
    'cannot read key.txt: see https://example.org/a/b'
    """
    if _WHOLE_PATH.fullmatch(text):
        return _name(text)
    text = _INNER_PATH.sub(lambda found: _name(found[0]), text)
    return _INNER_WINDOWS.sub(lambda found: _name(found[0]), text)


def _name(path: str) -> str:
    plain = PureWindowsPath(path) if "\\" in path or path[1:2] == ":" else PurePosixPath(path)
    return "." if plain.name in ("", "..", "~") else plain.name


def scrub_json(text: str, *, only: str | None = None) -> str:
    """JSON (one value or lines) with ``scrub_paths`` of its strings; everything else stays as it is, byte for byte.

    Args:
        only: ``records``: of the values of ``model`` and ``value_model`` alone; ``rows``: of those of ``source``;
            ``configs``: of those that name where a model or tokenizer was loaded from. None: of every string.

    >>> scrub_json('{"text": "/a/b", "sampling": {"model": "/a/b"}}', only="records")
    '{"text": "/a/b", "sampling": {"model": "b"}}'
    """
    if only is None:
        return _ANY_STRING.sub(lambda found: _scrub_literal(found[0]), text)
    return _BY_KEY[only].sub(lambda found: found[1] + _scrub_literal(found[2]), text)


def _scrub_literal(literal: str) -> str:
    value = json.loads(literal, strict=False)
    scrubbed = scrub_paths(value)
    return literal if scrubbed == value else json.dumps(scrubbed, ensure_ascii="\\u" in literal)
