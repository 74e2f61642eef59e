"""What of a folder goes to the Hub, and what does not: chosen, cleaned, checked and described before a byte is sent.

``plan_publication`` reads a folder that a tool or a recipe made (or any Hugging Face folder) and never writes to it.
Files that cannot be read for secrets, that run code when they are loaded, or that belong to this machine alone stay
here, each with its reason; a secret, or a link out of the folder, stops the plan. Manifests and records lose the
folders of this machine. Answer sets without a Parquet file get one, which ``datasets.load_dataset`` reads; every
folder without a README.md gets a card.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from tt_reasoning import store
from tt_reasoning.answer_sets.tables import DATASET
from tt_reasoning.errors import UserError
from tt_reasoning.evaluation import RESULTS
from tt_reasoning.hub import CARD, HubFile, RepoType, check_repo_name
from tt_reasoning.publishing.cards import MODEL_KINDS, check_card, choose_license, is_own_card, write_card
from tt_reasoning.publishing.inventory import (
    STATS,
    Content,
    Kind,
    check_weights,
    describe,
    name_kind,
    read_text,
    recognise,
)
from tt_reasoning.publishing.privacy import (
    Secret,
    find_secrets,
    is_secret_file,
    own_secrets,
    read_blocks,
    scrub_json,
    text_blocks,
)
from tt_reasoning.sft_data import REJECTED, SFT

_RUN_FILES = (store.MANIFEST, STATS, RESULTS, "aggregator.json", "source.json")  # every string may be a path
_BINARY = (".safetensors", ".parquet", ".arrow", ".gguf", ".model", ".png", ".jpg", ".jpeg", ".gif", ".webp", ".pdf")
_PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz")
_PACKED = (".gz", ".tgz", ".zip", ".tar", ".bz2", ".xz", ".zst", ".7z", ".rar", ".lz4")
_PASSING = (".lock", ".tmp", ".part", ".partial", ".incomplete", ".swp", ".pyc", ".log")
_PACKED_MAGIC = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!")
_MAX_JSON = 100 << 20  # a larger .json is data, and as such is left as it is
_MOST_PLACES = 3  # named in one error


@dataclass(frozen=True, kw_only=True)
class Publication:
    """All that is to be published and all that is known about it.

    ``left_out`` says why each file stays here; ``notes`` are remarks for the user; ``card_is_own`` is False where the
    folder brought its README.md. ``license_asked`` says why a licence has to be given before an upload.
    """

    repo: str
    repo_type: RepoType
    kind: Kind
    files: tuple[HubFile, ...]
    left_out: dict[str, str]
    notes: tuple[str, ...]
    card: str
    card_is_own: bool
    license_asked: str | None

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size for file in self.files)

    def may_replace(self, card: str) -> bool:
        """Whether the card of a repository may be replaced: by one of the user's, or where nobody edited it."""
        return not self.card_is_own or is_own_card(card)


def plan_publication(
    folder: Path,
    work: Path,
    *,
    repo: str,
    repo_type: RepoType | None = None,
    license: str | None = None,
    base_model: str | None = None,
    results: Sequence[Path] = (),
) -> Publication:
    """Read a folder and say what would be published of it, and as what. Nothing is sent and ``folder`` stays as it is.

    Args:
        work: an empty folder for what has to be written: a Parquet file of answer sets, cleaned records.
        repo: ``user/name``.
        repo_type: what the user takes it for; None: what the folder is.
        license: an id of the Hub, in place of the benchmarks' or the base model's.
        base_model: the model's start, as a name of the Hub.
        results: folders of ``evaluate`` whose numbers the card shows.

    Raises:
        UserError: nothing that can be published, something unfinished or damaged, a secret, a link out of the folder.
    """
    check_repo_name(repo)
    if base_model is not None:
        check_base_model(base_model)
    kind = recognise(folder)
    found_type: RepoType = "model" if kind in MODEL_KINDS else "dataset"
    if repo_type not in (None, found_type):
        raise UserError(f"{folder} holds {name_kind(kind)}: publish it with --type {found_type}, not {repo_type}")
    with ExitStack() as stack:
        if (folder / store.LOCK).exists() and os.access(folder / store.LOCK, os.W_OK):
            stack.enter_context(store.lock(folder / store.LOCK))
        chosen, left_out = choose_files(folder)
        if found_type == "model":
            check_weights(folder)
        if kind == "answer sets" and any(path.startswith(f"{DATASET}/") for path in chosen):
            left_out[f"{DATASET}/"] = "for load_from_disk; the same sets are published as Parquet"
            chosen = {path: source for path, source in chosen.items() if not path.startswith(f"{DATASET}/")}
        contents: dict[str, Content] = {
            path: clean_file(path, source, work, base_model) for path, source in chosen.items() if path != CARD
        }
        subject = describe(folder, kind, contents, work, repo=repo, base_model=base_model, results=results)
        sources = [] if subject.is_model else [source for source, _ in subject.sources]
        licence = choose_license(license, sources, base_model if subject.is_model else None)
        notes = []
        if CARD in chosen:
            card = read_text(chosen[CARD])
            notes += check_card(card, list(contents))
        else:
            card = write_card(replace(subject, license=licence.fields))
            if subject.is_model and base_model is None:
                notes.append("the card names no base model; say it with --base-model, such as Qwen/Qwen2.5-3B")
        contents[CARD] = chosen.get(CARD, card.encode())
        files, remarks = _inspect(contents, folder)
    return Publication(
        repo=repo, repo_type=found_type, kind=kind, files=files, left_out=left_out, notes=(*notes, *remarks),
        card=card, card_is_own=CARD not in chosen, license_asked=None if CARD in chosen else licence.asked,
    )  # fmt: skip


