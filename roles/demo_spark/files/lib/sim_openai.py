"""OpenAI's API as vLLM serves it: chat and plain completions, responses, streamed or not, models, health, metrics.

The answer repeats what was asked or calls a tool (sim_model.py), about 50 tokens a second; a token is a word.
"""

import contextlib
import json
import os
import select
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sim_model import Refused, Reply, chat_tools, checked_limit, count, cut, unique
from sim_responses import Response

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
    """Counters, whether it ever answers, whether it parses tool calls, and the responses it keeps: {id: Response}."""

    def __init__(self, server, name, max_len):
        self.server, self.name, self.max_len = server, name, max_len
        self.names = server.names
        self.mute = server.behaviour == "mute"
        flags = server.options.flags
        self.parses_tools = "enable-auto-tool-choice" in flags and bool(flags.get("tool-call-parser"))
        # vLLM takes no heed of `store` without this, and keeps for ever what it does keep.
        self.kept = {} if os.environ.get("VLLM_ENABLE_RESPONSES_API_STORE", "0") == "1" else None
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

    def pace(self):
        """One token more."""
        self.count(generated=1)
        time.sleep(1 / TOKENS_PER_SECOND)

    def model_of(self, request):
        """The model that a request asks for. Raises Refused."""
        model = request.get("model") or self.name
        if model not in self.names:
            raise Refused(f"The model `{model}` does not exist.", "model", 404, "NotFoundError")
        return model

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
        elif path in ANSWERS:
            self.answer(405, {"detail": "Method Not Allowed"})
        elif path.startswith("/v1/responses/"):
            self.tell_kept(path.removeprefix("/v1/responses/"), lambda response: None)
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self):
        path = self.path.partition("?")[0]
        try:
            body = self.read_body()
        except ValueError as error:
            return self.problem(400, str(error), "BadRequestError")
        if path.startswith("/v1/responses/") and path.endswith("/cancel"):
            return self.tell_kept(path.removeprefix("/v1/responses/").removesuffix("/cancel"), Response.cancel)
        if path not in ANSWERS:
            return self.answer(404, {"detail": "Not Found"})
        try:
            request = json.loads(body)
            if not isinstance(request, dict):
                raise ValueError("the body is not an object")
            answer = ANSWERS[path](request, self.engine)
        except Refused as refused:
            return self.refuse(refused)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return self.problem(400, f"{type(error).__name__}: {error}", "BadRequestError")
        if answer.background:
            queued = answer.state()
            threading.Thread(target=answer.run, args=(self.engine,), daemon=True).start()
            return self.answer(200, queued)
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
        for text in answer.stream(self.engine.pace):
            self.chunk(text)
        self.chunk("")
        self.engine.count(finished=1)

    def whole(self, answer):
        for _unused in answer.tokens:
            self.engine.pace()
            if self.hung_up():
                self.close_connection = True
                return
        self.answer(200, answer.whole())
        self.engine.count(finished=1)

    def tell_kept(self, name, act):
        """Answer with a response that is kept, once `act` was called with it."""
        try:
            response = (self.engine.kept or {}).get(name)
            if response is None:
                raise Response.absent(name)
            act(response)
        except Refused as refused:
            return self.refuse(refused)
        return self.answer(200, response.state())

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

    def refuse(self, refused):
        self.problem(refused.status, str(refused), refused.kind, refused.parameter)

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
        readable, _unused, _unused = select.select([self.connection], [], [], 0)
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
    """What a request of completions gets. Raises Refused, or what a body that makes no sense raises."""

    background = False
    prefix, kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def __init__(self, request, engine):
        self.id, self.created = self.prefix + unique(), int(time.time())
        self.include_usage = bool((request.get("stream_options") or {}).get("include_usage"))
        self.limit = checked_limit(request.get("max_completion_tokens") or request.get("max_tokens"))
        self.read(request, engine)

    def read(self, request, engine):
        """Set what is answered: tokens, reason, prompt_tokens, model."""
        prompt = str(request["prompt"])
        self.model = engine.model_of(request)
        self.prompt_tokens = count([{"content": prompt}])
        self.tokens, self.reason = cut(prompt, self.limit)

    @property
    def usage(self):
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.tokens),
            "total_tokens": self.prompt_tokens + len(self.tokens),
        }

    def head(self, kind):
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def choice(self, reason=None, **more):
        return {"index": 0, "logprobs": None, "finish_reason": reason, **more}

    def stream(self, pace):
        """The stream's text; `pace` is called once a token."""
        for choice in self.choices(pace):
            yield framed({**self.head(self.chunk_kind), "choices": [choice]})
        if self.include_usage:
            yield framed({**self.head(self.chunk_kind), "choices": [], "usage": self.usage})
        yield "data: [DONE]\n\n"

    def choices(self, pace):
        for token in self.tokens:
            pace()
            yield self.choice(text=token)
        yield self.choice(self.reason, text="")

    def whole(self):
        return {**self.head(self.kind), "choices": [self.whole_choice()], "usage": self.usage}

    def whole_choice(self):
        return self.choice(self.reason, text="".join(self.tokens))


class Chat(Answer):
    """What a chat gets: words, or the call of a tool."""

    prefix, kind, chunk_kind = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def read(self, request, engine):
        messages = request["messages"]
        if not messages:
            raise Refused("messages must not be empty", "messages")
        tools = chat_tools(request)
        self.model = engine.model_of(request)
        tools.check(engine.parses_tools)
        self.reply = Reply(messages, tools, self.limit)
        self.prompt_tokens, self.tokens, self.reason = count(messages), self.reply.tokens, self.reply.reason
        self.forced = tools.forced
        if self.reply.name and not isinstance(tools.choice, list):
            self.reason = "tool_calls"  # a call of the function that was named ends with "stop"

    def choices(self, pace):
        yield self.choice(delta={"role": "assistant", "content": ""})
        if name := self.reply.name:
            yield self.choice(delta={"tool_calls": [{"index": 0, **call(name)}]})
        for token in self.tokens:
            pace()
            called = [{"index": 0, "function": {"arguments": token}}]
            yield self.choice(delta={"tool_calls": called} if name else {"content": token})
        yield self.choice(self.reason, delta={})

    def whole_choice(self):
        message = {"role": "assistant", "content": self.reply.text, "tool_calls": []}
        if self.reply.name:
            # Where a call is the only answer, vLLM's content is an empty string instead of none.
            message["content"] = "" if self.forced else None
            message["tool_calls"] = [call(self.reply.name, arguments=self.reply.text)]
        return self.choice(self.reason, message=message)


def call(name, **more):
    return {"id": f"chatcmpl-tool-{unique()}", "type": "function", "function": {"name": name, **more}}


def framed(event):
    return f"data: {json.dumps(event, separators=COMPACT)}\n\n"


ANSWERS = {"/v1/chat/completions": Chat, "/v1/completions": Answer, "/v1/responses": Response}
