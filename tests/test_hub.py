"""Where the Hub does not answer, that is said in one line and at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hub_double import Blob, HubDouble, Repo

from tt_reasoning.problems import SOURCES, load_problems
from tt_reasoning.store import dump_record


def test_an_unreachable_hub_is_one_line_without_retries(tmp_path: Path) -> None:
    program = (
        "from tt_reasoning.errors import exit_on_mistake\n"
        "from tt_reasoning.problems import load_problems\n"
        "with exit_on_mistake():\n"
        "    load_problems('gsm8k', 'test')\n"
    )
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: the data set openai/gsm8k (test) cannot be loaded: ")
    assert line.endswith("; pass --data-files FILE with a copy of your own")


def test_a_data_set_on_disk_loads_without_the_hub(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text('{"question": "2 + 2?", "answer": "4"}\n')
    program = (
        "from tt_reasoning.hub import load_hub_dataset\n"
        f"print(load_hub_dataset({str(tmp_path / 'rows')!r}, split='train')[0])"
    )
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert "{'question': '2 + 2?', 'answer': '4'}" in result.stdout, result.stderr


def test_a_hub_data_set_gives_the_same_problems_as_a_local_file(tmp_path: Path) -> None:
    """One folder a source, of the Hub's layout: the rows come through the datasets library."""
    expected = {}
    for dataset, source in SOURCES.items():
        if source.hub and dataset not in ("svamp", "mawps"):  # their fixtures hold two column layouts
            (rows,) = (Path(__file__).parent / "data").glob(f"{dataset.replace('500', '')}.*")
            (tmp_path / dataset).mkdir()
            shutil.copy(rows, tmp_path / dataset / f"{source.splits[-1]}{rows.suffix}")
            problems = load_problems(dataset, source.splits[-1], data_files=str(rows))
            expected[dataset] = [dump_record(problem) for problem in problems]
    program = (
        "import dataclasses, json\n"
        "from tt_reasoning.problems import SOURCES, load_problems\n"
        "from tt_reasoning.store import dump_record\n"
        "loaded = {}\n"
        f"for name in {list(expected)}:\n"
        f"    SOURCES[name] = dataclasses.replace(SOURCES[name], hub={str(tmp_path)!r} + '/' + name, config=None, "
        "files={})\n"
        "    loaded[name] = [dump_record(problem) for problem in load_problems(name, SOURCES[name].splits[-1])]\n"
        "print(json.dumps(loaded))\n"
    )
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == expected


LOAD = """
import json
from tt_reasoning.errors import exit_on_mistake
from tt_reasoning.problems import load_problems
with exit_on_mistake():
    print(json.dumps([problem.reference for problem in load_problems({!r}, {!r})]))
"""


@pytest.mark.parametrize(("dataset", "split"), [("apps", "test"), ("taco", "train"), ("livecodebench", "test")])
def test_files_of_a_data_set_with_a_script_are_downloaded_and_kept(tmp_path: Path, dataset: str, split: str) -> None:
    """From a Hub that holds them and a script; then from the cache, when the Hub is gone."""
    source, rows = SOURCES[dataset], Path(__file__).parent / "data" / f"{dataset}.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    half = len(lines) // 2
    program = LOAD.format(dataset, split)
    expected = [problem.reference for problem in load_problems(dataset, split, data_files=str(rows))]
    with HubDouble() as hub:
        repo = Repo(private=False)
        hub.repos["dataset", source.hub] = repo
        files = {f"{source.hub.split('/')[1]}.py": Blob(b"raise SystemExit")}
        for number, name in enumerate(source.files[split]):
            part = lines if len(source.files[split]) == 1 else [lines[:half], lines[half:]][min(number, 1)]
            table = pyarrow.Table.from_pylist([json.loads(line) for line in part])
            path = tmp_path / "part"
            path.write_text("".join(part))
            if name.endswith(".parquet"):
                pyarrow.parquet.write_table(table, path)
            files[name] = Blob(path.read_bytes())
        repo.commit("rows", files)
        environment = os.environ | hub.environment(tmp_path / "hf")
        environment.pop("HF_HUB_OFFLINE", None)
        there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert there.returncode == 0, there.stderr
        missing = environment | {"HF_HOME": str(tmp_path / "empty")}
        del files[name]
        repo.commit("one less", files)
        gone = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=missing)
    assert json.loads(there.stdout) == expected
    said = gone.stderr.splitlines()[-1]
    assert gone.returncode == 2 and said.startswith(f"error: {name} of the data set {source.hub} cannot be loaded: ")
    kept = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert kept.returncode == 0 and kept.stdout == there.stdout, kept.stderr
    nothing = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=missing)
    assert nothing.returncode == 2 and nothing.stderr.endswith("; pass --data-files FILE with a copy of your own\n")


class GatedHub(BaseHTTPRequestHandler):
    """Answers every request as the Hub answers one for a gated data set: 401 without a token, 403 with one."""

    def do_GET(self) -> None:
        self.send_response(403 if "Authorization" in self.headers else 401)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to dataset Idavidrein/gpqa is restricted.")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


@pytest.fixture
def gated_hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), GatedHub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("token", [None, "hf_made_up"])
def test_a_gated_data_set_says_in_one_line_how_to_get_it(tmp_path: Path, gated_hub: str, token: str | None) -> None:
    program = (
        "from tt_reasoning.errors import exit_on_mistake\n"
        "from tt_reasoning.problems import load_problems\n"
        "with exit_on_mistake():\n"
        "    load_problems('gpqa-diamond', 'train')\n"
    )
    environment = os.environ | {"HF_ENDPOINT": gated_hub, "HF_HOME": str(tmp_path)}
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        environment.pop(name, None)
    if token:
        environment["HF_TOKEN"] = token
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line == (
        "error: the data set Idavidrein/gpqa (train) cannot be loaded: it is gated; accept its terms at "
        f"{gated_hub}/datasets/Idavidrein/gpqa and log in (hf auth login, or HF_TOKEN); "
        "pass --data-files FILE with a copy of your own"
    )
