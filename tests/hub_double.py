"""A Hub of one process: what the real ``huggingface_hub`` client needs to create, upload, commit, list and read back.

It keeps repositories in memory and speaks the Hub's HTTP: repositories are private or public, files go regular or
by Git LFS as the suffix and size say, a commit is refused when its parent is not the head or an object is missing,
and a private repository is not there for who has no token. Xet is not spoken: set ``HF_HUB_DISABLE_XET=1``.

It can also misbehave on request (``fail``, ``cut``, ``stall``), and it remembers every request, so that a test can say
what was sent twice.

    with HubDouble() as hub:
        hub.fail("POST", "/commit/", 500)
        HfApi(endpoint=hub.url, token=hub.token).create_repo("user/name")
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

BY_LFS = (".safetensors", ".parquet", ".png", ".pdf", ".bin", ".gguf", ".model")  # of the Hub's .gitattributes
ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in BY_LFS).encode()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Blob:
    """A file as git has it: its content, or what an LFS pointer says."""

    content: bytes
    lfs_oid: str | None = None

    @property
    def oid(self) -> str:
        if self.lfs_oid is None:
            return git_oid(self.content)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.lfs_oid}\nsize {len(self.content)}\n"
        return git_oid(pointer.encode())

    def entry(self, path: str) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "oid": self.oid, "size": len(self.content)}
        if self.lfs_oid:
            entry["lfs"] = {"oid": self.lfs_oid, "size": len(self.content), "pointerSize": 134}
        return entry


@dataclass
class Repo:
    """The commits of a repository, oldest first: an id, a message and all files."""

    private: bool
    commits: list[tuple[str, str, dict[str, Blob]]] = field(default_factory=list)

    def commit(self, message: str, files: dict[str, Blob]) -> str:
        words = [f"{len(self.commits)} {message}", *(f"{path} {blob.oid}" for path, blob in sorted(files.items()))]
        oid = hashlib.sha1("\n".join(words).encode()).hexdigest()
        self.commits.append((oid, message, files))
        return oid

    @property
    def files(self) -> dict[str, Blob]:
        return self.commits[-1][2]

    def at(self, revision: str) -> tuple[str, dict[str, Blob]]:
        if revision == "main":
            revision = self.commits[-1][0]
        for oid, _, files in self.commits:
            if oid == revision:
                return oid, files
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")


class Refusal(Exception):
    """An answer that is an error: status, the Hub's X-Error-Code, its message, further headers."""

    def __init__(self, status: int, code: str = "", message: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}


@dataclass
class Fault:
    method: str
    part: str
    times: int
    refusal: Refusal | None = None  # None: read half of the body, then cut the connection, or hold it
    held: threading.Event | None = None  # set by the test to let go
    reached: threading.Event = field(default_factory=threading.Event)


class HubDouble:
    """The server and all it knows. ``repos`` by (type, id), ``objects`` by SHA-256, ``requests`` as (method, path)."""

    def __init__(self, *, part_bytes: int = 1 << 20, page_size: int = 1000) -> None:
        self.token = "hf_" + "double" * 6
        self.reader = "hf_" + "reader" * 6  # may read everything, write nothing
        self.part_bytes, self.page_size = part_bytes, page_size
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.forced_private: bool | None = None  # what an organisation makes of every new repository
        self.damaged: str | None = None  # a path whose content the next commit gets wrong
        self.lock = threading.RLock()

    def __enter__(self) -> HubDouble:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for fault in self.faults:
            if fault.held:
                fault.held.set()
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: object) -> dict[str, str]:
        """What a program needs to take this for the Hub, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": self.token, "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip

    def fail(self, method: str, part: str, status: int, *, times: int = 1, **headers: str) -> None:
        """Answer the next requests whose path has ``part`` in it with an error."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.append(Fault(method, part, times, Refusal(status, message="as the test wants it", headers=named)))

    def cut(self, method: str, part: str, *, times: int = 1) -> None:
        """Cut the connection in the middle of the next such requests."""
        self.faults.append(Fault(method, part, times))

    def stall(self, method: str, part: str) -> Fault:
        """Hold the next such request; ``reached`` is set when it came."""
        fault = Fault(method, part, 1, held=threading.Event())
        self.faults.append(fault)
        return fault

    def count(self, method: str, part: str) -> int:
        """How many requests of that method had ``part`` in their path."""
        return sum(made == method and part in path for made, path in self.requests)

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.times and fault.method == method and fault.part in path:
                    fault.times -= 1
                    return fault
        return None


