"""Fetching a model: from a Hub (a small server that speaks its protocol), whole or not at all, nothing overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tiny import write_tiny_model

from tools.get_model import Arguments, main
from tt_reasoning.errors import UserError
from tt_reasoning.models import ChatTokenizer

TOOL = Path(__file__).parents[2] / "tools" / "get_model.py"
COMMIT = "a" * 40
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "README.md": b"not wanted",
    "onnx/config.json": b"not wanted",
}


class Hub(ThreadingHTTPServer):
    """The part of the Hub's protocol that a download uses. ``cut``: weights stop half-way and the line stays open."""

    cut = False
    stalled = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        name = self.path.partition(f"/resolve/{COMMIT}/")[2]
        if "/tree/" in self.path:
            oid = {name: hashlib.sha1(body).hexdigest() for name, body in FILES.items()}
            tree = [{"type": "file", "path": name, "size": len(FILES[name]), "oid": oid[name]} for name in FILES]
            self.reply(json.dumps(tree).encode())
        elif self.path.startswith("/api/models/"):
            self.reply(json.dumps({"id": "x/y", "sha": COMMIT}).encode())
        elif name in FILES:
            self.reply(FILES[name], ETag=f'"{hashlib.sha256(FILES[name]).hexdigest()}"', **{"X-Repo-Commit": COMMIT})
        else:
            self.reply(b"", status=404)

    do_HEAD = do_GET

    def reply(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.cut and body == FILES["model.safetensors"]:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.server.stalled.set()
            time.sleep(60)
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), HubHandler)
    server.daemon_threads, server.block_on_close, server.stalled = True, False, threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def start(out: Path, endpoint: str, name: str = "qwen2.5-0.5b") -> subprocess.Popen[str]:
    command = [sys.executable, str(TOOL), "--name", name, "--out", str(out)]
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def fetch(out: Path, endpoint: str, name: str = "qwen2.5-0.5b") -> tuple[int, str, str]:
    process = start(out, endpoint, name)
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_hub_download_holds_the_wanted_files_and_says_where_from(tmp_path: Path, hub: Hub) -> None:
    status, stdout, stderr = fetch(tmp_path / "m", hub.url)
    assert status == 0, stderr
    assert f"from {hub.url}/Qwen/Qwen2.5-0.5B, revision {COMMIT}" in stdout
    assert files(tmp_path) == {"m/config.json", "m/tokenizer.json", "m/model.safetensors", "m/source.json"}
    source = json.loads((tmp_path / "m" / "source.json").read_text())
    assert source["revision"] == COMMIT
    assert source["sha256"] == {"model.safetensors": hashlib.sha256(FILES["model.safetensors"]).hexdigest()}


def test_finished_folder_is_kept_and_needs_no_network(tmp_path: Path, hub: Hub) -> None:
    assert fetch(tmp_path / "m", hub.url)[0] == 0
    hub.shutdown()
    before = (tmp_path / "m" / "source.json").stat().st_mtime_ns
    status, stdout, _ = fetch(tmp_path / "m", "http://127.0.0.1:9")
    assert status == 0 and "already holds qwen2.5-0.5b" in stdout
    assert (tmp_path / "m" / "source.json").stat().st_mtime_ns == before


def test_killed_download_leaves_no_folder_and_goes_on(tmp_path: Path, hub: Hub) -> None:
    hub.cut = True
    process = start(tmp_path / "m", hub.url)
    assert hub.stalled.wait(timeout=60)
    process.kill()
    process.communicate()
    assert not (tmp_path / "m").exists()
    hub.cut = False
    assert fetch(tmp_path / "m", hub.url)[0] == 0
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_leftovers_of_another_source_do_not_end_up_in_the_folder(tmp_path: Path, hub: Hub) -> None:
    partial = tmp_path / ".m.partial"
    (partial / ".download-x").mkdir(parents=True)
    (partial / "generation_config.json").write_text("{}")
    assert fetch(tmp_path / "m", hub.url)[0] == 0
    assert files(tmp_path) == {"m/config.json", "m/tokenizer.json", "m/model.safetensors", "m/source.json"}


