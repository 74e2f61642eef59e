"""The processes that compare what only mathematics can decide: killed when late, replaced, never shared by a fork."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import time
import typing
import weakref
from pathlib import Path

from tt_reasoning.types import Reason

_WORKER_BYTES = 2 << 30
_WORKER_START_S = 120.0
_MAX_KNOWN = 10_000  # comparisons remembered


class _Worker:
    """One running ``grading.worker``. Raises RuntimeError when it cannot start."""

    def __init__(self, timeout_s: float) -> None:
        script = Path(__file__).with_name("worker.py")
        # -P: the script's folder holds a types.py that must not hide the standard library's.
        command = [sys.executable, "-P", str(script), str(_WORKER_BYTES), str(timeout_s + 10)]
        # Unbuffered: a fork must not inherit half a request.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self.owner = os.getpid()
        try:
            started = self._read(_WORKER_START_S) == "ready"
        except BaseException:
            self.stop()
            raise
        if not started:
            self.stop()
            raise RuntimeError(f"the grading worker does not start; see what `{' '.join(command)}` says")

    def ask(self, reference: str, answer: str, timeout_s: float) -> str | None:
        """The worker's word, ``timeout``, or None when it died. It must be stopped after either of these."""
        request = json.dumps([reference, answer]).encode() + b"\n"
        try:
            while request:
                request = request[self.process.stdin.write(request) :]
        except BrokenPipeError:
            return None
        return self._read(timeout_s)

    def _read(self, timeout_s: float) -> str | None:
        deadline = time.monotonic() + timeout_s
        out = self.process.stdout.fileno()
        poll = select.poll()
        poll.register(out, select.POLLIN)
        line = b""
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return "timeout"
            data = os.read(out, 4096)
            if not data:
                return None
            line += data
        return line.decode().strip()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self._close_pipes()

    def forget(self) -> None:
        """Let go of a worker that another process started, without a word to it."""
        self.process.returncode = 0  # it is no child of this process, so nobody may wait for it
        self._close_pipes()

    def _close_pipes(self) -> None:
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


class WorkerPool:
    """Up to ``num_workers`` processes that compare mathematics, started when first needed; safe for threads.

    A process that is forked off starts workers of its own and leaves its parent's alone. A pickled pool is a new
    one with the same settings.
    """

    def __init__(self, num_workers: int, timeout_s: float) -> None:
        self.num_workers = num_workers
        self.timeout_s = timeout_s
        self._known: dict[tuple[str, str], Reason] = {}
        self._running: set[_Worker] = set()
        self._slots = self._empty_slots()
        _POOLS.add(self)

    def __reduce__(self) -> tuple[type[WorkerPool], tuple[int, float]]:
        return WorkerPool, (self.num_workers, self.timeout_s)

    def compare(self, answer: str, reference: str) -> Reason:
        """The verdict on two short texts. What was decided before is not asked again; a timeout is."""
        pair = answer, reference
        known = self._known.get(pair)
        if known is not None:
            return known
        reason = typing.cast(Reason, self._ask(answer, reference) or "error")
        if reason not in ("timeout", "error"):
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[pair] = reason
        return reason

    def close(self) -> None:
        """Stop the workers, once running comparisons have ended. Comparing again starts new ones."""
        for worker in [self._slots.get() for _ in range(self.num_workers)]:
            if worker is not None:
                self._stop(worker)
            self._slots.put(None)

    def _ask(self, answer: str, reference: str) -> str | None:
        slots = self._slots
        worker = slots.get()
        reply = None
        try:
            if worker is not None and worker.process.poll() is not None:  # something else killed it meanwhile
                self._stop(worker)
                worker = None
            if worker is None:
                worker = _Worker(self.timeout_s)
                self._running.add(worker)
            assert worker.owner == os.getpid(), "a worker belongs to the process that started it"
            reply = worker.ask(reference, answer, self.timeout_s)
        finally:
            if worker is not None and reply in (None, "timeout"):
                self._stop(worker)
                worker = None
            slots.put(worker)
        return reply

    def _stop(self, worker: _Worker) -> None:
        worker.stop()
        self._running.discard(worker)

    def _empty_slots(self) -> queue.LifoQueue[_Worker | None]:
        slots: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(self.num_workers):
            slots.put(None)
        return slots

    def _start_over(self) -> None:
        """In a forked child: the parent's workers are not ours, and a thread that is gone may hold its locks."""
        for worker in self._running:
            worker.forget()
        self._running = set()
        self._slots = self._empty_slots()


_POOLS: weakref.WeakSet[WorkerPool] = weakref.WeakSet()
os.register_at_fork(after_in_child=lambda: [pool._start_over() for pool in list(_POOLS)])
