"""What the gateway adds to a direct call, beside LiteLLM's proxy in the same run.

First bytes, 128 streams, an upload's memory, hang-ups, the page beside a hung upstream, and wire.py beside http.client
and httpx. LiteLLM lives in a venv of its own (var/bench/litellm, made at the first run). Arguments name the parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.conftest import PROJECT
from tests.gateway import DONE, MODEL, Gateway, free_port
from tests.support import wait_for
from webui.gateway import wire

LITELLM = PROJECT / "var/bench/litellm"
RATE = 50  # tokens a second
TOKEN = {
    "id": "chatcmpl-0123456789abcdef",
    "object": "chat.completion.chunk",
    "created": 1_700_000_000,
    "model": MODEL,
    "choices": [{"index": 0, "delta": {"content": " word%06d"}, "logprobs": None, "finish_reason": None}],
}
EVENT = b"data: " + json.dumps(TOKEN, separators=(",", ":")).encode() + b"\n\n"
LISTED = {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "vllm"}]}
END = b"%x\r\n%b\r\n0\r\n\r\n" % (len(DONE), DONE)


# --- the upstream: a process of its own -------------------------------------------------------------------------------


class Upstream(asyncio.Protocol):
    """Streams `max_tokens` tokens at RATE (at once for a negative seed); tells /closed how long connections lived."""

    closed: ClassVar[dict] = {}  # a request's last message -> when its connection was lost, by the monotonic clock

    def connection_made(self, transport):
        self.transport, self.buffer, self.need, self.user = transport, b"", None, None
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, _error):
        if self.user:
            self.closed[self.user] = time.monotonic()
        self.transport = None

    def data_received(self, data):
        if self.need is None:
            self.buffer += data
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                return
            self.head = head.lower()
            length = self.head.partition(b"content-length:")[2].split(b"\r\n")[0]
            self.need, self.kept, data = int(length or 0), [], rest
        self.need -= len(data)
        if b" /upload" not in self.head:
            self.kept.append(data)
        if self.need <= 0:
            self.buffer, self.need = b"", None
            self.answer(self.head.split(b" ")[1].decode(), b"".join(self.kept))

    def json(self, body):
        data = json.dumps(body).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data)
        self.transport.write(head + data)

    def answer(self, path, body):
        if not path.endswith("/completions"):
            return self.json(LISTED if path.endswith("/models") else self.closed)
        asked = json.loads(body)
        self.user = asked["messages"][-1]["content"]
        if asked.get("max_tokens") == 1:  # hung
            return None
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.left, self.began, self.sent = asked["max_tokens"], asyncio.get_running_loop().time(), 0
        self.pace = 0 if asked.get("seed", 0) < 0 else 1 / RATE
        self.transport.write(head)
        self.token()
        return None

    def token(self):
        loop = asyncio.get_running_loop()
        while self.transport and self.sent < self.left:
            event = EVENT % self.sent  # no two alike: LiteLLM ends a stream that repeats itself
            self.transport.write(b"%x\r\n%b\r\n" % (len(event), event))
            self.sent += 1
            if self.pace:
                loop.call_at(self.began + self.sent * self.pace, self.token)
                return
            if self.sent % 50 == 0:
                loop.call_soon(self.token)
                return
        if self.transport:
            self.transport.write(END)


def serve(port):
    """The upstream's process."""

    async def run():
        server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=1024)
        await server.serve_forever()

    asyncio.run(run())


# --- the client -------------------------------------------------------------------------------------------------------


def body(tokens, user="Tell me a story.", **more):
    """A chat's JSON."""
    said = [{"role": "system", "content": "You are helpful. " * 20}, {"role": "user", "content": user}]
    return json.dumps({"messages": said, "model": MODEL, "stream": True, "max_tokens": tokens, **more}).encode()


