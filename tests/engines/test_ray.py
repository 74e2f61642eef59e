"""Real Ray with two nodes on this machine: the records of the local engine, whatever dies on the way."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from set_folders import write_folder
from tiny import write_tiny_model

from tt_reasoning import cluster as clusters
from tt_reasoning.cluster import JoinedCluster, grade_on_cluster, map_chunks, open_pool
from tt_reasoning.engines import check_engine, open_engine
from tt_reasoning.engines.base import Failure, PooledEngine, Request
from tt_reasoning.engines.ray import RayEngine
from tt_reasoning.errors import UserError
from tt_reasoning.grading import Grader

ROOT = Path(__file__).parents[2]
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # Ray's own 15 would let everything else go first
}
NUM_CHUNKS = 10


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        cluster.add_node(**NODE)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def address(two_nodes: Any) -> str:
    return two_nodes.address


def open_square(pause_s: float = 0.0) -> Callable[[int], int]:
    def square(number: int) -> int:
        time.sleep(pause_s)
        return number * number

    return square


def by_value(function: Callable) -> Callable:
    """The function itself travels: workers cannot import this file."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[function.__module__])
    return function


# --- the engine ------------------------------------------------------------------------------------------


def chunks_of_requests() -> list[list[Request]]:
    return [
        [
            Request(prompt=f"question {number}", temperature=1.0, max_new_tokens=64, seed=10 * number + seed)
            for seed in range(4)
        ]
        for number in range(NUM_CHUNKS)
    ]


LOCAL = """
import dataclasses, json, sys
sys.path[:0] = json.loads(sys.argv[2])
from test_ray import chunks_of_requests
from tt_reasoning.engines.vllm import VllmEngine
engine = VllmEngine(sys.argv[1], dtype="fp32", max_model_len=256)
found = [[dataclasses.asdict(c) for c in engine.generate(chunk)] for chunk in chunks_of_requests()]
json.dump(found, open(sys.argv[3], "w"))
"""


