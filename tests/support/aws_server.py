"""A server that refuses as AWS does, which no server on one machine would: with bare HEAD answers.

It keeps objects in memory, and looks at the region and the session token that a request is signed
with; not at the signature.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_LIST = "<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated></ListBucketResult>"
_DIGEST = "x-amz-meta-igpt-sha256"


@dataclass
class AwsLike:
    """The server's state; tests change it while it runs."""

    token: str = "good"  # the session token that has not expired
    refusal: str = "ExpiredToken"  # what is said of any other
    region: str = "eu-central-1"
    endpoint: str = ""
    objects: dict[str, tuple[bytes, str]] = field(default_factory=dict)


@contextmanager
def aws_like_server() -> Iterator[AwsLike]:
    """The server, while it runs."""
    state = AwsLike()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path)
            if path.path == "/bucket" or not path.path.strip("/"):
                self._answer(200, _LIST.encode())
            elif path.path in state.objects:
                data, digest = state.objects[path.path]
                self._answer(200, data, {_DIGEST: digest, "ETag": '"1"'})
            else:
                self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if "aws-chunked" in self.headers.get("Content-Encoding", ""):  # one chunk, a trailer
                data = data.split(b"\r\n", 2)[1]
            state.objects[urlsplit(self.path).path] = (data, self.headers.get(_DIGEST, ""))
            self._answer(200, b"", {"ETag": '"1"'})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self._answer(400, b"")

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            code = self._refusal()
            if code:
                status, headers = 400, None
                body = f"<Error><Code>{code}</Code><Message>No</Message></Error>".encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            bare = self.command == "HEAD"
            self.send_header("Content-Length", "0" if bare and status != 200 else str(len(body)))
            self.end_headers()
            if not bare:
                self.wfile.write(body)

        def _refusal(self) -> str:
            if f"/{state.region}/" not in self.headers.get("Authorization", ""):
                return "AuthorizationHeaderMalformed"
            expired = self.headers.get("x-amz-security-token", "") != state.token
            return state.refusal if expired else ""

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