def head(data, port):
    """A request's bytes."""
    lines = ["POST /v1/chat/completions HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/json"]
    lines += ["Authorization: Bearer sk-bench", f"Content-Length: {len(data)}", "", ""]
    return "\r\n".join(lines).encode() + data


async def stream(port, tokens, **more):
    """(seconds to the first token, seconds to the end, tokens)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    began, first, seen, tail = time.perf_counter(), None, 0, b""
    writer.write(head(body(tokens, **more), port))
    while data := await reader.read(65536):
        window = tail + data
        seen += window.count(b'" word') - tail.count(b'" word')
        if first is None and seen:
            first = time.perf_counter() - began
        tail = window[-64:]
        if b"[DONE]" in window:
            break
    ended = time.perf_counter() - began
    writer.close()
    return first if first is not None else float("inf"), ended, seen


async def many(port, streams, requests, tokens):
    """The streams' results, `streams` of them at a time."""
    left, results = iter(range(requests)), []

    async def worker():
        for _ in left:
            results.append(await stream(port, tokens))

    await asyncio.gather(*(worker() for _ in range(streams)))
    return results


def percentile(values, share):
    """The value at that share of the sorted values."""
    return sorted(values)[min(len(values) - 1, round(share * (len(values) - 1)))]


# --- the processes ----------------------------------------------------------------------------------------------------


