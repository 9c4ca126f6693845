"""A server of this machine that is a web server, a model hub and an S3 store, with faults on demand."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = b"<!DOCTYPE html><html><body>Please log in.</body></html>"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Fault:
    """What happens to one request for a file instead of an answer, or to it."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """The connection is cut after so many bytes of the body."""
    ranges: bool = True
    """False: ranges are not heeded, as by a server that has none."""
    body: bytes | None = None
    """Another body than the file's, with status 200."""
    hook: Callable[[], None] | None = None
    """Called when half of the body is sent."""


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Repository:
    files: dict[str, bytes]
    lfs: set[str]
    commit: str = COMMIT
    token: str | None = None
    gated: bool = False
    dataset: bool = False


class Remote:
    """What is served, and what was asked for."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.files: dict[str, bytes] = {}
        """Plain files, by the URL's path."""
        self.repositories: dict[str, Repository] = {}
        self.buckets: dict[str, dict[str, bytes]] = {}
        self.keys: dict[str, str] = {}
        """The access key that a bucket wants."""
        self.tokens: dict[str, str] = {}
        """The bearer token that a path wants."""
        self.faults: dict[str, list[Fault]] = {}
        """What happens to the next requests for a path (GET only)."""
        self.always: dict[str, Fault] = {}
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def other_host(self) -> str:
        """The same server by a name that makes it another host."""
        return f"http://localhost:{self.port}"

    def gets(self, part: str = "") -> list[Request]:
        return [request for request in self.requests if request.method == "GET" and part in request.path]

    def ranges(self, part: str = "") -> list[str | None]:
        return [request.headers.get("range") for request in self.gets(part)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    remote: Remote

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        remote, parts = self.remote, urlsplit(self.path)
        path = unquote(parts.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        remote.requests.append(Request(self.command, self.path, headers))
        queue = remote.faults.get(path, [])
        fault = (queue.pop(0) if body and queue else None) or remote.always.get(path) or Fault()
        if fault.status is not None:
            return self._send(fault.status, fault.headers, fault.body or b"")
        if (token := remote.tokens.get(path)) and headers.get("authorization") != f"Bearer {token}":
            return self._send(401 if "authorization" not in headers else 403)
        if path in remote.files:
            return self._file(remote.files[path], fault, body=body)
        if path.startswith(("/api/models/", "/api/datasets/")):
            return self._listing(path)
        if found := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)", path):
            return self._resolve(found[1], found[2], found[3], fault, body=body)
        if path.startswith("/cdn/"):
            contents = (content for repo in remote.repositories.values() for content in repo.files.values())
            return self._file(next(c for c in contents if sha256(c) == path[5:]), fault, body=body)
        bucket, _, key = path[1:].partition("/")
        if bucket in remote.buckets:
            return self._s3(bucket, key, parse_qs(parts.query), fault, body=body)
        return self._send(404)

    def _file(self, content: bytes, fault: Fault, *, body: bool) -> None:
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = {"ETag": etag, **({"Accept-Ranges": "bytes"} if fault.ranges else {}), **fault.headers}
        if (match := self.headers.get("If-Match")) and match.strip('"') != etag.strip('"'):
            return self._send(412)
        if fault.body is not None:
            return self._send(200, headers, fault.body, send=body)
        if not wanted or not fault.ranges or self.headers.get("If-Range", etag) != etag:
            return self._send(200, headers, content, fault=fault, send=body)
        start = int(wanted[1])
        if start >= len(content):
            return self._send(416, {"Content-Range": f"bytes */{len(content)}"})
        end = min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return self._send(206, headers, content[start : end + 1], fault=fault, send=body)

    def _listing(self, path: str) -> None:
        found = re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)/revision/([0-9a-f]{40})", path)
        repo = self.remote.repositories.get(found[2]) if found else None
        repo = repo if repo is not None and repo.dataset == (found[1] == "dataset") else None
        if repo is None or not self._may_read(repo, listing=True):
            return self._send(401, {"X-Error-Code": "RepoNotFound"})
        if found[3] != repo.commit:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        siblings = []
        for name, content in repo.files.items():
            entry = {"rfilename": name, "size": len(content), "blobId": git_oid(content)}
            if name in repo.lfs:
                entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        answer = {"id": found[2], "modelId": found[2], "sha": repo.commit, "siblings": siblings}
        return self._send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _resolve(self, name: str, commit: str, file: str, fault: Fault, *, body: bool) -> None:
        repo = self.remote.repositories.get(name.removeprefix("datasets/"))
        if repo is None or repo.dataset != name.startswith("datasets/"):
            return self._send(401, {"X-Error-Code": "RepoNotFound"})
        if not self._may_read(repo, listing=False):
            status = 403 if "Authorization" in self.headers else 401
            return self._send(status, {"X-Error-Code": "GatedRepo" if repo.gated else "RepoNotFound"})
        if commit != repo.commit or file not in repo.files:
            return self._send(404, {"X-Error-Code": "EntryNotFound"})
        content = repo.files[file]
        if file in repo.lfs:  # large files lie with another host, as on the real hub
            return self._send(302, {"Location": f"{self.remote.other_host}/cdn/{sha256(content)}"})
        return self._file(content, fault, body=body)

    def _may_read(self, repo: Repository, *, listing: bool) -> bool:
        return repo.token is None or (listing and repo.gated) or self._bearer() == repo.token

    def _bearer(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _s3(self, bucket: str, key: str, query: dict[str, list[str]], fault: Fault, *, body: bool) -> None:
        wanted = self.remote.keys.get(bucket)
        if wanted is not None and f"Credential={wanted}/" not in self.headers.get("Authorization", ""):
            return self._send(403, {}, b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
        objects = self.remote.buckets[bucket]
        if "list-type" in query:
            prefix = query.get("prefix", [""])[0]
            items = "".join(
                f"<Contents><Key>{escape(name)}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>"
                f'<ETag>"{hashlib.md5(content).hexdigest()}"</ETag><Size>{len(content)}</Size></Contents>'
                for name, content in sorted(objects.items())
                if name.startswith(prefix)
            )
            text = f"<ListBucketResult><Name>{bucket}</Name><IsTruncated>false</IsTruncated>{items}</ListBucketResult>"
            return self._send(200, {"Content-Type": "application/xml"}, text.encode())
        if key not in objects:
            return self._send(404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
        headers = {"Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT"}
        return self._file(objects[key], Fault(**{**vars(fault), "headers": headers}), body=body)

    def _send(
        self,
        status: int,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
        *,
        fault: Fault | None = None,
        send: bool = True,
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD" or not send:
            return
        if fault is not None and fault.hook is not None:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            fault.hook()
            body = body[len(body) // 2 :]
        if fault is not None and fault.cut is not None and fault.cut < len(body):
            self.wfile.write(body[: fault.cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """Clients that go away are meant."""


@contextmanager
def serving() -> Iterator[Remote]:
    """Serve on a free port of the loopback address until the end of the block."""

    class Handler(_Handler):
        pass

    server = _Server(("127.0.0.1", 0), Handler)
    Handler.remote = Remote(server.server_address[1])
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield Handler.remote
    finally:
        server.shutdown()
        server.server_close()
