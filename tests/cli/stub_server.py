"""A server of OpenAI's API that says what a test wants, on the standard library."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StubServer:
    """Answers a prompt with its words in upper case, unless `plan` has something for it.

    plan: {"text of the prompt": [status, status, ...]}, one entry a request; 200 is an answer, "cut" one that breaks
    off, "hold" one that waits for `go_on` after its first word.
    """

    def __init__(self):
        self.requests = []
        self.headers = []
        self.plan = {}
        self.go_on = threading.Event()
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.go_on.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def prompts(self):
        """What was asked, in the order of its coming."""
        return [body["prompt"] if "prompt" in body else body["messages"][-1]["content"] for _, body in self.requests]

    def _handler(server):  # noqa: N805  # `self` is the request below
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_GET(self):
                server.headers.append(self.headers)
                self._json(200, {"data": [{"id": "demo"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.headers.append(self.headers)
                    server.requests.append((self.path, body))
                    server._at_once += 1
                    server.most_at_once = max(server.most_at_once, server._at_once)
                    prompt = server.prompts[-1]
                    plan = server.plan.get(prompt, [])
                    todo = plan.pop(0) if plan else 200
                try:
                    with contextlib.suppress(OSError):
                        self._answer(prompt, todo)
                finally:
                    with server._lock:
                        server._at_once -= 1

            def _answer(self, prompt, todo):
                if isinstance(todo, int) and todo != 200:
                    self._json(todo, {"error": {"message": f"no to {prompt!r}"}}, {"Retry-After": "0"})
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                for number, word in enumerate(prompt.upper().split()):
                    if number == 1 and todo == "hold":
                        server.go_on.wait(timeout=20)
                    if number == 1 and todo == "cut":
                        return
                    said = (
                        {"delta": {"content": word + " "}}
                        if self.path.endswith("chat/completions")
                        else {"text": word + " "}
                    )
                    self.wfile.write(f"data: {json.dumps({'choices': [said]}, ensure_ascii=False)}\n\n".encode())
                    self.wfile.flush()
                self.wfile.write(b"data: [DONE]\n\n")

            def _json(self, status, body, headers=()):
                content = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        return Handler
