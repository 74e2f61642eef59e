"""Work shared out to forked processes: results come in order, and nothing outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import TypeVar

from tt_reasoning.errors import UserError

R = TypeVar("R")


def count_cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(start: Callable[[], Callable[[int], R]], count: int, num_workers: int) -> Iterator[R]:
    """``work(0)``, ``work(1)``, ... up to ``count``, in order, where ``work = start()`` is made once in every process.

    Processes are forks: what the parent has read they have too, and only results travel. Each waits until its
    last result is taken, so memory stays flat; when the parent dies, so do they. With one worker this process
    does the work itself.

    Raises:
        UserError: the work raised it. Any other error comes as a RuntimeError with its traceback.

    Example:
        >>> list(map_in_processes(lambda: lambda number: number * number, 5, num_workers=2))
        [0, 1, 4, 9, 16]
    """
    if num_workers == 1:
        yield from map(start(), range(count))
        return
    context = multiprocessing.get_context("fork")
    readers: list[Connection] = []
    workers = []
    try:
        for first in range(num_workers):
            reader, writer = context.Pipe(duplex=False)
            readers.append(reader)
            arguments = (start, range(first, count, num_workers), writer, list(readers))
            workers.append(context.Process(target=_serve, args=arguments, daemon=True))
            workers[-1].start()
            writer.close()
        for number in range(count):
            try:
                result, error = readers[number % num_workers].recv()
            except EOFError:
                raise RuntimeError("a worker process died; the same command starts anew") from None
            if error is not None:
                raise error
            yield result
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
        for reader in readers:
            reader.close()


def _serve(
    start: Callable[[], Callable[[int], R]], numbers: range, writer: Connection, readers: list[Connection]
) -> None:
    for reader in readers:  # the parent's ends: while a sibling holds one, a write to a dead parent waits for ever
        reader.close()
    try:
        work = start()
        for number in numbers:
            writer.send((work(number), None))
    except (BrokenPipeError, KeyboardInterrupt):
        return
    except UserError as error:
        writer.send((None, error))
    except Exception:
        writer.send((None, RuntimeError(f"in a worker process: {traceback.format_exc()}")))
