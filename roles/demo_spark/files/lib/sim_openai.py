"""OpenAI's API as vLLM serves it: chat and plain completions, streamed or not, models, health, metrics.

The answer repeats what was asked, about 50 tokens a second; a token is a word.
"""

import contextlib
import json
import os
import select
import socket
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKENS_PER_SECOND = 50
MAX_BODY = 64 << 20
COMPACT = (",", ":")


def serve(server, listener, max_len):
    """Answer on the bound socket until the process ends. `server` is sim_vllm.Server."""
    name = server.names[0]
    for line in (
        "Supported tasks: ['generate']",
        f"Starting vLLM API server 0 on http://{server.options.text('host') or '0.0.0.0'}:{server.port}",
    ):
        server.info("api_server.py:977", line)
    listener.listen(128)
    http = HTTP((server.address, server.port), Handler, bind_and_activate=False)
    http.socket.close()
    http.socket = listener
    http.engine = Engine(server, name, max_len)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 60}, daemon=True).start()
    server.raw(f"INFO:     Started server process [{os.getpid()}]\n", core=False)
    server.raw("INFO:     Waiting for application startup.\n", core=False)
    server.raw("INFO:     Application startup complete.\n", core=False)
    http.engine.keep_books()


class HTTP(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that hung up is no error."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class Engine:
    """Counters, and whether it ever answers."""

    def __init__(self, server, name, max_len):
        self.server, self.name, self.max_len = server, name, max_len
        self.names = server.names
        self.mute = server.behaviour == "mute"
        self.created = int(time.time())
        self.lock = threading.Lock()
        self.running = self.prompt_tokens = self.generation_tokens = self.finished = 0
        self.changed = threading.Event()

    def count(self, running=0, prompt=0, generated=0, finished=0):
        with self.lock:
            self.running += running
            self.prompt_tokens += prompt
            self.generation_tokens += generated
            self.finished += finished
        if running:
            self.changed.set()

    def keep_books(self):
        """Tell the GPU's load as requests come and go, and log throughput as vLLM does while it works."""
        busy, last, last_tokens = False, time.monotonic(), 0
        while True:
            self.changed.wait(10 if self.running else None)
            self.changed.clear()
            if busy != bool(self.running):
                busy = bool(self.running)
                self.server.hold(self.server.held, 96 if busy else 0)
            if (passed := time.monotonic() - last) >= 10:
                rate = (self.generation_tokens - last_tokens) / passed
                last, last_tokens = time.monotonic(), self.generation_tokens
                self.server.info(
                    "loggers.py:259",
                    f"Engine 000: Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: {rate:.1f} tokens/s, "
                    f"Running: {self.running} reqs, Waiting: 0 reqs, "
                    f"GPU KV cache usage: {self.usage():.1%}, Prefix cache hit rate: 0.0%",
                    core=False,
                )

    def usage(self):
        return min(self.running * 0.012, 1)

    def metrics(self):
        label = f'engine="0",model_name="{self.name}"'
        rows = (
            ("num_requests_running", "gauge", "Number of requests in model execution batches.", self.running),
            ("num_requests_waiting", "gauge", "Number of requests waiting to be processed.", 0),
            ("kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", self.usage()),
            ("prompt_tokens_total", "counter", "Number of prefill tokens processed.", self.prompt_tokens),
            ("generation_tokens_total", "counter", "Number of generation tokens processed.", self.generation_tokens),
            ("request_success_total", "counter", "Count of successfully processed requests.", self.finished),
        )
        lines = []
        for name, kind, text, value in rows:
            lines += [
                f"# HELP vllm:{name} {text}",
                f"# TYPE vllm:{name} {kind}",
                f"vllm:{name}{{{label}}} {float(value)}",
            ]
        return "\n".join(lines) + "\n"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_version, sys_version = "uvicorn", ""

    @property
    def engine(self):
        return self.server.engine

    def do_GET(self):
        engine, path = self.engine, self.path.partition("?")[0]
        if path in ("/health", "/ping"):
            self.answer(200, b"")
        elif path == "/version":
            self.answer(200, {"version": "0.19.1rc1.dev86+gb6553be1b"})
        elif path == "/v1/models":
            cards = [
                {
                    "id": name,
                    "object": "model",
                    "created": engine.created,
                    "owned_by": "vllm",
                    "root": engine.server.options.model,
                    "parent": None,
                    "max_model_len": engine.max_len,
                    "permission": [],
                }
                for name in engine.names
            ]
            self.answer(200, {"object": "list", "data": cards})
        elif path == "/metrics":
            self.answer(200, engine.metrics().encode(), "text/plain; version=0.0.4; charset=utf-8")
        elif path in ("/v1/chat/completions", "/v1/completions"):
            self.answer(405, {"detail": "Method Not Allowed"})
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self):
        path = self.path.partition("?")[0]
        try:
            body = self.read_body()
        except ValueError as error:
            return self.problem(400, str(error), "BadRequestError")
        if path not in ("/v1/chat/completions", "/v1/completions"):
            return self.answer(404, {"detail": "Not Found"})
        try:
            request = json.loads(body)
            if not isinstance(request, dict):
                raise ValueError("the body is not an object")
            answer = Answer(request, chat=path.endswith("chat/completions"))
        except (ValueError, KeyError, TypeError) as error:
            return self.problem(400, f"{type(error).__name__}: {error}", "BadRequestError")
        model = request.get("model") or self.engine.name
        if model not in self.engine.names:
            return self.problem(404, f"The model `{model}` does not exist.", "NotFoundError", "model")
        answer.model = model
        self.engine.count(running=1, prompt=answer.prompt_tokens)
        try:
            if self.engine.mute:
                self.wait_for_hang_up()
            elif request.get("stream"):
                self.stream(answer)
            else:
                self.whole(answer)
        finally:
            self.engine.count(running=-1)
        return None

    # --- answers --------------------------------------------------------------------------------------------------

    def stream(self, answer):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in answer.events(self.pace):
            self.chunk(f"data: {json.dumps(event, separators=COMPACT)}\n\n")
        self.chunk("data: [DONE]\n\n")
        self.chunk("")
        self.engine.count(finished=1)

    def whole(self, answer):
        for _ in answer.tokens:
            self.pace()
            if self.hung_up():
                self.close_connection = True
                return
        self.answer(200, answer.whole())
        self.engine.count(finished=1)

    def pace(self):
        self.engine.count(generated=1)
        time.sleep(1 / TOKENS_PER_SECOND)

    def chunk(self, text):
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def answer(self, status, body, kind="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body, separators=COMPACT).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def problem(self, status, message, kind, parameter=None):
        self.answer(status, {"error": {"message": message, "type": kind, "param": parameter, "code": status}})

    # --- the connection -------------------------------------------------------------------------------------------

    def read_body(self):
        """The request's body. Raises ValueError."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(32).split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline(8)
            self.rfile.readline(8)
            return b"".join(parts)
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 <= length <= MAX_BODY:
            raise ValueError("request body too large")
        return self.rfile.read(length)

    def hung_up(self):
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def wait_for_hang_up(self):
        self.close_connection = True
        with contextlib.suppress(OSError):
            while select.select([self.connection], [], [], 60) and not self.hung_up():
                time.sleep(0.1)

    def log_message(self, form, *arguments):
        pass

    def log_request(self, code="-", size="-"):
        reasons = self.responses.get(int(code), ("",))[0] if str(code).isdigit() else ""
        client = ":".join(map(str, self.client_address[:2]))
        line = f'INFO:     {client} - "{self.requestline}" {int(code)} {reasons}\n'
        self.engine.server.raw(line, core=False)


class Answer:
    """What a request gets. Raises ValueError, KeyError or TypeError for a request that makes no sense."""

    def __init__(self, request, chat):
        self.chat = chat
        self.model = None
        self.id = ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex
        self.created = int(time.time())
        self.include_usage = bool((request.get("stream_options") or {}).get("include_usage"))
        prompt = last_words(request["messages"]) if chat else str(request["prompt"])
        self.prompt_tokens = max(len(prompt.split()), 1) + 8
        limit = request.get("max_completion_tokens") or request.get("max_tokens")
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValueError(f"max_tokens must be at least 1, got {limit}.")
        text = (
            f"You said: {prompt.strip() or 'nothing'} I am a simulated model, so that is all I know."
            if chat
            else f" {prompt}"
        )
        words = text.split()
        self.tokens = [word if number == 0 else f" {word}" for number, word in enumerate(words)][:limit]
        self.reason = "length" if limit is not None and limit < len(words) else "stop"

    @property
    def usage(self):
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.tokens),
            "total_tokens": self.prompt_tokens + len(self.tokens),
        }

    def head(self, kind):
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def events(self, pace):
        """The stream's JSON objects; `pace` is called once a token."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"

        def event(text=None, reason=None, **delta):
            choice = {"index": 0, "logprobs": None, "finish_reason": reason}
            if self.chat:
                choice["delta"] = delta or ({"content": text} if text is not None else {})
            else:
                choice["text"] = text or ""
            return {**self.head(kind), "choices": [choice]}

        if self.chat:
            yield event(role="assistant", content="")
        for token in self.tokens:
            pace()
            yield event(token)
        yield event(reason=self.reason)
        if self.include_usage:
            yield {**self.head(kind), "choices": [], "usage": self.usage}

    def whole(self):
        text = "".join(self.tokens)
        choice = {"index": 0, "logprobs": None, "finish_reason": self.reason}
        if self.chat:
            choice["message"] = {"role": "assistant", "content": text, "tool_calls": []}
        else:
            choice["text"] = text
        return {
            **self.head("chat.completion" if self.chat else "text_completion"),
            "choices": [choice],
            "usage": self.usage,
        }


def last_words(messages):
    """The text of the last message. Content may be a string or OpenAI's list of parts."""
    if not messages:
        raise ValueError("messages must not be empty")
    content = messages[-1]["content"]
    if isinstance(content, list):
        return " ".join(part.get("text", f"[{part.get('type', 'part')}]") for part in content)
    return str(content or "")
