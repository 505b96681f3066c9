"""An HTTP relay before an object store: it counts requests, and can be made to answer 503, or not to answer."""

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Relay:
    """Hands requests on to ``host:port``; ``away`` makes it answer 503 instead."""

    def __init__(self, target: str) -> None:
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                with relay.lock:
                    relay.requests.append(f"{self.command} {self.path}")
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if relay.away:
                    self.answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
                    return
                connection = http.client.HTTPConnection(target, timeout=30)
                connection.request(self.command, self.path, body, dict(self.headers))
                response = connection.getresponse()
                kept = {
                    k: v for k, v in response.getheaders() if k.lower() in ("etag", "last-modified", "content-type")
                }
                content = response.read()
                length = response.getheader("Content-Length") if self.command == "HEAD" else None
                connection.close()
                self.answer(response.status, kept, content, length)

            def answer(self, status: int, headers: dict[str, str], content: bytes, length: str | None = None) -> None:
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", length or str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

        self.away = False
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def counted(self) -> list[str]:
        """The requests since this was last asked."""
        with self.lock:
            found, self.requests = self.requests, []
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
