"""Publish answers, labelled steps, results, a checkpoint... on the Hugging Face Hub, with a card that says what it is.

Without --upload nothing is sent: it shows every file with its size, what stays here and why, and the card. A
README.md of your own in the folder is used as it is. Secrets, links out of the folder and pickles are not published,
nor where things lie on this machine. The same command again sends what is missing or changed, so one that was
killed goes on. Log in with `hf auth login`, or set HF_TOKEN; HF_ENDPOINT names another Hub.

Example: python tools/publish.py --folder sets/demo --repo user/demo-sets
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tt_reasoning.errors import UserError
from tt_reasoning.hub import CARD, Uploaded, upload_files
from tt_reasoning.publishing import Publication, plan_publication
from tt_reasoning.tool import run_tool


@dataclass(kw_only=True)
class Arguments:
    folder: Path
    """what to publish: a folder of a tool (answers, answer sets, steps, scores, SFT data, results), a checkpoint of an
    aggregator or a judge (step_N), or another folder with safetensors or data files"""
    repo: str
    """repository on the Hub, user/name; made if it is not there"""
    type: Literal["dataset", "model"] | None = None
    """kind of repository; what the folder is, unless given"""
    upload: bool = False
    """send it; without this only show what would be sent"""
    public: bool = False
    """for all to see; private otherwise"""
    license: str | None = None
    """licence of the whole, an id of the Hub such as mit; that of the benchmarks or the base model unless given"""
    base_model: str | None = None
    """the model that a checkpoint was trained from, as a name of the Hub, such as Qwen/Qwen2.5-3B"""
    results: tuple[Path, ...] = ()
    """folders of evaluate whose numbers the card shows"""


def main(args: Arguments) -> str:
    with tempfile.TemporaryDirectory(prefix="tt-reasoning-publish-") as work:
        plan = make_plan(args, Path(work))
        print(describe(plan, args))
        if not args.upload:
            return f"nothing was sent; to publish: the same command with --upload{_question(plan)}"
        if plan.license_asked:
            raise UserError(f"{plan.license_asked}; say one with --license, such as --license cc-by-4.0 or other")
        with stop_at_once(Path(work)):
            uploaded = upload_files(
                plan.repo,
                plan.repo_type,
                plan.files,
                private=not args.public,
                message=f"Publish {plan.kind} with tt-reasoning",
                may_replace_card=plan.may_replace,
            )
    return summarise(uploaded)


def make_plan(args: Arguments, work: Path) -> Publication:
    """What would be published; a disk that is full or a file that cannot be read is a mistake to mend."""
    try:
        return plan_publication(
            args.folder, work, repo=args.repo, repo_type=args.type, license=args.license, base_model=args.base_model,
            results=args.results,
        )  # fmt: skip
    except OSError as error:
        where = f"{error.filename or args.folder}: {error.strerror or error}"
        raise UserError(f"{where} (temporary files go to {work.parent}; TMPDIR names another place)") from None


@contextlib.contextmanager
def stop_at_once(work: Path) -> Iterator[None]:
    """Ctrl-C ends the program in the block: by itself the client waits for all that is in flight, however large."""

    def stop(*_: object) -> None:
        shutil.rmtree(work, ignore_errors=True)
        print("interrupted; run the same command again to go on", file=sys.stderr, flush=True)
        os._exit(130)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def describe(plan: Publication, args: Arguments) -> str:
    """Every file and its size, what stays here, remarks, and the card."""
    visible = "public" if args.public else "private"
    width = max(len(f"{file.size:,}") for file in plan.files)
    own = {CARD: " (written now, see below)"} if plan.card_is_own else {}
    lines = [
        f"{args.folder} -> {plan.repo} ({plan.repo_type}, {visible}): {plan.kind}",
        "",
        *(f"{file.size:>{width},}  {file.path}{own.get(file.path, '')}" for file in plan.files),
        f"{plan.size:>{width},}  bytes in {len(plan.files)} files",
    ]
    if plan.left_out:
        lines += ["", "not published:", *(f"  {path}: {reason}" for path, reason in plan.left_out.items())]
    if plan.card_is_own:
        lines += ["", f"{CARD} (to change it, save your own in the folder):", "", plan.card]
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def _question(plan: Publication) -> str:
    return f" and --license ID, as {plan.license_asked}" if plan.license_asked else ""


def summarise(uploaded: Uploaded) -> str:
    """What was sent, and where it is."""
    sent = f"{len(uploaded.sent)} files sent" if uploaded.sent else "nothing to send"
    words = [f"{sent}, {len(uploaded.unchanged)} were there"]
    if uploaded.kept_card:
        words.append(f"the {CARD} there was edited and stays")
    if uploaded.num_others:
        words.append(f"{uploaded.num_others} other files there stay")
    return f"{'; '.join(words)}; sizes and digests agree: {uploaded.url} (commit {uploaded.commit[:8]})"


if __name__ == "__main__":
    run_tool(main, Arguments, __doc__)
