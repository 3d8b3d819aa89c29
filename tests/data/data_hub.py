"""A stand-in for the Hugging Face hub on this machine: the few requests that a download of a dataset makes."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" + "0" * 34
REPOSITORY = "someone/golf"


@dataclass
class Hub:
    """What the stand-in serves and what it was asked for.

    Attributes:
        files: content by path in the repository.
        requests: method, path and Range header of every request.
        cut: path whose next download ends in the middle of the file.
        forge: path that is served with its first byte changed.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    endpoint: str = ""
    cut: str | None = None
    forge: str | None = None

    def downloads(self) -> list[str]:
        """Names of the files that were downloaded."""
        return [path.rsplit("/", 1)[1] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            hub.requests.append((self.command, self.path, self.headers.get("Range")))
            api = re.fullmatch(r"/api/datasets/(.+?)/revision/([^?]+)(\?.*)?", self.path)
            file = re.fullmatch(rf"/datasets/{REPOSITORY}/resolve/{COMMIT}/(.+)", self.path)
            if api and api[1] != REPOSITORY:
                self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif api and api[2] not in ("main", COMMIT):
                self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif api:
                self.reply(200, json.dumps(self.description()).encode(), {"Content-Type": "application/json"})
            elif file and file[1] in hub.files:
                self.send_content(file[1])
            else:
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

        def description(self) -> dict:
            siblings = [
                {
                    "rfilename": path,
                    "size": len(content),
                    "blobId": hashlib.sha1(content).hexdigest(),
                    "lfs": {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 130},
                }
                for path, content in hub.files.items()
            ]
            return {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}

        def send_content(self, path: str) -> None:
            content = hub.files[path]
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
            headers = {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if path == hub.forge:
                content = bytes([content[0] ^ 1]) + content[1:]
            self.reply(206 if start else 200, content[start:], headers, cut=path == hub.cut)

        def reply(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if cut else body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
