"""The Hugging Face Hub: data sets from it (or from the user's cache where it does not answer), and files to it."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from tt_reasoning.errors import UserError

_PROBE_TIMEOUT_S = 5
_AGAIN = "run the same command again to go on"
CARD = "README.md"
RepoType = Literal["dataset", "model"]


def hub_answers() -> bool:
    """Whether the Hub (``HF_ENDPOINT``) takes connections, asked for five seconds at most."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True


def load_hub_dataset(name: str, config: str | None = None, *, split: str, revision: str | None = None) -> Any:
    """A split of a Hub data set. Where the Hub does not answer, only the user's cache is looked at, at once.

    Raises:
        UserError: neither has it, it has no such config or split, or it is gated and this user has no access.
    """
    import datasets
    from huggingface_hub import constants

    if not hub_answers():
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(name, config, split=split, revision=revision)
    except (OSError, ValueError) as error:  # the library's own errors are of these two kinds
        reason = str(error).partition("\n")[0]
        if "gated dataset" in reason:
            reason = (
                f"it is gated; accept its terms at {constants.ENDPOINT}/datasets/{name} "
                "and log in (hf auth login, or HF_TOKEN)"
            )
        raise UserError(f"the data set {name} ({split}) cannot be loaded: {reason}") from None


def download_hub_file(name: str, path: str, revision: str | None = None) -> Path:
    """A file of a Hub data set, downloaded to the user's cache or found there: for those that a script would load.

    Raises:
        UserError: neither has it, or it is gated and this user has no access.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    if not hub_answers():
        constants.HF_HUB_OFFLINE = True
    try:
        return Path(hf_hub_download(name, path, repo_type="dataset", revision=revision))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} of the data set {name} cannot be loaded: {reason}") from None


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file for a repository: where it goes, its content (a file here, or the bytes), and what it must be there.

    ``git_oid`` is git's SHA-1 of the content as a blob: what the Hub lists for a file that is not stored by LFS.
    """

    path: str
    source: Path | bytes
    size: int
    sha256: str
    git_oid: str


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """What an upload did: the repository's address, its commit, the paths sent and those that were there alike,
    how many other files the repository has, and whether its card was left as it is."""

    url: str
    commit: str
    sent: tuple[str, ...]
    unchanged: tuple[str, ...]
    num_others: int
    kept_card: bool


def check_repo_name(repo: str) -> None:
    """Raise UserError unless ``repo`` is the name of a repository, with its owner: ``user/name``.

    >>> check_repo_name("user/gsm8k-sets")
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--repo {repo}: no name of a repository: {str(error).partition(chr(10))[0]}") from None
    if repo.count("/") != 1:
        raise UserError(f"--repo {repo}: say whose it is too: --repo USER/{repo}")


def find_token() -> str:
    """The token of ``HF_TOKEN`` or of the stored login. Raises UserError without one, or when it is malformed."""
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise UserError("no token for the Hub: log in (hf auth login), or set HF_TOKEN, with write access")
    if not re.fullmatch(r"[!-~]+", token):  # an HTTP library would show it in its error
        raise UserError("the token for the Hub (HF_TOKEN, or the stored login) has letters that no token has")
    return token


def upload_files(
    repo: str,
    repo_type: RepoType,
    files: Sequence[HubFile],
    *,
    private: bool,
    message: str,
    may_replace_card: Callable[[str], bool] = lambda card: True,
) -> Uploaded:
    """Bring a repository of the Hub to hold ``files``: create it if need be, send what differs, check what arrived.

    All files come in one commit, so readers see all of them or none. What an interrupted upload had finished is not
    sent again. Files that the repository holds besides stay.

    Args:
        repo: ``user/name``.
        private: how the repository is made, and has to be if it is there.
        may_replace_card: asked with the repository's own README.md where it differs from the one in ``files``;
            with False the repository's stays.

    Raises:
        UserError: no token, the repository is public though ``private`` (or the other way round), the Hub refused
            or could not be reached, or holds something else afterwards.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, RepoFile, constants
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty() and constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()
    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set: the Hub is not asked; unset it to upload")
    token = find_token()
    api = HfApi(endpoint=constants.ENDPOINT, token=token, library_name="tt-reasoning")
    with _one_line_errors(repo, token):
        head = _open_repo(api, repo, repo_type, private)

        def listing(revision: str) -> dict[str, Any]:
            tree = api.list_repo_tree(repo, recursive=True, revision=revision, repo_type=repo_type)
            return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

        there = listing(head)
        changed = [file for file in files if not _is_same(there.get(file.path), file)]
        kept_card = CARD in there and any(file.path == CARD for file in changed)
        kept_card = kept_card and not may_replace_card(_read_card(api, repo, repo_type, head))
        changed = [file for file in changed if not (kept_card and file.path == CARD)]
        left = {file.path for file in changed} | ({CARD} if kept_card else set())
        unchanged = [file.path for file in files if file.path not in left]
        if changed:
            size = sum(file.size for file in changed)
            print(f"sending {len(changed)} of {len(files)} files, {size:,} bytes", file=sys.stderr)
            operations = [
                CommitOperationAdd(
                    path_in_repo=file.path,
                    path_or_fileobj=file.source if isinstance(file.source, bytes) else file.source.absolute(),
                )
                for file in changed
            ]
            commit = api.create_commit(
                repo, operations, commit_message=message, repo_type=repo_type, parent_commit=head
            )
            head, there = commit.oid, listing(commit.oid)
            for file in changed:
                _check_arrived(there.get(file.path), file, repo)
    prefix = "datasets/" if repo_type == "dataset" else ""
    return Uploaded(
        url=f"{constants.ENDPOINT}/{prefix}{repo}",
        commit=head,
        sent=tuple(file.path for file in changed),
        unchanged=tuple(unchanged),
        num_others=len(there.keys() - {file.path for file in files} - {".gitattributes"}),
        kept_card=kept_card,
    )