_REPO = r"(?P<id>[\w.-]+/[\w.-]+)"
_ROUTES = [
    (method, re.compile(pattern + "$"), name)
    for method, pattern, name in (
        ("POST", "/api/repos/create", "create"),
        ("POST", "/api/validate-yaml", "validate"),
        ("GET", rf"/api/(?P<type>model|dataset)s/{_REPO}(/revision/(?P<rev>[^/]+))?", "info"),
        ("GET", rf"/api/(?P<type>model|dataset)s/{_REPO}/tree/(?P<rev>[^/]+)(/(?P<path>.+))?", "tree"),
        ("POST", rf"/api/(?P<type>model|dataset)s/{_REPO}/paths-info/(?P<rev>[^/]+)", "paths"),
        ("POST", rf"/api/(?P<type>model|dataset)s/{_REPO}/preupload/(?P<rev>[^/]+)", "preupload"),
        ("POST", rf"/api/(?P<type>model|dataset)s/{_REPO}/commit/(?P<rev>[^/]+)", "commit"),
        ("POST", rf"/((?P<type>dataset)s/)?{_REPO}\.git/info/lfs/objects/batch", "batch"),
        ("PUT", "/lfs/upload/(?P<oid>[0-9a-f]{64})", "put"),
        ("PUT", "/lfs/part/(?P<oid>[0-9a-f]{64})/(?P<part>[0-9]+)", "put_part"),
        ("POST", "/lfs/complete/(?P<oid>[0-9a-f]{64})", "complete"),
        ("POST", "/lfs/verify", "verify"),
        ("GET", rf"/((?P<type>dataset)s/)?{_REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    )
]


class _Handler(BaseHTTPRequestHandler):
    hub: HubDouble
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for an acknowledgement

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("HEAD")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, method: str) -> None:
        address = urllib.parse.urlsplit(self.path)
        path, self.query = urllib.parse.unquote(address.path), urllib.parse.parse_qs(address.query)
        fault = self.hub.take_fault(method, path)
        try:
            if fault and fault.refusal is None:
                self._misbehave(fault)
                return
            self.body = b"".join(self._read_body())
            if fault:
                raise fault.refusal  # type: ignore[misc]
            for allowed, pattern, name in _ROUTES:
                match = pattern.match(path)
                if match and method.replace("HEAD", "GET") == allowed:
                    with self.hub.lock:
                        getattr(self, f"_{name}")(**match.groupdict())
                    return
            raise Refusal(404, message=f"the double has no {method} {path}")
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message} | refusal.headers
            self._answer(json.dumps({"error": refusal.message}).encode(), refusal.status, headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _read_body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _misbehave(self, fault: Fault) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
        fault.reached.set()
        if fault.held:
            fault.held.wait()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: object, headers: dict[str, str] | None = None) -> None:
        self._answer(json.dumps(value).encode(), headers={"Content-Type": "application/json"} | (headers or {}))

    def _repo(self, kind: str | None, identity: str, *, write: bool = False) -> Repo:
        """The repository, if who asks may."""
        token = self._check_token()
        repo = self.hub.repos.get((kind or "model", identity))
        if repo is None or (repo.private and token is None):
            raise Refusal(401 if token is None else 404, "RepoNotFound", "Repository not found")
        if write:
            self._check_writer(token, identity)
        return repo

    def _check_token(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if token not in (None, self.hub.token, self.hub.reader):
            raise Refusal(401, message="Invalid credentials in Authorization header")
        return token

    def _check_writer(self, token: str | None, identity: str) -> None:
        if token is None:
            raise Refusal(401, message="Invalid username or password.")
        if token == self.hub.reader or not identity.startswith("user/"):
            raise Refusal(403, message="You don't have the rights to write under this namespace")

    def _create(self) -> None:
        asked = json.loads(self.body)
        identity, kind = f"{asked['organization']}/{asked['name']}", asked.get("type", "model")
        self._check_writer(self._check_token(), identity)
        if (kind, identity) in self.hub.repos:
            raise Refusal(409, message="You already created this repo")
        private = asked.get("visibility") == "private" if self.hub.forced_private is None else self.hub.forced_private
        repo = self.hub.repos[kind, identity] = Repo(private=private)
        repo.commit("initial commit", {".gitattributes": Blob(ATTRIBUTES)})
        prefix = "datasets/" if kind == "dataset" else ""
        self._json({"url": f"{self.hub.url}/{prefix}{identity}", "name": identity})

    def _validate(self) -> None:
        content = json.loads(self.body)["content"]
        found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        card = yaml.safe_load(found[1]) if found else {}
        licenses = card.get("license", [])
        for name in [licenses] if isinstance(licenses, str) else licenses:
            if not re.fullmatch(r"[a-z0-9.-]+", name):
                errors = {"errors": [{"message": f'"license" must be one of [apache-2.0, mit, ...], not {name}'}]}
                self._answer(json.dumps(errors).encode(), 400)
                return
        self._json({"errors": [], "warnings": []})

    def _info(self, type: str, id: str, rev: str | None) -> None:
        repo = self._repo(type, id)
        oid, files = repo.at(rev or "main")
        siblings = [{"rfilename": path} for path in files]
        self._json({"id": id, "sha": oid, "private": repo.private, "siblings": siblings, "gated": False})

    def _tree(self, type: str, id: str, rev: str, path: str | None) -> None:
        _, files = self._repo(type, id).at(rev)
        deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for name, blob in sorted(files.items()):
            inner = name.removeprefix(f"{path}/") if path else name
            if path and inner == name:
                continue
            parents = [name[: len(name) - len(inner) + i] for i, letter in enumerate(inner) if letter == "/"]
            for parent in parents if deep else parents[:1]:
                entries[parent] = {"type": "directory", "path": parent, "oid": git_oid(parent.encode()), "size": 0}
            if deep or not parents:
                entries[name] = blob.entry(name)
        if path and not entries:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist")
        start = int(self.query.get("cursor", ["0"])[0])
        page, end = list(entries.values())[start : start + self.hub.page_size], start + self.hub.page_size
        link = f"<{self.hub.url}{self.path.partition('?')[0]}?recursive={deep}&cursor={end}>; rel=\"next\""
        self._json(page, {"Link": link if end < len(entries) else ""})

    def _paths(self, type: str, id: str, rev: str) -> None:
        _, files = self._repo(type, id).at(rev)
        if self.headers.get("Content-Type") == "application/json":
            wanted = json.loads(self.body)["paths"]
        else:
            wanted = urllib.parse.parse_qs(self.body.decode())["paths"]
        found = []
        for path in [wanted] if isinstance(wanted, str) else wanted:
            if path in files:
                found.append(files[path].entry(path))
            elif any(name.startswith(f"{path}/") for name in files):
                found.append({"type": "directory", "path": path, "oid": git_oid(path.encode()), "size": 0})
        self._json(found)

    def _preupload(self, type: str, id: str, rev: str) -> None:
        _, files = self._repo(type, id, write=True).at(rev)
        answer = []
        for file in json.loads(self.body)["files"]:
            path, there = file["path"], files.get(file["path"])
            by_lfs = path.endswith(BY_LFS) or file["size"] > 10 << 20
            oid = there and (there.lfs_oid or there.oid)
            answer.append(
                {"path": path, "uploadMode": "lfs" if by_lfs else "regular", "shouldIgnore": False, "oid": oid}
            )
        self._json({"files": answer})

    def _batch(self, type: str | None, id: str) -> None:
        self._repo(type, id, write=True)
        answer = []
        for wanted in json.loads(self.body)["objects"]:
            oid, size, found = wanted["oid"], wanted["size"], {}
            if oid not in self.hub.objects:
                found["verify"] = {"href": f"{self.hub.url}/lfs/verify"}
                found["upload"] = {"href": f"{self.hub.url}/lfs/upload/{oid}?X-Signature=signed", "header": {}}
                if size > self.hub.part_bytes:
                    numbers = range(1, 1 + -(-size // self.hub.part_bytes))
                    parts = {str(n): f"{self.hub.url}/lfs/part/{oid}/{n}?X-Signature=signed" for n in numbers}
                    header = {"chunk_size": str(self.hub.part_bytes)} | parts
                    found["upload"] = {"href": f"{self.hub.url}/lfs/complete/{oid}", "header": header}
            answer.append({"oid": oid, "size": size} | ({"actions": found} if found else {}))
        self._json({"transfer": "basic", "objects": answer})

    def _keep(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, message="the content does not have that SHA-256")
        self.hub.objects[oid] = content

    def _put(self, oid: str) -> None:
        self._keep(oid, self.body)
        self._answer(b"")

    def _put_part(self, oid: str, part: str) -> None:
        self.hub.parts[oid, int(part)] = self.body
        self._answer(b"", headers={"ETag": f'"{git_oid(self.body)}"'})

    def _complete(self, oid: str) -> None:
        numbers = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        self._keep(oid, b"".join(self.hub.parts.pop((oid, number)) for number in numbers))
        self._json({})

    def _verify(self) -> None:
        wanted = json.loads(self.body)
        if len(self.hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refusal(404, message="no such object of that size")
        self._json({})

    def _commit(self, type: str, id: str, rev: str) -> None:
        repo = self._repo(type, id, write=True)
        head, files = repo.at(rev)
        files, header = dict(files), {}
        for line in self.body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "header":
                header = value
            elif row["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]))
            elif row["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refusal(400, message=f"LFS pointer pointed to a file that does not exist: {value['path']}")
                files[value["path"]] = Blob(self.hub.objects[value["oid"]], value["oid"])
            else:
                raise Refusal(400, message=f"the double has no {row['key']}")
        if self.hub.damaged in files:
            files[self.hub.damaged] = Blob(b"something else")
        if header.get("parentCommit", head) != head:
            raise Refusal(412, message="A commit has happened since. Please refresh and try again.")
        oid = repo.commit(header["summary"], files)
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{id}/commit/{oid}"})

    def _resolve(self, type: str | None, id: str, rev: str, path: str) -> None:
        oid, files = self._repo(type, id).at(rev)
        if path not in files:
            raise Refusal(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": oid})
        blob = files[path]
        content, status = blob.content, 200
        etag = f'"{blob.lfs_oid or blob.oid}"'
        headers = {"X-Repo-Commit": oid, "ETag": etag, "Accept-Ranges": "bytes"}
        if blob.lfs_oid:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._answer(content, status, headers)