def test_mistakes_are_one_line_with_status_2_and_change_nothing(tmp_path: Path, hub: Hub) -> None:
    assert fetch(tmp_path / "m", hub.url)[0] == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "source.json").write_text("{}")
    before = files(tmp_path)
    mistakes = {
        ("x", "smolm2-135m"): "did you mean 'smollm2-135m'?",
        ("m", "qwen2.5-3b"): "holds qwen2.5-0.5b, not qwen2.5-3b",
        ("mine", "qwen2.5-3b"): "not a fetched model",
        ("mine/thesis.txt", "qwen2.5-3b"): "not a fetched model",
        ("mine/thesis.txt/m", "qwen2.5-3b"): "cannot be made",
        ("damaged", "qwen2.5-3b"): "is not what this tool writes",
    }
    for (out, name), reason in mistakes.items():
        status, stdout, stderr = fetch(tmp_path / out, hub.url, name)
        assert (status, stdout) == (2, "") and reason in stderr and stderr.count("\n") == 1, stderr
    assert files(tmp_path) == before


def test_a_folder_that_lost_its_weights_is_not_finished(tmp_path: Path, hub: Hub) -> None:
    assert fetch(tmp_path / "m", hub.url)[0] == 0
    (tmp_path / "m" / "model.safetensors").unlink()
    status, _, stderr = fetch(tmp_path / "m", hub.url)
    assert status == 2 and "has lost model.safetensors" in stderr


def test_unreachable_hub_without_another_source_says_so(tmp_path: Path) -> None:
    status, _, stderr = fetch(tmp_path / "m", "http://127.0.0.1:9")
    assert status == 2 and "the Hub does not answer for Qwen/Qwen2.5-0.5B" in stderr and stderr.count("\n") == 1
    assert not (tmp_path / "m").exists()


def test_the_real_model_says_where_it_came_from(smollm2: Path) -> None:
    source = json.loads((smollm2 / "source.json").read_text())
    weights = hashlib.sha256((smollm2 / "model.safetensors").read_bytes()).hexdigest()
    assert source["name"] == "smollm2-135m" and source["sha256"] == {"model.safetensors": weights}


def test_tokens_are_added_to_a_copy_of_a_folder_once_and_no_other_run_takes_it(tmp_path: Path) -> None:
    mine, out = write_tiny_model(tmp_path / "mine"), tmp_path / "judge"
    (mine / "training_state.pt").write_bytes(b"of a recipe")
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    tokens = ("<END_STEP>", "<POS_STEP>")
    summary = main(Arguments(name=str(mine), out=out, add_tokens=tokens))
    assert summary.endswith("; added <END_STEP> (259), <POS_STEP> (260)")
    assert files(out) == {*before, "source.json"} - {"training_state.pt"}
    assert ChatTokenizer(out).encode("4<POS_STEP>")[-1] == 260
    source = json.loads((out / "source.json").read_text())
    assert source["source"] == str(mine) and source["added_tokens"] == list(tokens)
    weights = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert source["sha256"] == {"model.safetensors": weights}
    assert "already holds" in main(Arguments(name=str(mine), out=out, add_tokens=tokens))
    for name, more, message in [
        (str(mine), ("<END_STEP>",), "with added tokens <END_STEP> <POS_STEP>, not <END_STEP>; name a new folder"),
        (str(out), tokens, f"holds {mine}, not {out}; name a new folder"),
        (str(tmp_path), tokens, r"holds no \*.safetensors file"),
        (str(mine), (), "unknown model"),
    ]:
        with pytest.raises(UserError, match=message):
            main(Arguments(name=name, out=out, add_tokens=more))
    with pytest.raises(UserError, match="'a' is an ordinary token"):
        main(Arguments(name=str(mine), out=tmp_path / "new", add_tokens=("a",)))
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "judge"}