def _open_repo(api: Any, repo: str, repo_type: RepoType, private: bool) -> str:
    """Create the repository unless it is there; nothing is sent before its visibility is the one wanted.

    Returns its newest commit.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    made = False
    try:
        found = api.repo_info(repo, repo_type=repo_type)
    except RepositoryNotFoundError:
        api.create_repo(repo, repo_type=repo_type, private=private)
        made, found = True, api.repo_info(repo, repo_type=repo_type)
    if bool(found.private) == private:
        return found.sha
    word = "private" if found.private else "public"
    if made:
        raise UserError(f"{repo} was created, but the Hub made it {word}: nothing was sent; see its owner's settings")
    if private:
        raise UserError(f"{repo} is public, and this would publish to all: say --public, or name another --repo")
    raise UserError(f"{repo} is private: leave out --public, or make it public in its settings")


def _is_same(entry: Any, file: HubFile) -> bool:
    if entry is None or entry.size != file.size:
        return False
    return entry.lfs.sha256 == file.sha256 if entry.lfs else entry.blob_id == file.git_oid


def _check_arrived(entry: Any, file: HubFile, repo: str) -> None:
    if not _is_same(entry, file):
        found = "is not there" if entry is None else f"has {entry.size} bytes or others than were read here"
        raise UserError(f"{repo}: {file.path} {found} after the upload: was it written to meanwhile? {_AGAIN}")


def _read_card(api: Any, repo: str, repo_type: RepoType, revision: str) -> str:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="tt-reasoning-") as folder:
        path = api.hf_hub_download(repo, CARD, repo_type=repo_type, revision=revision, local_dir=folder)
        return Path(path).read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def _one_line_errors(repo: str, token: str) -> Iterator[None]:
    """What the client raises in the block becomes a UserError of one line, without the token or signed addresses."""
    from huggingface_hub.errors import HfHubHTTPError

    retries = logging.getLogger("huggingface_hub.utils._http")  # says what it tries again, with whole addresses
    retries.addFilter(_hide_queries)
    try:
        yield
    except UserError:
        raise
    # The base of HfHubHTTPError is the error of the HTTP library, and that library changes with the version.
    except (OSError, ValueError, RuntimeError, HfHubHTTPError.__bases__[0]) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, HfHubHTTPError):
            cause = cause.__cause__
        line = _describe_refusal(cause, repo) if cause else _describe_break(error, repo)
        raise UserError(line.replace(token, "***")) from None
    finally:
        retries.removeFilter(_hide_queries)


def _hide_queries(record: logging.LogRecord) -> bool:
    record.msg, record.args = re.sub(r"\?\S*", "", record.getMessage()), ()
    return True


def _describe_refusal(error: Any, repo: str) -> str:
    """One line for an answer of the Hub that is an error, by its status."""
    response = error.response
    status, owner = response.status_code, repo.partition("/")[0]
    said = (error.server_message or response.headers.get("X-Error-Message") or "").strip().partition("\n")[0]
    said = f" ({said})" if said else ""
    wait = response.headers.get("Retry-After")
    match status:
        case 401:
            return f"the Hub does not take this token: 401{said}; log in again (hf auth login) or set another HF_TOKEN"
        case 402 | 403:
            return f"the Hub refuses {repo}: {status}{said}; the token needs write access to {owner}"
        case 404:
            return f"the Hub has no {repo} for this token: 404{said}; check the name and the token's rights"
        case 409 | 412:
            return f"{repo} was made or changed by somebody else meanwhile: {status}{said}; {_AGAIN}"
        case 429:
            when = f"in {wait} s" if wait else "later"
            return f"the Hub asks for fewer requests: 429{said}; {_AGAIN} {when}"
        case _ if status >= 500:
            return f"the Hub failed: {status}{said}; {_AGAIN}"
    return f"the Hub refuses {repo}: {status}{said}"


def _describe_break(error: BaseException, repo: str) -> str:
    """One line for everything that is no answer of the Hub: a connection that broke, a file that went away."""
    from huggingface_hub import constants

    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    reason = re.sub(r"\?\S*", "", " ".join(str(error).split())) or type(error).__name__
    if isinstance(error, ValueError):
        return f"{repo} was not uploaded: {reason}"
    if isinstance(error, OSError) and error.filename:
        return f"{repo} was not uploaded: {error.filename}: {error.strerror}"
    no_xet = ", with HF_HUB_DISABLE_XET=1 if this Hub has no Xet" if "xet" in reason else ""
    return f"the connection to {constants.ENDPOINT} broke off: {reason}; {_AGAIN}{no_xet}"
