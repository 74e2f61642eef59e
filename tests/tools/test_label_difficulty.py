"""tools/label_difficulty.py in front of a real HTTP server and a script: keys, tries, kills, growth, mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from engines.misbehaving_server import MisbehavingServer, Reply, Seen, answer, error

from tt_reasoning.store import read_manifest, read_rows

ROOT = Path(__file__).parents[2]
NUMINA = ROOT / "tests" / "data" / "numina.jsonl"
SECRETS = ["sk-first-3f9a1c", "sk-second-77b2d0", "sk-third-c01d5e"]
PRODUCT, COIN, TWO, PRIME = "The product of three", "A fair coin", "(a) Find $x$", "Which of these is prime?"


@pytest.fixture(autouse=True)
def no_key_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_LOG"):
        monkeypatch.delenv(name, raising=False)


def command(**options: object) -> list[str]:
    given = {"data_files": NUMINA, "out": "labels"} | options
    words = [sys.executable, str(ROOT / "tools/label_difficulty.py")]
    for name, value in given.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words


def label(home: Path, **options: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HOME": str(home / "cache"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command(**options), cwd=home, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mistake(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def levels(folder: Path) -> dict[str, float]:
    return {row["problem"][:12]: row["level"] for row in read_rows(folder / "labels.jsonl")}


def test_several_keys_are_really_used_in_turn_and_what_states_no_level_is_asked_again(tmp_path: Path) -> None:
    tries: Counter[str] = Counter()
    script = {PRODUCT: ["[[2]]"], COIN: ["4", "[[4]]"], TWO: ["[[11]]", "[[1]] [[2]]", "[[0]]"], PRIME: ["[[1.5]]"]}

    def reply(seen: Seen) -> Reply:
        start = next(start for start in script if seen.prompt.startswith(start))
        tries[start] += 1
        return answer(seen, script[start][tries[start] - 1])

    (tmp_path / "keys.txt").write_text("\n".join(SECRETS) + "\n")
    with MisbehavingServer(reply).running() as server:
        options = {"base_url": server.base_url, "keys": "keys.txt", "concurrency": 1, "end": -1}
        done = label(tmp_path, **options)
        assert done.returncode == 0, done.stderr
        # Four first tries, two second ones, one third, by three keys.
        assert Counter(seen.prompt.split("\n")[0][:5] for seen in server.seen) == {
            "The p": 1, "A fai": 2, "(a) F": 3, "Which": 1
        }
        counts = Counter(seen.key for seen in server.seen)
        assert counts.keys() == set(SECRETS) and sorted(counts.values()) == [2, 2, 3]
        assert all(one.key != two.key for one, two in pairwise(server.seen))
        body = server.seen[0].body
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("gpt-4o-mini", 0.7, 2048)
        assert [message["role"] for message in body["messages"]] == ["system", "user"]

        # Nothing is asked again, and another seed is another run.
        before = contents(tmp_path / "labels")
        assert label(tmp_path, **options).returncode == 0 and len(server.seen) == 7
        assert contents(tmp_path / "labels") == before
        assert "seed was 0, now 1" in mistake(label(tmp_path, **options, seed=1))
        assert contents(tmp_path / "labels") == before
    assert levels(tmp_path / "labels") == {"The product ": 2.0, "A fair coin ": 4.0, "Which of the": 1.5}
    (row,) = read_rows(tmp_path / "labels" / "unlabelled.jsonl")
    assert (row["category"], row["reason"], row["tries"], row["reply"]) == ("olympiads", "out_of_range", 3, "[[0]]")
    assert done.stdout == (
        "labels/labels.jsonl: 3 of 4 problems labelled (1.5: 1, 2: 1, 4: 1), in 7 tries, 7 of them now; without a "
        "level 1: out_of_range 1 (see labels/unlabelled.jsonl)\n"
    )
    for text in [done.stdout, done.stderr, *(data.decode() for data in contents(tmp_path / "labels").values())]:
        assert not any(secret in text for secret in SECRETS)
    arguments = read_manifest(tmp_path / "labels")["arguments"]
    assert not {"keys", "base_url", "num_samples", "source", "end"} & arguments.keys()


def test_failed_requests_are_counted_never_labels_and_a_rerun_asks_for_them_alone(tmp_path: Path) -> None:
    broken = True

    def reply(seen: Seen) -> Reply:
        return error(500) if broken and seen.prompt.startswith(COIN) else answer(seen, "[[3]]")

    with MisbehavingServer(reply).running() as server:
        options = {"base_url": server.base_url, "max_retries": 0, "num_samples": 1}
        done = label(tmp_path, **options)
        assert mistake(done) == (
            "error: requests failed: 1 server_error (status 500: no); 1 problems have no reply yet; the same command "
            "asks again"
        )
        assert done.stdout.startswith("labels/labels.jsonl: 3 of 4 problems labelled (3: 3)")
        assert "A fair coin " not in levels(tmp_path / "labels")
        assert json.loads((tmp_path / "labels" / "stats.json").read_text())["missing"] == 1
        broken, asked = False, len(server.seen)
        done = label(tmp_path, **options)
        assert done.returncode == 0, done.stderr
        assert [seen.prompt.startswith(COIN) for seen in server.seen[asked:]] == [True]
    assert len(levels(tmp_path / "labels")) == 4


def test_a_run_killed_again_and_again_ends_with_the_files_of_one_never_killed(tmp_path: Path) -> None:
    """Kills in the first try, at its end and in the second: about one reply of two states no level."""
    script = {"fallback": ["[[4]]", "no {seed}"], "delay_s": 0.03}
    (tmp_path / "script.json").write_text(json.dumps(script))
    options = {
        "engine": "scripted", "model": "script.json", "dataset": "quickstart", "data_files": None, "limit": 16,
        "chunk_size": 2,
    }  # fmt: skip
    assert label(tmp_path, out="whole", **options).returncode == 0
    whole = [row["sampling"]["seed"] for row in read_rows(tmp_path / "whole" / "replies.jsonl")]
    assert whole.count(0) == 16 and 3 <= whole.count(1) <= 13 and whole.count(2)
    path, sizes = tmp_path / "killed" / "replies.jsonl", []
    for num_lines in (1, 9, 17):
        process = subprocess.Popen(command(out="killed", **options), cwd=tmp_path, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= num_lines):
            time.sleep(0.002)
        assert process.poll() is None, "the run ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "labels.jsonl").exists()
        sizes.append(path.stat().st_size)
        with path.open("ab") as file:
            file.write(b'{"id":"torn')
        (tmp_path / "killed" / ".labels.jsonl.1.tmp").write_text("half")
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] < (tmp_path / "whole" / "replies.jsonl").stat().st_size
    assert label(tmp_path, out="killed", **options).returncode == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_sources_ranges_and_tries_add_to_a_folder_and_shards_share_it(tmp_path: Path) -> None:
    (tmp_path / "script.json").write_text(json.dumps({"answers": {PRIME: ["hm"]}, "fallback": ["[[6]]"]}))
    options = {"engine": "scripted", "model": "script.json"}
    done = label(tmp_path, source="AMC_AIME", start=1, num_samples=1, **options)
    assert "no reply states a level; read labels/unlabelled.jsonl" in mistake(done)
    done = label(tmp_path, source=["amc_aime", "math"], num_samples=2, **options)
    assert done.returncode == 0 and "2 of 3 problems labelled (6: 2), in 4 tries, 3 of them now" in done.stdout
    done = label(tmp_path, dataset="NUMINA", **options)
    assert done.returncode == 0 and "3 of 4 problems labelled (6: 3), in 6 tries, 2 of them now" in done.stdout
    for shard in ("1/2", "2/2"):
        assert label(tmp_path, out=f"shard{shard[0]}", shard=shard, **options).returncode in (0, 2)
    merged = {**levels(tmp_path / "shard1"), **levels(tmp_path / "shard2")}
    assert merged == levels(tmp_path / "labels") and len(merged) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "mth"}, "unknown source of numina 'mth': did you mean 'math'?"),
        ({"dataset": "numena"}, "unknown dataset 'numena': did you mean 'numina'?"),
        ({"data_files": "nothing.jsonl"}, "--data-files nothing.jsonl: no such file"),
        ({"data_files": None}, "the data set AI-MO/NuminaMath-CoT (train) cannot be loaded"),
        ({"end": -2}, "--start 0 --end -2 leaves no problem"),
        ({"end": 2, "limit": 2}, "--end 2 and --limit 2 both say where to stop; give one"),
        ({"shard": "3/2"}, "--shard 3/2: give i/n"),
        ({"num_samples": 0}, "--num-samples 0: give at least 1"),
        ({"temperature": 0}, "--temperature 0 is greedy: every try is the same"),
        ({"temperature": -1}, "--temperature -1: give a number from 0 on"),
        ({"top_p": 2}, "--top-p 2.0"),
        ({"prompt": "dificulty"}, "unknown prompt 'dificulty': did you mean 'difficulty'?"),
        ({"prompt": "ssa"}, "--prompt ssa begins the reply itself (prefill)"),
        ({"keys": "nowhere.txt"}, "--keys names no readable text file"),
        ({"base_url": None}, "OpenAI asks for a key: set OPENAI_API_KEY, give --keys FILE"),
        ({"engine": "scripted", "model": "none.json", "base_url": None}, "no such file: none.json"),
        ({}, "no server answers at http://127.0.0.1:9/v1"),
    ],
)
def test_a_mistake_is_one_line_and_makes_no_labels(tmp_path: Path, options: dict[str, object], message: str) -> None:
    line = mistake(label(tmp_path, **{"base_url": "http://127.0.0.1:9/v1", "max_retries": None} | options))
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "labels" / "labels.jsonl").exists()


def test_help_names_the_options_and_an_example(tmp_path: Path) -> None:
    done = subprocess.run([*command()[:2], "--help"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    assert "--num-samples" in done.stdout and "Example: python tools/label_difficulty.py" in done.stdout