def check_base_model(name: str) -> None:
    """Raise UserError unless ``name`` can be a model of the Hub."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"--base-model {name}: give its name on the Hub, such as Qwen/Qwen2.5-3B")


def choose_files(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The files to publish by their path in the folder, and why each other one stays.

    Raises:
        UserError: a file made to hold secrets, a link out of the folder, a name that the Hub cannot have.
    """
    root = folder.resolve()
    chosen: dict[str, Path] = {}
    left_out: dict[str, str] = {}

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}")

    for place, folders, names in os.walk(root, onerror=refuse):
        here = Path(place)
        for name in sorted(folders):
            path = (here / name).relative_to(root).as_posix()
            if reason := _reason_against_folder(root, here / name):
                left_out[path + "/"] = reason
                folders.remove(name)
        folders.sort()
        for name in sorted(names):
            path = (here / name).relative_to(root).as_posix()
            if reason := _reason_against_file(root, here / name):
                left_out[path] = reason
            else:
                chosen[path] = here / name
    return dict(sorted(chosen.items())), left_out


def _reason_against_folder(root: Path, path: Path) -> str | None:
    if path.is_symlink():
        _check_inside(root, path)
        return "a link to a folder"
    if path.name.startswith("."):
        return "hidden"
    return {"__pycache__": "temporary", "logs": "logs"}.get(path.name)


def _reason_against_file(root: Path, path: Path) -> str | None:
    """Why a file stays here, None where it goes."""
    name = path.relative_to(root).as_posix()
    if any(is_secret_file(word) for word in (path.name, path.resolve().name)):
        raise UserError(f"{name}: a file of that name holds secrets; move it out of the folder")
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff\\]", name):
        raise UserError(f"{name!r}: the Hub takes no such name; rename it")
    if path.is_symlink():
        _check_inside(root, path)
        if not path.exists():
            return "a link to nothing"
        if any(part.startswith(".") for part in path.resolve().relative_to(root).parts):
            return "a link to a hidden file"
    if path.name.startswith("."):
        return "hidden"
    if not stat.S_ISREG(path.stat().st_mode):
        return "no plain file"
    return _reason_against_content(path)


def _check_inside(root: Path, path: Path) -> None:
    if not path.resolve().is_relative_to(root):
        name = path.relative_to(root).as_posix()
        raise UserError(f"{name} is a link that leads out of the folder; put the file itself there, or remove the link")


