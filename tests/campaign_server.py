"""A server of files on loopback that meets requests with a mood: it lies, never ends, or sends elsewhere."""

import functools
import gzip
import http.server
import threading
from pathlib import Path
from typing import Any, ClassVar

MOODS = (
    *("good", "error", "drop", "cut", "longer", "enormous", "endless", "redirect", "circle", "page", "compressed"),
    *("bomb", "headers", "empty", "forbidden", "file"),
)
_ENOUGH = 1 << 33


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Answers for one `MoodyServer`."""

    protocol_version = "HTTP/1.1"
    server: "_Web"

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def translate_path(self, path: str) -> str:
        """The file: of S3 below the name of the bucket."""
        return super().translate_path(path.removeprefix("/bucket"))

    def do_HEAD(self) -> None:
        """The head of what GET would send."""
        self._answer(head=True)

    def do_GET(self) -> None:
        """The file, or the mood."""
        self._answer(head=False)

    def _answer(self, *, head: bool) -> None:
        owner = self.server.owner
        path = Path(self.translate_path(self.path.partition("?")[0]))
        if not path.is_file():
            self._send(404, b"", 0)
            return
        moody = owner.mood != "good" and owner.meets(self.path)
        data = path.read_bytes()
        if not moody:
            self._send(200, b"" if head else data, len(data))
            return
        owner.met = True
        self.close_connection = True
        getattr(self, f"_{owner.mood}")(b"" if head else data, len(data))

    def _send(self, code: int, data: bytes, length: int | None, **headers: str) -> None:
        self.send_response(code)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def _error(self, data: bytes, length: int) -> None:
        self._send(503, b"", 0)

    def _forbidden(self, data: bytes, length: int) -> None:
        self._send(403, b"", 0)

    def _drop(self, data: bytes, length: int) -> None:
        self.connection.close()

    def _cut(self, data: bytes, length: int) -> None:
        self._send(200, data[: len(data) // 2], length)

    def _empty(self, data: bytes, length: int) -> None:
        self._send(200, b"", 0)

    def _longer(self, data: bytes, length: int) -> None:
        self._send(200, data + bytes(1000), length + 1000)

    def _enormous(self, data: bytes, length: int) -> None:
        self._send(200, data, 10**15)

    def _endless(self, data: bytes, length: int) -> None:
        self._send(200, data, None)
        sent = 0
        while data and sent < _ENOUGH:
            sent += self.wfile.write(bytes(1 << 16))

    def _redirect(self, data: bytes, length: int) -> None:
        self._send(302, b"", 0, Location=f"http://127.0.0.1:{self.server.owner.other.server_port}{self.path}")

    def _file(self, data: bytes, length: int) -> None:
        self._send(302, b"", 0, Location="file:///etc/passwd")

    def _circle(self, data: bytes, length: int) -> None:
        self._send(302, b"", 0, Location=self.path)

    def _page(self, data: bytes, length: int) -> None:
        page = b"<html>please log in</html>" if data else b""
        self._send(200, page, 26)

    def _compressed(self, data: bytes, length: int) -> None:
        packed = gzip.compress(data)
        self._send(200, packed if data else b"", len(packed), Content_Encoding="gzip")

    def _bomb(self, data: bytes, length: int) -> None:
        self._send(200, b"", None, Content_Encoding="gzip")
        piece, sent = gzip.compress(bytes(1 << 24)), 0
        while data and sent < _ENOUGH >> 10:
            sent += self.wfile.write(piece)

    def _headers(self, data: bytes, length: int) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(1 << 20):
            self.wfile.write(b"X-%d: %s\r\n" % (number, b"x" * 4000))


class _Elsewhere(http.server.BaseHTTPRequestHandler):
    """Another address: notes what it is asked for."""

    asked: ClassVar[list[str]] = []

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Note it."""
        self.asked.append(self.path)
        self.send_error(404)

    do_HEAD = do_GET


class _Web(http.server.ThreadingHTTPServer):
    """A server whose clients may hang up."""

    daemon_threads = True
    owner: "MoodyServer"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is the trial."""


class MoodyServer:
    """Serves a folder on a port of 127.0.0.1 for the length of a block.

    Attributes:
        port: of the server. met: whether the mood has met a request. elsewhere: what a second server was asked for.
    """

    def __init__(self, folder: Path, mood: str, *, always: bool, late: bool) -> None:
        """Set the mood: at every request or only the first ones for an object; `late`: not for the heads of things."""
        self.mood, self.always, self._late = mood, always, late
        self.met = False
        self.elsewhere = _Elsewhere.asked = []
        self._asked: dict[str, int] = {}
        self._web = _Web(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        self._web.owner = self
        self.other = _Web(("127.0.0.1", 0), _Elsewhere)
        self.port = self._web.server_port

    def meets(self, path: str) -> bool:
        """Whether the mood meets this request."""
        if self._late and path.partition("?")[0].endswith((".json", ".index")):
            return False
        times = self._asked[path] = self._asked.get(path, 0) + 1
        return self.always or times == 1

    def __enter__(self) -> "MoodyServer":
        """Serve."""
        for web in (self._web, self.other):
            threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop serving."""
        for web in (self._web, self.other):
            web.shutdown()
            web.server_close()
