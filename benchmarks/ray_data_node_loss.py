"""A lost machine under the workers of tt_reasoning.cluster and under the actor pools of Ray Data.

Each side gets the same chunks of so many seconds on a new cluster of two nodes on this machine, and draws no chunk that
is more than so many beyond the first one that is not done: so a driver works that writes in order and in flat memory.
One node is killed while both work. A side that brings nothing for a while has stood still.

    python benchmarks/ray_data_node_loss.py --json node_loss.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

from tt_reasoning.cluster import ClusterPool, JoinedCluster

SIDES = {"actors": {}, "fixed": {"size": 2}, "elastic": {"min_size": 1, "max_size": 2, "initial_size": 2}}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    num_chunks: int = 24
    """Chunks of each side."""
    chunk_s: float = 3.0
    """Seconds of work in a chunk."""
    ahead: int = 8
    """Chunks drawn beyond the first that is not done (ClusterPool.map has 4 a worker)."""
    still_s: float = 60.0
    """Seconds without a chunk after which a side counts as standing still."""
    side: Literal["actors", "fixed", "elastic"] | None = None
    """One side alone: ClusterPool, or a Ray Data pool of two actors or of one to two; all unless given."""
    json: Path | None = None
    """File for the figures."""


def main(args: Arguments) -> None:
    if args.side:
        print(json.dumps(lose_a_machine(args, args.side)), flush=True)
        os._exit(0)  # what stood still may hold on to its threads
    found = {}
    for side in SIDES:
        command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        found[side] = json.loads(printed.splitlines()[-1])
        print(f"{side}: {found[side]}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def lose_a_machine(args: Arguments, side: str) -> dict[str, Any]:
    """Chunks done, whether the side stood still, and its longest wait for a chunk after the loss, in seconds."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    victim = cluster.add_node(**node)
    done: list[int] = []
    events: list[float] = []
    lost, ended = threading.Event(), threading.Event()

    def work() -> None:
        run = run_actors if side == "actors" else partial(run_ray_data, SIDES[side])
        for index, node_id in run(args, done):
            done.append(index)
            events.append(time.monotonic())
            if len(done) >= 4 and node_id == cluster.head_node.node_id and not lost.is_set():
                time.sleep(args.chunk_s / 4)
                cluster.remove_node(victim, allow_graceful=False)
                events[:] = [time.monotonic()]
                lost.set()
        ended.set()

    with JoinedCluster(cluster.address):
        threading.Thread(target=work, daemon=True).start()
        while not ended.wait(0.5):
            if lost.is_set() and time.monotonic() - events[-1] > args.still_s:
                break
        times = [*events, time.monotonic()] if not ended.is_set() else list(events)
    cluster.shutdown()
    longest = max(after - before for before, after in zip(times, times[1:], strict=False))
    return {"stood_still": not ended.is_set(), "done": len(set(done)), "longest_wait_s": round(longest, 1)}


def run_actors(args: Arguments, done: list[int]) -> Iterator[tuple[int, str]]:
    with JoinedCluster() as joined, ClusterPool(partial(open_sleeper, args.chunk_s), joined.machines) as pool:
        yield from pool.map(range(args.num_chunks))


def open_sleeper(chunk_s: float) -> Any:
    import ray

    def sleep(index: int) -> tuple[int, str]:
        time.sleep(chunk_s)
        return index, ray.get_runtime_context().get_node_id()

    return sleep


def run_ray_data(pool: dict[str, int], args: Arguments, done: list[int]) -> Iterator[tuple[int, str]]:
    """Rows are the numbers of chunks; the task that reads them waits on this process for leave to go on."""
    import pyarrow as pa
    import ray
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size, context.target_min_block_size = 1, 0  # a row a block: it is seen when it is done
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)

    @ray.remote(num_cpus=0, max_concurrency=2, scheduling_strategy=here)
    class Leave:
        def __init__(self) -> None:
            self.most = args.ahead

        def give(self, most: int) -> None:
            self.most = most

        def wait(self, index: int) -> None:
            while index > self.most:
                time.sleep(0.05)

    leave = Leave.remote()

    class Numbers(Datasource):
        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
            def read() -> Iterator[pa.Table]:
                for index in range(args.num_chunks):
                    ray.get(leave.wait.remote(index))
                    yield pa.table({"index": [index]})

            nothing = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(read, nothing)]

    class Sleeper:
        def __init__(self) -> None:
            self.sleep = open_sleeper(args.chunk_s)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            index, node_id = self.sleep(int(batch["index"][0]))
            return {"index": [index], "node_id": [node_id]}

    strategy = ray.data.ActorPoolStrategy(**pool, max_tasks_in_flight_per_actor=1)
    rows = ray.data.read_datasource(Numbers(), num_cpus=0, scheduling_strategy=here, override_num_blocks=1)
    mapped = rows.map_batches(Sleeper, batch_size=1, num_cpus=1, compute=strategy)
    for batch in mapped.iter_batches(batch_size=1, prefetch_batches=0):
        index = int(batch["index"][0])
        yield index, str(batch["node_id"][0])
        first = next(number for number in range(args.num_chunks + 1) if number not in done)
        leave.give.remote(first + args.ahead)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
