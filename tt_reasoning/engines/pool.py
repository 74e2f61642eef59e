"""Several copies of an engine on this machine, each in a process of its own, with GPUs or CPU cores of its own.

Chunks of requests go to whichever copy is free. A copy that dies (killed, out of memory) is replaced and its chunk is
asked again; a chunk that ends three copies, or a copy that ends three times before it is ready, ends the run with
the end of its log. Copies end with the process that started them, however that ends.

    python -m tt_reasoning.engines.pool FD LOG

is a copy: it reads its engine's name, model and options from the socket FD, then requests; its output is in LOG.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tt_reasoning.engines import open_engine
from tt_reasoning.engines.base import CheckingEngine, Completion, Failure, Request
from tt_reasoning.errors import UserError

_MOST_DEATHS = 3  # of copies, over one chunk or before one is ready
_END_S = 10.0  # how long a copy may take to end by itself
_LOG_LINES = 8
_LOCAL = ("vllm", "tune", "scripted")  # engines that compute on this machine
_log = logging.getLogger(__name__)

Outcomes = Sequence[Completion | Failure]


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a copy has of the machine: GPUs as CUDA_VISIBLE_DEVICES names them, or CPU cores."""

    gpus: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()


def share_machine(size: int, gpus: Sequence[str], gpus_each: int, cores: Sequence[int]) -> list[Share]:
    """The machine in ``size`` parts: ``gpus_each`` GPUs where there are GPUs, else CPU cores.

    Raises:
        UserError: not enough GPUs.

    >>> [share.gpus for share in share_machine(2, ["0", "1", "2", "3"], 2, range(8))]
    [('0', '1'), ('2', '3')]
    >>> [share.cores for share in share_machine(3, [], 1, range(8))]
    [(0, 1, 2), (3, 4, 5), (6, 7)]
    """
    if gpus:
        if size * gpus_each > len(gpus):
            raise UserError(
                f"--data-parallel-size {size} with {gpus_each} GPU(s) each needs {size * gpus_each} GPUs, "
                f"and {len(gpus)} can be seen; lower it"
            )
        return [Share(gpus=tuple(gpus[rank * gpus_each : (rank + 1) * gpus_each])) for rank in range(size)]
    least, more = divmod(len(cores), size)
    if not least:
        return [Share(cores=(cores[rank % len(cores)],)) for rank in range(size)]
    ends = [rank * least + min(rank, more) for rank in range(size + 1)]
    return [Share(cores=tuple(cores[a:b])) for a, b in zip(ends, ends[1:], strict=False)]


def check_pool(name: str, size: int) -> None:
    """Raise UserError for an engine that cannot be copied, or no number of copies."""
    if size < 1:
        raise UserError(f"--data-parallel-size {size}: give at least 1")
    if size > 1 and name not in _LOCAL:
        other = "--num-workers" if name == "ray" else "--concurrency"
        raise UserError(f"--data-parallel-size {size} is for engines of this machine; for {name} give {other}")


class EnginePool:
    """``size`` copies of the engine ``name``; they load side by side, and all are ready when this returns.

    Args:
        name, model, options: as for ``open_engine``.
        size: number of copies. Each has ``tensor_parallel_size`` GPUs (1 unless given), or its part of the CPU cores.

    Raises:
        UserError: too few GPUs, or a copy that does not start.

    Example:
        ``EnginePool("vllm", "models/smollm2-135m", 2).generate([Request(prompt="2 + 2 =")])``
    """

    def __init__(self, name: str, model: str, size: int, **options: Any) -> None:
        check_pool(name, size)
        gpus = [] if name == "scripted" else _visible_gpus(os.environ)
        cores = sorted(os.sched_getaffinity(0))
        shares = share_machine(size, gpus, options.get("tensor_parallel_size") or 1, cores)
        self._opening = (name, model, options)
        self._failed_starts = 0
        self._copies: list[_Copy] = []
        self._vacant: list[Share] = shares
        try:
            self._fill()
            for copy in self._copies:
                copy.wait_until_ready()
        except _Died as death:
            self.close()
            raise UserError(f"an engine of --data-parallel-size {size} {death}") from None
        except BaseException:
            self.close()
            raise

    def generate(self, requests: Sequence[Request]) -> Outcomes:
        """One completion or failure a request, in order; one copy works, the others wait."""
        [(_, outcomes)] = self.generate_chunks([requests])
        return outcomes

    def generate_chunks(self, chunks: Iterable[Sequence[Request]]) -> Iterator[tuple[int, Outcomes]]:
        """The outcomes of every chunk with its index, as chunks are done, in any order.

        Raises:
            UserError: a copy's own, or copies that die again and again.
        """
        new = (_Task(index, requests) for index, requests in enumerate(chunks))
        again: deque[_Task] = deque()
        more = True
        self._fill()
        try:
            while True:
                while (more or again) and self._free():
                    task = again.popleft() if again else next(new, None)
                    if task is None:
                        more = False
                    elif not self._give(task):
                        again.append(task)
                if not (more or again or any(copy.task for copy in self._copies)):
                    return
                for copy in self._wait():
                    task, copy.task = copy.task, None
                    try:
                        outcomes = copy.receive()
                    except _Died as death:
                        self._replace(copy, death)
                        if task is not None:
                            task.deaths += 1
                            if task.deaths == _MOST_DEATHS:
                                raise UserError(f"{_MOST_DEATHS} engines died of one chunk; the last {death}") from None
                            again.append(task)
                    else:
                        if task is None:
                            copy.ready, self._failed_starts = True, 0
                        else:
                            yield task.index, outcomes
        finally:
            for copy in [copy for copy in self._copies if copy.task]:  # the caller stops early
                self._copies.remove(copy)
                self._vacant.append(copy.share)
                copy.end()

    def refuse(self, request: Request) -> Failure | None:
        """How the request would fail, as a copy that is free says; None when it takes it, or none is free."""
        copy = self._free()
        if copy is None:
            return None
        try:
            copy.send("refuse", request)
            return copy.receive()
        except _Died as death:
            self._replace(copy, death)
            return None

    def _fill(self) -> None:
        """Start a copy wherever there is none."""
        while self._vacant:
            self._copies.append(_Copy(self._vacant.pop(0), self._opening))

    def _free(self) -> _Copy | None:
        return next((copy for copy in self._copies if copy.ready and copy.task is None), None)

    def _give(self, task: _Task) -> bool:
        """Whether a copy took it."""
        copy = self._free()
        if copy is None:
            return False
        try:
            copy.send("generate", task.requests)
        except _Died as death:
            self._replace(copy, death)
            return False
        copy.task = task
        return True

    def _wait(self) -> list[_Copy]:
        """The copies that have something to say, or have died; at least one."""
        waited = [copy for copy in self._copies if copy.task or not copy.ready]
        while True:
            spoke = wait([copy.connection for copy in waited], timeout=1.0)
            found = [copy for copy in waited if copy.connection in spoke or copy.process.poll() is not None]
            if found:
                return found

    def _replace(self, copy: _Copy, death: _Died) -> None:
        _log.warning("an engine %s\nanother one takes its place", death)
        if not copy.ready:
            self._failed_starts += 1
            if self._failed_starts == _MOST_DEATHS:
                raise UserError(f"{_MOST_DEATHS} engines in a row died before they were ready; the last {death}")
        self._copies.remove(copy)
        self._vacant.append(copy.share)
        self._fill()

    def close(self) -> None:
        """End all copies."""
        for copy in self._copies:
            copy.connection.close()
        for copy in self._copies:
            copy.end()
        self._copies = []