def family(pid):
    """A process and all below it."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def cpu(pid):
    """CPU seconds of a process and all below it."""
    ticks, total = os.sysconf("SC_CLK_TCK"), 0
    for one in family(pid):
        with contextlib.suppress(OSError):
            row = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += int(row[11]) + int(row[12])
    return total / ticks


def memory(pid, field="Pss"):
    """MB of a process and all below it, shared pages counted once."""
    total = 0
    for one in family(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith(f"{field}:"):
                    total += int(line.split()[1])
    return total / 1024


class Peak:
    """The highest memory of a process and all below it, looked at every 20 ms."""

    def __init__(self, pid):
        self.pid, self.most, self.over = pid, memory(pid), threading.Event()
        self.before = self.most

    def __enter__(self):
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def look(self):
        while not self.over.wait(0.02):
            self.most = max(self.most, memory(self.pid))

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def litellm(folder, port):
    """LiteLLM's proxy in front of the upstream: (process, port), or None where it cannot be had."""
    program = LITELLM / "bin/litellm"
    if not program.exists():
        print("Installing LiteLLM's proxy into var/bench/litellm …", flush=True)
        made = subprocess.run([sys.executable, "-m", "venv", LITELLM], check=False).returncode == 0
        install = [LITELLM / "bin/pip", "install", "-qq", "--disable-pip-version-check", "litellm[proxy]"]
        if not made or subprocess.run(install, check=False).returncode:
            print("LiteLLM cannot be installed here, so its column stays empty.")
            return None
    own, config = free_port(), folder / "litellm.yaml"
    model = {"model": f"hosted_vllm/{MODEL}", "api_base": f"http://127.0.0.1:{port}/v1", "api_key": "x"}
    config.write_text(json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": model}]}))
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "PATH": f"{LITELLM}/bin:/usr/bin:/bin"}
    quiet["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # no keys: none is checked here either
    log = (folder / "litellm.log").open("wb")
    command = [program, "--config", config, "--port", str(own), "--host", "127.0.0.1", "--telemetry", "False"]
    process = subprocess.Popen(command, env={**quiet, "HOME": str(folder)}, stdout=log, stderr=log)

    def answers():
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{own}/health/liveliness", timeout=5).status == 200

    wait_for(answers, 300, "LiteLLM's start")
    return process, own


# --- the parts --------------------------------------------------------------------------------------------------------


def first_bytes(sides):
    """Added time to the first token, at 1 and 16 streams; the sides take turns."""
    print("\nAdded time to the first token, ms (the sides take turns; 1 stream: 300 requests, 16: 800)\n")
    print(f"  {'streams':8}{'':12}{'p50':>8}{'p99':>8}{'+p50':>8}{'+p99':>8}   bar: +3 / +15, a third of LiteLLM's")
    for streams, rounds, requests, tokens in ((1, 10, 30, 2), (16, 5, 160, 10)):
        times = {name: [] for name in sides}
        for turn in range(rounds + 1):
            for name, (_, port) in sides.items():
                found = asyncio.run(many(port, streams, requests, tokens))
                if turn:  # the first warms up
                    times[name] += [first * 1000 for first, _, _ in found]
        base = {share: percentile(times["direct"], share) for share in (0.5, 0.99)}
        added = {}
        for name, values in times.items():
            here = [percentile(values, share) for share in (0.5, 0.99)]
            added[name] = [here[0] - base[0.5], here[1] - base[0.99]]
            print(f"  {streams:<8}{name:12}" + "".join(f"{value:8.2f}" for value in here + added[name]))
        if "LiteLLM" in added:
            ratio = [ours / theirs for ours, theirs in zip(added["gateway"], added["LiteLLM"], strict=True)]
            print(f"  {'':8}gateway ÷ LiteLLM, added: p50 {ratio[0]:.2f}, p99 {ratio[1]:.2f}   bar: 0.33")


def load(sides, seconds=10):
    """128 streams of 50 tokens/s at once."""
    tokens = RATE * seconds
    print(f"\n128 streams of {RATE} tokens/s, {seconds} s\n")
    print(f"  {'':12}{'dropped':>9}{'slowest s':>11}{'÷ direct':>10}{'cores':>8}{'peak MB':>9}   bar: 0, 1.05, 1, 250")
    slowest = None
    for name, (pid, port) in sides.items():
        with Peak(pid) if pid else contextlib.nullcontext() as peak:
            before, began = cpu(pid) if pid else 0, time.perf_counter()
            found = asyncio.run(many(port, 128, 128, tokens))
            cores = (cpu(pid) - before) / (time.perf_counter() - began) if pid else 0
        worst = max(ended for _, ended, _ in found)
        slowest = slowest or worst
        dropped = sum(seen != tokens for _, _, seen in found)
        row = f"  {name:12}{dropped:9}{worst:11.2f}{worst / slowest:10.3f}"
        print(row + (f"{cores:8.2f}{peak.most:9.0f}" if pid else ""), flush=True)


def upload(gateway, port):
    """1 GB through the bare relay."""
    size, piece = 1 << 30, b"x" * (1 << 20)
    print("\nAn upload of 1 GB\n")
    for name, to, path in (("direct", port, "/upload"), ("gateway", gateway.port, "/relay/upload")):
        with Peak(gateway.process.pid) as peak, socket.create_connection(("127.0.0.1", to)) as sock:
            began = time.perf_counter()
            sock.sendall(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {size}\r\n\r\n".encode())
            for _ in range(size // len(piece)):
                sock.sendall(piece)
            assert b" 200 " in sock.recv(65536)[:20]
            took = time.perf_counter() - began
        grown = f"    memory +{peak.most - peak.before:.1f} MB (of {peak.most:.0f})   bar: 64 MB"
        print(f"  {name:12}{took:6.2f} s{grown if name == 'gateway' else ''}")


def hang_ups(sides, port):
    """100 clients that hang up: half of them before the first byte, half in the middle of a stream."""
    print("\nHang-up of the client to the upstream's connection closed, 100 clients one after the other\n")
    for name, (_, to) in sides.items():
        if name == "direct":
            continue
        when = {}
        for number in range(100):
            user = f"{name}-{number}"
            with socket.create_connection(("127.0.0.1", to)) as sock:
                sock.sendall(head(body(1 if number % 2 else 500, user=user), to))
                if number % 2:
                    time.sleep(0.05)
                else:
                    sock.recv(65536)
                    time.sleep(0.03)
                when[user] = time.monotonic()
        time.sleep(3)
        closed = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/closed", timeout=10))
        late = [closed[user] - at for user, at in when.items() if user in closed]
        good = sum(value <= 0.5 for value in late)
        worst = f"slowest {max(late) * 1000:.1f} ms" if late else ""
        print(f"  {name:12}{good} of 100 within 0.5 s, {len(late)} within 3 s, {worst}   bar: 100 of 100")


def page(gateway):
    """The dashboard while 50 clients wait for a hung upstream."""
    print("\nThe dashboard, 40 times, ms\n")

    def look():
        times = []
        for _ in range(41):
            began = time.perf_counter()
            urllib.request.urlopen(gateway.url, timeout=30).read()
            times.append((time.perf_counter() - began) * 1000)
        return times[1:]

    for name, count in (("alone", 0), ("50 clients wait", 50)):
        socks = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(count)]
        for sock in socks:
            sock.sendall(head(body(1), gateway.port))
        wait_for(lambda count=count: gateway.metric("in_flight", service="chat") == count, 20, "the waiting clients")
        times = look()
        print(f"  {name:18}median {statistics.median(times):6.1f}   slowest {max(times):6.1f}   bar: 100")
        for sock in socks:
            sock.close()


def clients(port):
    """CPU and first byte of what the relay speaks to a service with, beside http.client and httpx."""
    import http.client

    import httpx

    url, headers = f"http://127.0.0.1:{port}/v1/chat/completions", {"Content-Type": "application/json"}
    shared = httpx.Client(trust_env=False)

    def by_wire(data):
        upstream = wire.Upstream(SimpleNamespace(address="127.0.0.1", port=port, silence=10), None)
        with contextlib.closing(upstream):
            upstream.send(head(data, port))
            answer = wire.Reply(upstream, "POST")
            while piece := answer.read():
                yield piece

    def by_httpx(data):
        with shared.stream("POST", url, content=data, headers=headers) as answer:
            yield from answer.iter_raw()

    def by_http_client(data):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/v1/chat/completions", data, headers)
        answer = connection.getresponse()
        while piece := answer.read1(65536):
            yield piece
        connection.close()

    print("\nWhat the relay could speak to a service with\n")
    for name, client in (("wire.py", by_wire), ("http.client", by_http_client), ("httpx", by_httpx)):
        firsts = []
        for _ in range(200):
            began = time.perf_counter()
            next(pieces := client(body(2, seed=-1)))
            firsts.append((time.perf_counter() - began) * 1000)
            list(pieces)
        began, count = time.process_time(), sum(1 for _ in client(body(200, seed=0)))
        took = time.process_time() - began
        print(
            f"  {name:12}first byte p50 {statistics.median(firsts):5.2f} ms    {took / count * 1e6:5.0f} µs CPU a chunk"
        )


def main() -> None:
    """Print the tables."""
    wanted = set(sys.argv[1:])

    def asked(part):
        return not wanted or part in wanted

    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(port,), daemon=True)
    process.start()
    wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, 10, "the upstream")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gateway, peer = Gateway(folder / "gateway", port), None
        try:
            sides = {"direct": (None, port), "gateway": (gateway.process.pid, gateway.port)}
            if asked("first") or asked("load") or asked("hang"):
                peer = litellm(folder, port)
            if peer:
                sides["LiteLLM"] = (peer[0].pid, peer[1])
            print(f"load average before: {os.getloadavg()[0]:.2f}")
            if asked("first"):
                first_bytes(sides)
            if asked("load"):
                load(sides)
            if asked("upload"):
                upload(gateway, port)
            if asked("hang"):
                hang_ups(sides, port)
            if asked("page"):
                page(gateway)
            if asked("clients"):
                clients(port)
            print(f"\nload average after: {os.getloadavg()[0]:.2f}\n")
        finally:
            gateway.stop()
            if peer:
                peer[0].kill()  # asked to stop, it would wait for the hung answers that it never let go of
                peer[0].wait()
            process.terminate()


if __name__ == "__main__":
    main()
