"""Engines in processes of their own: the same records as one engine, whatever dies."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import write_tiny_model

from tt_reasoning.engines import open_engine
from tt_reasoning.engines.base import CheckingEngine, PooledEngine, Request
from tt_reasoning.engines.options import EngineOptions
from tt_reasoning.engines.pool import EnginePool, check_pool, share_machine
from tt_reasoning.errors import UserError

TOOL = Path(__file__).parents[2] / "tools" / "generate_answers.py"


@pytest.fixture(autouse=True)
def logs_in_the_tests_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "script.json"
    path.write_text(json.dumps({"answers": {"ask": ["drew {seed}"]}, "delay_s": 0.02}))
    return str(path)


@pytest.fixture
def pool(script: str) -> Iterator[EnginePool]:
    pool = EnginePool("scripted", script, 2)
    yield pool
    pool.close()


def chunks(num: int, size: int = 3) -> list[list[Request]]:
    return [[Request(prompt="ask", seed=size * c + n) for n in range(size)] for c in range(num)]


def expected(asked: list[list[Request]], script: str) -> dict[int, list]:
    engine = open_engine("scripted", script)
    return {index: list(engine.generate(chunk)) for index, chunk in enumerate(asked)}


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_two_copies_answer_what_one_engine_does_side_by_side(pool: EnginePool, script: str) -> None:
    assert isinstance(pool, PooledEngine) and isinstance(pool, CheckingEngine)
    asked = chunks(7)
    assert dict(pool.generate_chunks(asked)) == expected(asked, script)
    assert list(pool.generate(asked[1])) == expected(asked, script)[1]
    assert list(pool.generate_chunks([])) == []


def test_chunks_are_drawn_only_when_a_copy_is_free(pool: EnginePool) -> None:
    drawn = []

    def draw() -> Iterator[list[Request]]:
        for number, chunk in enumerate(chunks(6)):
            drawn.append(number)
            yield chunk

    for done, _ in enumerate(pool.generate_chunks(draw()), 1):
        assert len(drawn) <= done + 2
    assert drawn == list(range(6))


def test_killed_copies_are_replaced_and_lose_nothing(
    pool: EnginePool, script: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = chunks(8)
    found = {}
    for index, outcomes in pool.generate_chunks(asked):
        assert index not in found
        found[index] = list(outcomes)
        if len(found) in (1, 2, 5):
            at_work = [copy for copy in pool._copies if copy.task]
            (at_work or pool._copies)[0].process.kill()
    assert found == expected(asked, script)
    assert caplog.text.count("was killed by SIGKILL") == 3 and "another one takes its place" in caplog.text


def test_an_idle_copy_that_is_killed_is_replaced(pool: EnginePool, script: str) -> None:
    for copy in pool._copies:
        copy.process.kill()
        copy.process.wait()
    assert pool.refuse(chunks(1)[0][0]) is None
    asked = chunks(3)
    assert dict(pool.generate_chunks(asked)) == expected(asked, script)


def test_a_chunk_that_kills_every_copy_ends_the_run_and_says_how(pool: EnginePool) -> None:
    asked = chunks(2, size=50)

    def kill(*_: object) -> None:
        for copy in pool._copies:
            if copy.task:
                copy.process.kill()

    signal.signal(signal.SIGALRM, kill)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        with pytest.raises(UserError, match="3 engines died of one chunk; the last was killed by SIGKILL"):
            list(pool.generate_chunks(asked))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_a_users_mistake_in_a_copy_is_one_here(pool: EnginePool, script: str) -> None:
    with pytest.raises(UserError, match="the script has no answer to 'other'"):
        list(pool.generate_chunks([*chunks(2), [Request(prompt="other")]]))


def test_leaving_early_leaves_the_copies_ready(pool: EnginePool, script: str) -> None:
    for _ in itertools.islice(pool.generate_chunks(chunks(9)), 2):
        pass
    asked = chunks(2)
    assert dict(pool.generate_chunks(asked)) == expected(asked, script)


def test_an_engine_that_does_not_start_is_said(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no such file: nothing.json"):
        EnginePool("scripted", "nothing.json", 2)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="an engine of --data-parallel-size 2 ended with status 1, without a word"):
        EnginePool("scripted", script, 2)


def test_the_copies_end_with_the_process_that_started_them(script: str, tmp_path: Path) -> None:
    command = [
        sys.executable, str(TOOL), "--engine", "scripted", "--model", script, "--dataset", "quickstart",
        "--prompt", "question", "--data-parallel-size", "2", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    Path(script).write_text(json.dumps({"fallback": ["7"], "delay_s": 600}))
    logs = tmp_path / "logs"
    logs.mkdir()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"TMPDIR": str(logs)})
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    copies: list[int] = []
    while process.poll() is None and len(copies) < 2:
        found = {int(pid): Path(f"/proc/{pid}/cmdline") for pid in children.read_text().split()}
        copies = [pid for pid, line in found.items() if line.exists() and b"engines.pool" in line.read_bytes()]
        time.sleep(0.01)
    assert process.poll() is None
    process.kill()
    process.wait()
    while any(map(is_alive, copies)):
        time.sleep(0.05)
    while list(logs.iterdir()):
        time.sleep(0.05)


def test_real_models_side_by_side_give_the_records_of_one(tmp_path: Path) -> None:
    model = str(write_tiny_model(tmp_path / "model"))
    options = EngineOptions(name="tune", data_parallel_size=2, max_model_len=64)
    options.check(model)
    pool, one = options.open(model), open_engine("tune", model, max_model_len=64)
    asked = [
        [Request(prompt=prompt, seed=n, max_new_tokens=9, temperature=1.0) for n in range(3)]
        for prompt in ("one", "x" * 60, "two", "three")
    ]
    try:
        assert dict(pool.generate_chunks(asked)) == {n: one.generate(chunk) for n, chunk in enumerate(asked)}
        assert pool.refuse(asked[1][0]).reason == "too_long" and pool.refuse(asked[0][0]) is None
    finally:
        pool.close()


def test_gpus_and_cores_are_shared_without_a_rest_or_refused() -> None:
    assert [share.gpus for share in share_machine(3, ["4", "5", "7"], 1, range(8))] == [("4",), ("5",), ("7",)]
    with pytest.raises(UserError, match=r"--data-parallel-size 2 with 2 GPU\(s\) each needs 4 GPUs, and 3 can be seen"):
        share_machine(2, ["4", "5", "7"], 2, range(8))
    parts = [share.cores for share in share_machine(5, [], 1, range(3, 15))]
    assert [core for part in parts for core in part] == list(range(3, 15)) and {len(p) for p in parts} == {2, 3}
    assert [share.cores for share in share_machine(3, [], 1, [6, 7])] == [(6,), (7,), (6,)]


def test_only_engines_of_this_machine_are_copied() -> None:
    for name, other in [("openai", "--concurrency"), ("ray", "--num-workers")]:
        with pytest.raises(UserError, match=f"--data-parallel-size 2 is for engines of this machine; .* {other}"):
            check_pool(name, 2)
        check_pool(name, 1)
    with pytest.raises(UserError, match="--data-parallel-size 0: give at least 1"):
        check_pool("vllm", 0)