@dataclass(eq=False)
class _Task:
    index: int
    requests: Sequence[Request]
    deaths: int = 0


class _Died(Exception):
    """A copy ended; its text goes on after "an engine"."""


class _Copy:
    """A process with an engine. ``task`` is the chunk that it works on."""

    def __init__(self, share: Share, opening: tuple[str, str, dict[str, Any]]) -> None:
        self.share, self.ready, self.task = share, False, None
        descriptor, name = tempfile.mkstemp(prefix="engine_", suffix=".log")
        self._log = Path(name)
        ours, theirs = socket.socketpair()
        with theirs, open(descriptor, "wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tt_reasoning.engines.pool", str(theirs.fileno()), name],
                env=_environment(os.environ, share),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is the caller's; and one group to kill
            )
        self.connection = Connection(ours.detach())
        with contextlib.suppress(OSError):  # then it has died, and ``receive`` says so
            self.connection.send((share.cores, *opening))

    def send(self, method: str, argument: Any) -> None:
        """Ask for something; ``receive`` has the reply."""
        try:
            self.connection.send((method, argument))
        except OSError:
            raise _Died(self._last_words()) from None

    def receive(self) -> Any:
        """The next reply; waits for it. Raises _Died, or the copy's own UserError."""
        try:
            while not self.connection.poll(1.0):
                if self.process.poll() is not None:
                    raise EOFError
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            raise _Died(self._last_words()) from None
        if kind == "mistake":
            raise UserError(value)
        return value

    def wait_until_ready(self) -> None:
        self.receive()
        self.ready = True

    def _last_words(self) -> str:
        self._kill()
        code = self.process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        if not lines:
            self._log.unlink()
            return f"{how}, without a word"
        return "\n".join([f"{how}; its log is {self._log} and ends in:", *lines])

    def end(self) -> None:
        """End the process, at once when it works; its log goes unless it tells of a failure."""
        self.connection.close()
        self._kill(at_once=not self.ready or self.task is not None)
        if self.process.returncode in (0, -signal.SIGKILL):
            self._log.unlink(missing_ok=True)

    def _kill(self, at_once: bool = False) -> None:
        if not at_once:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = environment.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [name.strip() for name in visible.split(",")][:count] if visible else [str(rank) for rank in range(count)]


def _environment(environment: Mapping[str, str], share: Share) -> dict[str, str]:
    """The caller's environment for a copy: its own devices or threads, no progress bars of its own."""
    found = dict(environment) | {"PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
    if share.gpus:
        found["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
    if share.cores:
        found.setdefault("OMP_NUM_THREADS", str(len(share.cores)))
    return found


def _end_with(parent: int, log: Path) -> None:
    """End this process, whatever it does, once its parent is gone and nobody will read its log."""
    while os.getppid() == parent:
        time.sleep(0.5)
    log.unlink(missing_ok=True)
    os._exit(1)


def main() -> None:
    """Be a copy."""
    faulthandler.enable()  # should native code abort, the log says where Python was
    connection, log = Connection(int(sys.argv[1])), Path(sys.argv[2])
    threading.Thread(target=_end_with, args=(os.getppid(), log), daemon=True).start()
    cores, name, model, options = connection.recv()
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        engine = open_engine(name, model, **options)
        connection.send(("ready", None))
        while True:
            method, argument = connection.recv()
            if method == "generate":
                connection.send(("done", engine.generate(argument)))
            else:
                connection.send(("done", engine.refuse(argument) if isinstance(engine, CheckingEngine) else None))
    except UserError as error:
        connection.send(("mistake", str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the caller wants no more, or is gone
        log.unlink(missing_ok=True)
        engine.close()
    os._exit(0)  # the interpreter's own way out takes seconds more


if __name__ == "__main__":
    main()
