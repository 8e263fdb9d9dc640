"""A little server that speaks OpenAI's protocol, for tests: each model name stands for one way to answer."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWERS = {"brief": ["Seven ", "minutes."], "kind": ["Take ", "your time: ", "seven minutes."], "silent": []}
REFUSES = {"broken": 500, "busy": 429}


class Handler(BaseHTTPRequestHandler):
    requests: "list[dict[str, Any]]"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append({**body, "authorization": self.headers["Authorization"]})  # type: ignore[attr-defined]
        if body["model"] in REFUSES:
            self.send_response(REFUSES[body["model"]])
            self.end_headers()
            self.wfile.write(self.headers["Authorization"].encode())  # a server that repeats the key
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for piece in ANSWERS[body["model"]]:
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
            choice = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
            self.wfile.write(f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def openai_server() -> "Iterator[tuple[str, list[dict[str, Any]]]]":
    """Its address, and the requests that it gets."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", server.requests  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