def test_a_killed_worker_loses_nothing_and_the_records_are_those_of_the_local_engine(
    address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_tiny_model(tmp_path / "model", hidden_size=128)  # vLLM has no attention for smaller heads
    paths = json.dumps([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])
    local = subprocess.Popen([sys.executable, "-c", LOCAL, model, paths, tmp_path / "local.json"])
    found: list[tuple[int, Any]] = []
    killed = None
    with closing(open_engine("ray", str(model), ray_address=address, dtype="fp32", max_model_len=256)) as engine:
        assert isinstance(engine, PooledEngine) and isinstance(engine, RayEngine)
        for index, completions in engine.generate_chunks(iter(chunks_of_requests())):
            found.append((index, completions))
            if killed is None and len({place.node_id for place in engine.work_done}) == 2:
                killed = min(engine.work_done, key=lambda place: place.pid)
                os.kill(killed.pid, signal.SIGKILL)
        again = engine.generate(chunks_of_requests()[0])
        (too_long,) = engine.generate([Request(prompt="x" * 300, max_new_tokens=16)])
    assert local.wait() == 0
    expected = json.loads((tmp_path / "local.json").read_text())
    assert sorted(index for index, _ in found) == list(range(NUM_CHUNKS))
    assert [[vars(c) for c in completions] for _, completions in sorted(found)] == expected
    assert [vars(c) for c in again] == expected[0]
    assert isinstance(too_long, Failure) and too_long.reason == "too_long"
    assert killed is not None and "its chunk is asked again" in caplog.text


def test_a_machine_without_the_model_is_named(address: str, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    engine = partial(RayEngine, str(model), ray_address=address, num_workers=1)
    (model / "config.json").unlink()  # what the driver saw, the workers do not
    with pytest.raises(UserError, match=f"on machine {socket.gethostname()} of the Ray cluster: .*has no config.json"):
        engine()


def test_what_no_machine_has_is_told_at_once(address: str, tmp_path: Path) -> None:
    model = str(write_tiny_model(tmp_path / "model"))
    host = re.escape(socket.gethostname())
    with pytest.raises(UserError, match=rf"needs 2 GPUs, which no machine .* has: {host} \(1 CPU, 0 GPUs\), {host} "):
        RayEngine(model, ray_address=address, tensor_parallel_size=2)


def test_mistakes_that_need_no_cluster_are_told_before_one_is_joined(tmp_path: Path) -> None:
    model = str(write_tiny_model(tmp_path / "model"))
    for options, message in [
        ({"dtype": "bf61"}, "did you mean 'bf16'"),
        ({"ray_address": "ray://head:10001"}, "--ray-address ray://head:10001 is no HOST:PORT"),
        ({"num_workers": 0}, "--num-workers 0: give at least 1"),
        ({"tensor_parallel_size": 0}, "--tensor-parallel-size 0: give at least 1"),
    ]:
        with pytest.raises(UserError, match=message):
            check_engine("ray", model, **options)


def test_an_address_where_no_cluster_answers_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]
    web = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    for port in (closed, web.server_port):
        with (
            pytest.raises(UserError, match=f"no Ray cluster answers at 127.0.0.1:{port}"),
            JoinedCluster(f"127.0.0.1:{port}"),
        ):
            pass
    web.shutdown()
    web.server_close()


# --- work on a cluster -----------------------------------------------------------------------------------


def test_results_come_in_order_and_chunks_are_drawn_as_they_are_needed(address: str) -> None:
    drawn = []

    def numbers() -> Iterator[int]:
        for number in range(1, 101):
            drawn.append(number)
            yield number

    results = map_chunks(by_value(open_square), numbers(), ray_address=address)
    assert next(results) == 1
    assert len(drawn) <= 10  # two workers
    assert list(results) == [number * number for number in range(2, 101)]


def test_verdicts_are_those_of_the_local_grader(address: str) -> None:
    answers = ["\\boxed{2(k+1)}", "<answer>18</answer>", "I do not know", "\\boxed{x+2}", "17"] * 4
    items = [(f"{i}", text, ["2k+2", "18"][i % 2], "math") for i, text in enumerate([*answers, "9^{9^{9^9}}"])]
    chunks = [items[at : at + 3] for at in range(0, len(items), 3)]
    settings = {"timeout_s": 1.0, "fallback": "last_number"}
    with Grader(**settings) as grader:
        expected = [grader.grade_many(chunk) for chunk in chunks]
    assert list(grade_on_cluster(chunks, settings, ray_address=address)) == expected
    assert {verdict.reason for chunk in expected for verdict in chunk} >= {"match", "mismatch", "timeout"}


def run_tool(name: str, *words: object) -> str:
    command = [sys.executable, ROOT / "tools" / f"{name}.py", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_tools_grade_and_build_sets_there_to_the_bytes_of_this_machine(address: str, tmp_path: Path) -> None:
    tokenizer = write_tiny_model(tmp_path / "model")
    texts = [["\\boxed{4}", f"The answer is {number}.", "I do not know"] for number in range(300)]
    here, there = (write_folder(tmp_path / name, texts, graded=False) for name in ("here", "there"))
    for folder, words in ((here, ()), (there, ("--ray-address", address))):
        assert "300 no_answer" in run_tool("check_answers", "--answers", folder, *words)
        sets = ("--num-answers", 2, "--tokenizer", tokenizer, "--out", folder / "sets", *words)
        run_tool("concat_answers", "--answers", folder, *sets)
    for name in ("verdicts.jsonl", "sets/sets.jsonl", "sets/dropped.jsonl", "sets/stats.json"):
        assert (here / name).read_bytes() == (there / name).read_bytes()


def test_a_lost_machine_loses_nothing(two_nodes: Any, caplog: pytest.LogCaptureFixture) -> None:
    third = two_nodes.add_node(**NODE)
    with open_pool(partial(by_value(open_square), 0.5), ray_address=two_nodes.address) as pool:
        results = pool.map(range(24))
        found = [next(results)]
        while len({place.node_id for place in pool.work_done}) < 3:
            found.append(next(results))
        two_nodes.remove_node(third, allow_graceful=False)
        found += results
    assert found == [number * number for number in range(24)]
    assert "its chunk is asked again" in caplog.text


def open_deadly(when: str) -> Callable[[str], str]:
    """Ends its process while opening, or at the chunk of that name."""

    def end() -> None:
        print("the last straw", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    if when == "opening":
        end()
    return lambda chunk: end() if chunk == when else chunk


def test_a_chunk_that_ends_every_worker_is_told_with_the_last_words(address: str) -> None:
    results = map_chunks(partial(by_value(open_deadly), "b"), ["a", "b", "c"], ray_address=address)
    with pytest.raises(UserError, match="chunk 1 has ended 3 workers, .* it printed last: .*the last straw"):
        list(results)


def test_workers_that_never_open_are_told_with_the_last_words(address: str) -> None:
    results = map_chunks(partial(by_value(open_deadly), "opening"), ["a"], ray_address=address, num_workers=1)
    with pytest.raises(UserError, match="3 workers in a row ended before they were open, .*the last straw"):
        list(results)


def test_room_that_others_hold_is_waited_for_but_not_for_ever(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opener = by_value(open_square)
    with open_pool(opener, ray_address=address) as holder:
        assert list(holder.map([2, 3])) == [4, 9]
        monkeypatch.setattr(clusters, "_PATIENCE_S", 0.2)
        monkeypatch.setattr(clusters, "_TICK_S", 0.5)
        with (
            open_pool(opener, ray_address=address) as waiting,
            pytest.raises(UserError, match="no room for a worker in 0.2 s: each needs 1 CPU"),
        ):
            list(waiting.map([2]))


def test_the_driver_leaves_only_what_it_joined_and_prints_nothing_of_ray(
    address: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    caplog.set_level(logging.INFO)
    opener = by_value(open_square)
    assert list(map_chunks(opener, [3], ray_address=address)) == [9]
    assert not ray.is_initialized()
    with JoinedCluster(address):
        assert list(map_chunks(opener, [3], ray_address=address)) == [9]
        assert ray.is_initialized()
    assert capfd.readouterr() == ("", "")