def _reason_against_content(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix in _PASSING or path.name.endswith("~"):
        return "a log" if suffix == ".log" else "temporary"
    try:
        with path.open("rb") as file:
            head = file.read(8192)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if suffix in _PACKED or (head.startswith(_PACKED_MAGIC) and suffix not in (*_PICKLES, ".bin")):
        return "compressed: it cannot be read for secrets"
    if suffix in _PICKLES or re.match(rb"\x80[\x02-\x05]", head) or head.startswith(b"PK\x03\x04"):
        return "a pickle: loading it can run code"
    if b"\0" in head and suffix not in _BINARY:
        return "binary, of a kind not known here"
    return None


def clean_file(path: str, source: Path, work: Path, base_model: str | None = None) -> Content:
    """A file's content without the folders of this machine: the file itself where it names none.

    Manifests and results lose them everywhere, configs where they say what they were loaded from, records and rows to
    learn from in the name of the model that answered. Texts (questions, answers) are never touched, nor are
    ``judge.json`` and ``value.json``: what a step ends with may look like a path, and so may a prompt.
    """
    if source.suffix == ".jsonl":
        return _clean_records(source, work / "cleaned" / path)
    if source.suffix != ".json" or source.stat().st_size > _MAX_JSON:
        return source
    text = read_text(source)
    cleaned = scrub_json(text, only=None if source.name in _RUN_FILES else "configs")
    if source.name == "adapter_config.json" and base_model:
        cleaned = json.dumps(json.loads(cleaned) | {"base_model_name_or_path": base_model}, indent=2) + "\n"
    return source if cleaned == text else cleaned.encode()


_LOCAL = {
    kind: re.compile(rb'"%s"\s*:\s*"(?:/|~|\.\.|[A-Za-z]:|\\\\)' % key)
    for kind, key in (("records", b"(?:value_)?model"), ("rows", b"source"))
}


def _clean_records(source: Path, target: Path) -> Path:
    kind = "rows" if source.name in (SFT, REJECTED) else "records"
    local = _LOCAL[kind]
    with source.open("rb") as lines:
        if not any(local.search(line) for line in lines):
            return source
        target.parent.mkdir(parents=True, exist_ok=True)
        lines.seek(0)
        with target.open("wb") as file:
            for line in tqdm(lines, unit="line", desc=f"clean {source.name}", disable=None):
                if local.search(line):
                    line = scrub_json(line.decode(), only=kind).encode()
                file.write(line)
    return target


def _inspect(contents: dict[str, Content], folder: Path) -> tuple[tuple[HubFile, ...], list[str]]:
    """Digest every file and look for secrets in it. Returns the files, the card first, and remarks.

    Raises:
        UserError: there are secrets; names the first files and lines, not what stands there.
    """
    own, home = own_secrets(), {_HOME: str(Path.home()).encode() + b"/"}
    if home[_HOME] == b"//":
        home = {}
    files, secrets, remarks = [], [], []
    total = sum(_size_of(source) for source in contents.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="check", disable=None) as bar:
        for path, source in sorted(contents.items(), key=lambda item: (item[0] != CARD, item[0])):
            file, found = _inspect_file(path, source, own | home, bar)
            files.append(file)
            places = [secret.line for secret in found if secret.kind == _HOME]
            if places:
                more = f", and {len(places) - 1} more times" if len(places) > 1 else ""
                remarks.append(f"your home folder is named in {path}:{places[0]}{more}")
            secrets += [f"{path}:{secret.line} ({secret.kind})" for secret in found if secret.kind != _HOME]
    if secrets:
        more = f" and {len(secrets) - _MOST_PLACES} more" if len(secrets) > _MOST_PLACES else ""
        raise UserError(
            f"{folder} holds what looks like secrets: {', '.join(secrets[:_MOST_PLACES])}{more}; "
            "remove them (and revoke what others may have seen)"
        )
    return tuple(files), remarks


_HOME = "home"


def _size_of(source: Content) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def _inspect_file(path: str, source: Content, values: dict[str, bytes], bar: tqdm) -> tuple[HubFile, list[Secret]]:
    """One file's digests and what must not be in it, in one reading where its bytes are its text."""
    size = _size_of(source)
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    num_read = 0

    def digested() -> Iterator[bytes]:
        nonlocal num_read
        for block in (source,) if isinstance(source, bytes) else read_blocks(source):
            sha256.update(block)
            git.update(block)
            num_read += len(block)
            bar.update(len(block))
            yield block

    if isinstance(source, Path) and source.suffix in (".parquet", ".safetensors"):
        for _ in digested():
            pass
        found = list(find_secrets(text_blocks(source), values))
    else:
        found = list(find_secrets(digested(), values))
    if num_read != size:
        raise UserError(f"{path} is being written to; wait until that is done")
    return HubFile(path=path, source=source, size=size, sha256=sha256.hexdigest(), git_oid=git.hexdigest()), found
