"""Chunks of work on the machines of a Ray cluster: every chunk comes back once, whatever dies meanwhile.

A worker is a Ray actor with a process of its own. It opens what it works with once (a model, a grader, a tokenizer)
and then takes a chunk at a time; chunks are drawn from an iterator as workers become free, and each result comes to the
driver as soon as it is there. The chunk of a worker that died, or of a machine that was lost, is asked again from
another worker at once, and a new worker takes the place of the dead one as soon as there is room for it.

Actors, not Ray Data: a task of a Ray Data actor pool stays with its actor. When that actor's machine is lost, the task
waits for room for the same actor, which the surviving workers hold (``benchmarks/ray_data_node_loss.py``); a chunk that
kills its worker is asked for ever there.

Nothing is sent to the workers but what they open and the chunks: no environment, no keys. Example, a function on every
CPU of the cluster that this machine belongs to:

    for squares in map_chunks(open_squares, [[1, 2], [3, 4]], ray_address="auto"): ...
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from tt_reasoning.errors import UserError
from tt_reasoning.grading import Grader
from tt_reasoning.types import Kind, Verdict

T = TypeVar("T")
R = TypeVar("R")

_CONNECT_S = 5.0
_PATIENCE_S = 600.0  # a cluster that grows on demand takes minutes
_TICK_S = 5.0
_MOST_DEATHS = 3  # of the workers that one chunk was asked from
_MOST_FAILED_OPENINGS = 3  # in a row
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine of the cluster and what Ray may use of it."""

    name: str
    num_cpus: int
    num_gpus: int


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker runs: Ray's id of the node, the process there, and the file that takes what it prints."""

    machine: str
    node_id: str
    pid: int
    log: str


# --- join ------------------------------------------------------------------------------------------------


def check_ray(ray_address: str | None, num_workers: int | None = None) -> None:
    """Raise the UserErrors that need no cluster."""
    if importlib.util.find_spec("ray") is None:
        raise UserError('Ray is not installed: pip install "tt-reasoning[ray]"')
    if ray_address not in (None, "auto"):
        _split_address(ray_address)
    if num_workers is not None and num_workers < 1:
        raise UserError(f"--num-workers {num_workers}: give at least 1")


def _split_address(address: str) -> tuple[str, int]:
    """
    >>> _split_address("head:6379")
    ('head', 6379)
    """
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(
            f"--ray-address {address} is no HOST:PORT; give the address that `ray start --head` printed, or auto"
        )
    return host.strip("[]"), int(port)


class JoinedCluster:
    """A Ray cluster that this process has joined; leave it by ``close``, or use it in a ``with`` block.

    Args:
        ray_address: ``HOST:PORT`` of the cluster's head; ``auto`` is RAY_ADDRESS, else the cluster that this machine
            belongs to; None is the same, and where there is none a cluster of this machine alone, which ends with
            this object. A process that has joined a cluster already stays in that one.

    Raises:
        UserError: Ray is not installed, the address is none, nothing answers there, or this machine is not part of
            the cluster.
    """

    def __init__(self, ray_address: str | None = None) -> None:
        check_ray(ray_address)
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray

        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            _join(_find_address(ray_address))
        self.machines = _list_machines()

    def __enter__(self) -> JoinedCluster:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster, unless the process was in it before."""
        import ray

        if self._is_ours:
            ray.shutdown()
            self._is_ours = False


def _find_address(ray_address: str | None) -> str:
    """``HOST:PORT`` of a head that answers, or ``local``, by which Ray starts a cluster of this machine."""
    from ray._private import services

    if ray_address in (None, "auto"):
        named = os.environ.get("RAY_ADDRESS") or None
        found = named if named not in (None, "auto") else services.find_bootstrap_address(None)
        if found is None and ray_address is None:
            return "local"
        if found is None:
            raise UserError(
                "no Ray cluster on this machine: start one with `ray start --head`, join one with "
                "`ray start --address=HOST:PORT`, or give --ray-address"
            )
        if ray_address is None and named is None and not _answers(found):
            return "local"  # Ray still notes a cluster that has ended
        ray_address = found
    if not _answers(ray_address):
        raise UserError(
            f"no Ray cluster answers at {ray_address}; give the address that `ray start --head` printed, "
            "and see that its port is open to this machine"
        )
    if not services.find_node_ids():
        raise UserError(f"this machine is not part of the Ray cluster: run `ray start --address={ray_address}` on it")
    return ray_address


def _answers(address: str) -> bool:
    """Whether something there speaks HTTP/2, as Ray's head does; Ray itself waits minutes for what does not."""
    settings = b"\0\0\0\4\0\0\0\0\0"  # an empty frame of type 4
    try:
        with socket.create_connection(_split_address(address), timeout=_CONNECT_S) as connection:
            if os.environ.get("RAY_USE_TLS") == "1":
                return True
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings)
            reply = b""
            while len(reply) < 4 and (data := connection.recv(64)):
                reply += data
    except OSError:
        return False
    return reply[3:4] == b"\4"


