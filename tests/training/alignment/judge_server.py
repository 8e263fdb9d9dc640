"""A server that speaks OpenAI's protocol and fails as it is told to, for tests of judges."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CUT, SILENT = "cut", "silent"


@dataclass
class Reply:
    """What the server sends: a completion with this content, unless a status or another body is told."""

    content: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    finish_reason: str = "stop"
    refusal: str | None = None
    usage: dict[str, int] | None = None
    logprobs: dict[str, float] | None = None
    """Of the first token."""
    failure: str | None = None
    """CUT: the connection breaks in the middle of the body. SILENT: nothing comes until the test is over."""

    def bytes(self) -> bytes:
        if self.body is not None:
            return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        message = {"role": "assistant", "content": self.content, "refusal": self.refusal}
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        if self.logprobs is not None:
            top = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in self.logprobs.items()]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        return json.dumps({**whole, "usage": self.usage} if self.usage else whole).encode()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answer: Callable[[dict[str, Any], int], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.is_over = threading.Event()
        self.lock = threading.Lock()
        self.num_open = self.most_open = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.keys.append(self.headers["Authorization"])
            number = len(self.server.requests)
            self.server.num_open += 1
            self.server.most_open = max(self.server.most_open, self.server.num_open)
        try:
            self.reply(self.server.answer(body, number))
        finally:
            with self.server.lock:
                self.server.num_open -= 1

    def reply(self, reply: Reply) -> None:
        if reply.failure == SILENT:
            self.server.is_over.wait(30)
            return
        body = reply.bytes()
        self.send_response(reply.status)
        for name, value in {"Content-Type": "application/json", **reply.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if reply.failure == CUT:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def judge_server(answer: Callable[[dict[str, Any], int], Reply]) -> Iterator[Server]:
    """A server that answers each request, and its number from 1 on, by a function."""
    server = Server(answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.is_over.set()
        server.shutdown()
        server.server_close()
        thread.join()
