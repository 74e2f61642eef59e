"""A real HTTP server that speaks OpenAI's API and misbehaves as a test says, request by request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A request: its path, key and JSON body, when it came, and how many like it (one seed) came before."""

    path: str
    key: str
    body: dict[str, Any]
    time_s: float
    earlier: int

    @property
    def seed(self) -> int:
        return self.body["seed"]

    @property
    def prompt(self) -> str:
        return self.body["prompt"] if "prompt" in self.body else self.body["messages"][-1]["content"]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What is sent back: ``body`` as JSON, or raw if it is bytes.

    ``cut`` closes the connection behind half of the body, ``stall_s`` comes before the first byte, and with
    ``drip_s`` that time passes before each byte of the body.
    """

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    stall_s: float = 0.0
    drip_s: float = 0.0


def answer(seen: Seen, text: str | None = None, *, finish_reason: str | None = "stop", **choice: Any) -> Reply:
    """A well-formed response; the text is ``seed N`` unless given."""
    text = f"seed {seen.seed}" if text is None else text
    part = {"message": {"role": "assistant", "content": text}} if "messages" in seen.body else {"text": text}
    return Reply(
        body={
            "object": "chat.completion" if "messages" in seen.body else "text_completion",
            "model": "served-name",
            "choices": [{"index": 0, "finish_reason": finish_reason, **part, **choice}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }
    )


def error(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    """An error as OpenAI words it."""
    body = {"error": {"message": message, "type": "error", "code": code}}
    return Reply(status=status, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


class MisbehavingServer:
    """Replies to each completion request as ``script`` says; ``seen`` holds them in the order of arrival."""

    def __init__(self, script: Callable[[Seen], Reply], models: Callable[[str], Reply] | None = None) -> None:
        self.script = script
        self.models = models or (lambda key: Reply(body={"data": [{"id": "tiny", "owned_by": "tests"}]}))
        self.seen: list[Seen] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self.base_url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @contextmanager
    def running(self) -> Iterator[MisbehavingServer]:
        """Serve in threads while the block runs."""
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.stop()
            thread.join()

    def stop(self) -> None:
        """End waits, serving and listening."""
        self._stop.set()
        self._http.shutdown()
        self._http.server_close()

    def close_port(self) -> None:
        """From now on no connection can be made; a script may call it."""
        self._http.shutdown()
        self._http.server_close()

    def receive(self, path: str, key: str, body: dict[str, Any]) -> Reply:
        """Note a request and look up its reply."""
        with self._lock:
            earlier = sum(seen.seed == body["seed"] for seen in self.seen)
            seen = Seen(path=path, key=key, body=body, time_s=time.monotonic(), earlier=earlier)
            self.seen.append(seen)
        return self.script(seen)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Count the requests under way."""
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1

    def wait(self, seconds: float) -> None:
        """Sleep, but not beyond the end of the server."""
        self._stop.wait(seconds)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    owner: MisbehavingServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Http

    def do_GET(self) -> None:
        self._send(self.server.owner.models(self._key()))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.owner.at_once():
            self._send(self.server.owner.receive(self.path, self._key(), body))

    def _key(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _send(self, reply: Reply) -> None:
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.server.owner.wait(reply.stall_s)
        try:
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if reply.cut:
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            elif reply.drip_s:
                for byte in content:
                    self.server.owner.wait(reply.drip_s)
                    self.wfile.write(bytes([byte]))
            else:
                self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):  # the client gave up
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Say nothing on stderr."""