def _join(address: str) -> None:
    import ray
    from ray._private import worker as ray_worker

    # Ray prints what ends on other machines, with pages of state, to standard output; no option turns that off.
    ray_worker.print_to_stdstream = lambda data, *_, **__: _log.debug("%s", data.get("lines"))
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError, SystemExit) as error:
        where = "Ray does not start here" if address == "local" else f"cannot join the Ray cluster at {address}"
        raise UserError(f"{where}: {_one_line(str(error))}") from None


def _list_machines() -> list[Machine]:
    import ray

    return [
        Machine(
            name=node["NodeManagerHostname"],
            num_cpus=int(node["Resources"].get("CPU", 0)),
            num_gpus=int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


# --- workers ---------------------------------------------------------------------------------------------


class _Worker:
    """What runs in a worker's process. The parts of its start are calls of their own, to tell what it waits for."""

    def __init__(self, open_worker: Callable[[], Callable[[Any], Any]]) -> None:
        self._open_worker = open_worker

    def place(self) -> Place:
        import ray

        log = os.readlink("/proc/self/fd/2") if os.path.exists("/proc/self/fd/2") else ""
        node_id = ray.get_runtime_context().get_node_id()
        return Place(machine=socket.gethostname(), node_id=node_id, pid=os.getpid(), log=log)

    def open(self) -> None:
        self._work = self._open_worker()

    def work(self, chunk: Any) -> Any:
        return self._work(chunk)


@dataclass(eq=False)
class _Member:
    """A worker as the driver sees it: ``pending`` is the call that it owes, ``chunk`` the chunk of that call."""

    actor: Any
    stage: Literal["waiting for room", "opening", "open"]
    pending: Any = None
    chunk: tuple[int, Any] | None = None
    place: Place | None = None


class ClusterPool(Generic[T, R]):
    """Workers on the machines of a cluster that was joined; close it to end them.

    Args:
        open_worker: called once in every worker; what it returns takes a chunk and returns its result. Both travel by
            pickle: module-level functions and ``functools.partial`` of them do.
        machines: of the cluster that was joined.
        num_workers: as many as fit unless given; more than fit take their place when machines join.
        num_cpus, num_gpus: of a worker.

    Raises:
        UserError: no machine is large enough for a worker.
    """

    def __init__(
        self,
        open_worker: Callable[[], Callable[[T], R]],
        machines: Sequence[Machine],
        *,
        num_workers: int | None = None,
        num_cpus: int = 1,
        num_gpus: int = 0,
    ) -> None:
        import ray

        self._needs = _count(num_gpus, "GPU") if num_gpus else _count(num_cpus, "CPU")
        fitting = sum(_fit(machine, num_cpus, num_gpus) for machine in machines)
        if not fitting:
            there = ", ".join(f"{m.name} ({_count(m.num_cpus, 'CPU')}, {_count(m.num_gpus, 'GPU')})" for m in machines)
            raise UserError(
                f"a worker needs {self._needs}, which no machine of the Ray cluster has: {there or 'no machine'}"
            )
        # Ray must restart nothing by itself: it would bind a chunk to the worker that it was asked from.
        self._actor_class = ray.remote(
            num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )(_Worker)
        self._opener = ray.put(open_worker)
        self._lost: deque[tuple[int, T]] = deque()
        self._deaths: Counter[int] = Counter()
        self._failed_openings = 0
        self._waiting_since = time.monotonic()
        self.work_done: Counter[Place] = Counter()
        """How many chunks each worker has done."""
        self._members = [self._start() for _ in range(num_workers or fitting)]

    def __enter__(self) -> ClusterPool[T, R]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        import ray

        for member in self._members:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(member.actor)
        self._members = []

    def wait_until_open(self) -> None:
        """Return when the first worker is open. Raises as ``map_unordered``."""
        while not any(member.stage == "open" for member in self._members):
            self._await_event()

    def map(self, chunks: Iterable[T]) -> Iterator[R]:
        """The result of every chunk, in order. Raises as ``map_unordered``.

        At most four chunks a worker are held or under way beyond the one whose turn it is.
        """
        results: dict[int, R] = {}
        turn = 0

        def is_near(index: int) -> bool:
            return index < turn + 4 * max(1, len(self._members))

        for index, result in self._map(chunks, is_near):
            results[index] = result
            while turn in results:
                yield results.pop(turn)
                turn += 1

    def map_unordered(self, chunks: Iterable[T]) -> Iterator[tuple[int, R]]:
        """The result of every chunk with its index, as they come; a chunk is drawn when a worker is free.

        Raises:
            UserError: the worker's own, with the machine's name if it came while opening; workers die while they
                open, or one chunk has ended three of them; there is no room for any worker for ten minutes.
        """
        return self._map(chunks, lambda index: True)

    def _map(self, chunks: Iterable[T], may_draw: Callable[[int], bool]) -> Iterator[tuple[int, R]]:
        source = iter(chunks)
        drawn, exhausted = 0, False
        self._forget()

        def ask() -> None:
            nonlocal drawn, exhausted
            for member in self._members:
                if member.stage != "open" or member.pending is not None:
                    continue
                if self._lost:
                    self._ask(member, self._lost.popleft())
                    continue
                if exhausted or not may_draw(drawn):
                    return
                try:
                    chunk = next(source)
                except StopIteration:
                    exhausted = True
                    return
                self._ask(member, (drawn, chunk))
                drawn += 1

        while True:
            ask()
            asked = any(member.chunk is not None for member in self._members)
            if exhausted and not asked and not self._lost:
                return
            done = self._await_event()
            ask()  # the worker goes on while the driver handles its result
            if done is not None:
                yield done

    def _forget(self) -> None:
        """Leave what an earlier iteration was given up with; a worker still at it takes the next chunk after it."""
        self._lost.clear()
        self._deaths.clear()
        for member in self._members:
            if member.stage == "open":
                member.pending = member.chunk = None

    def _start(self) -> _Member:
        actor = self._actor_class.remote(self._opener)
        return _Member(actor, "waiting for room", pending=actor.place.remote())

    def _ask(self, member: _Member, chunk: tuple[int, T]) -> None:
        member.chunk = chunk
        member.pending = member.actor.work.remote(chunk[1])

    def _await_event(self) -> tuple[int, R] | None:
        """Wait for one worker to go on, some seconds at most; the result of a chunk, if that is what came."""
        import ray

        members = {member.pending: member for member in self._members if member.pending is not None}
        if any(member.stage != "waiting for room" for member in self._members):
            self._waiting_since = time.monotonic()
        ready, _ = ray.wait(list(members), num_returns=1, timeout=_TICK_S)
        if not ready:
            self._check_patience()
            return None
        member = members[ready[0]]
        try:
            value = ray.get(ready[0])
        except ray.exceptions.RayTaskError as error:
            raise self._own_error(member, error) from None
        except ray.exceptions.LocalRayletDiedError:
            raise UserError("Ray's process on this machine ended; start it again and repeat the command") from None
        except ray.exceptions.RayError as error:
            self._replace(member, error)
            return None
        return self._advance(member, value)

    def _advance(self, member: _Member, value: Any) -> tuple[int, R] | None:
        """What follows when a call of a worker returned."""
        if member.stage == "waiting for room":
            member.place, member.stage, member.pending = value, "opening", member.actor.open.remote()
            return None
        member.pending = None
        if member.stage == "opening":
            member.stage = "open"
            self._failed_openings = 0
            return None
        (index, _), member.chunk = member.chunk, None
        self.work_done[member.place] += 1
        return index, value

    def _check_patience(self) -> None:
        if time.monotonic() - self._waiting_since > _PATIENCE_S:
            raise UserError(
                f"no room for a worker in {_PATIENCE_S:g} s: each needs {self._needs}, and other work holds what the "
                "Ray cluster has (`ray status` shows it)"
            )

    def _own_error(self, member: _Member, error: Any) -> Exception:
        """The exception that was raised in a worker: a user's mistake as it was, anything else with its traceback."""
        if not isinstance(error.cause, UserError):
            return error
        if member.stage == "open":
            return error.cause
        return UserError(f"on machine {member.place.machine} of the Ray cluster: {error.cause}")

    def _replace(self, member: _Member, error: Exception) -> None:
        """Bury a worker that died; its chunk is asked again, and another worker starts in its place."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(member.actor)  # it may only be out of reach
        self._members.remove(member)
        where = f"on {member.place.machine}" if member.place else "of the Ray cluster"
        if member.stage == "open":
            index, _ = member.chunk
            self._deaths[index] += 1
            if self._deaths[index] >= _MOST_DEATHS:
                raise UserError(
                    f"chunk {index} has ended {self._deaths[index]} workers, the last one {where}: "
                    f"{_last_words(member.place, error)}"
                )
            self._lost.append(member.chunk)
            _log.warning("a worker %s ended; its chunk is asked again", where)
        else:
            self._failed_openings += 1
            if self._failed_openings >= _MOST_FAILED_OPENINGS:
                if not self._members:
                    raise UserError(
                        f"{self._failed_openings} workers in a row ended before they were open, the last one {where}: "
                        f"{_last_words(member.place, error)}"
                    )
                _log.warning("workers %s end before they are open; going on with %d", where, len(self._members))
                return
        self._members.append(self._start())


def _fit(machine: Machine, num_cpus: int, num_gpus: int) -> int:
    """How many workers a machine has room for."""
    cpus = machine.num_cpus // num_cpus if num_cpus else None
    gpus = machine.num_gpus // num_gpus if num_gpus else None
    return min(number for number in (cpus, gpus) if number is not None)


def _count(number: int, noun: str) -> str:
    """
    >>> _count(1, "GPU"), _count(0, "GPU")
    ('1 GPU', '0 GPUs')
    """
    return f"{number} {noun}" + "s" * (number != 1)


def _last_words(place: Place | None, error: Exception) -> str:
    """Why a worker died, as Ray says, and what it printed last, on one line."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    reason = _one_line(str(error).rpartition("Worker exit detail:")[2])
    if place is None or not place.log:
        return reason
    there = NodeAffinitySchedulingStrategy(place.node_id, soft=False)
    read = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_read_end)
    try:
        printed = ray.get(read.remote(place.log), timeout=20)
    except ray.exceptions.RayError:  # the machine is gone with it
        printed = ""
    return f"{reason}; it printed last: {printed}" if printed else reason


def _read_end(path: str, num_characters: int = 300) -> str:
    """The end of a file on one line, without progress bars; nothing of no file."""
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return " ".join(" ".join(line for line in lines if not re.search(r"\d%.*\|", line)).split())[-num_characters:]


def _one_line(text: str, most: int = 300) -> str:
    """
    >>> _one_line("first\\n  second", most=9)
    'first sec...'
    """
    line = " ".join(text.split())
    return line if len(line) <= most else line[:most] + "..."


# --- work ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_pool(
    open_worker: Callable[[], Callable[[T], R]], *, ray_address: str | None = None, num_workers: int | None = None
) -> Iterator[ClusterPool[T, R]]:
    """A pool with a worker a CPU of the cluster, or ``num_workers``. Raises UserError as ``JoinedCluster``."""
    check_ray(ray_address, num_workers)
    with (
        JoinedCluster(ray_address) as cluster,
        ClusterPool(open_worker, cluster.machines, num_workers=num_workers) as pool,
    ):
        yield pool


def map_chunks(
    open_worker: Callable[[], Callable[[T], R]],
    chunks: Iterable[T],
    *,
    ray_address: str | None = None,
    num_workers: int | None = None,
) -> Iterator[R]:
    """The result of every chunk, in order, computed on a worker a CPU of the cluster; see ``ClusterPool``."""
    with open_pool(open_worker, ray_address=ray_address, num_workers=num_workers) as pool:
        yield from pool.map(chunks)


def grade_on_cluster(
    chunks: Iterable[list[tuple[str, str, str, Kind]]],
    settings: Mapping[str, Any],
    *,
    ray_address: str | None = None,
    num_workers: int | None = None,
) -> Iterator[list[Verdict]]:
    """The verdicts of ``Grader.grade_many`` on every chunk, in order; each worker has a ``Grader(**settings)``."""
    opener = partial(_open_grader, dict(settings))
    return map_chunks(opener, chunks, ray_address=ray_address, num_workers=num_workers)


def _open_grader(settings: dict[str, Any]) -> Callable[[list[tuple[str, str, str, Kind]]], list[Verdict]]:
    return Grader(**settings).grade_many
