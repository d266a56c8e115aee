"""What a vLLM on this Spark is doing: its record, its HTTP answers, and how far its log says it has loaded."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import time

from .spark_write import write_json

RECORD = "serving.json"


def read_record(state_dir: str) -> dict | None:
    """What was last launched from here (see write_record), or None."""
    try:
        with open(os.path.join(os.path.expanduser(state_dir), RECORD), encoding="utf-8") as text:
            record = json.load(text)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("plan"), dict) else None


def write_record(state_dir: str, record: dict) -> None:
    """Keep {plan, job, launched, since, launcher}: the whole plan, so that a rollback needs no recipe.

    Times are epoch seconds; `since` is None until the model answered. `launcher` is {pid, started} of one that stays
    for as long as the model runs (see end_launcher), else absent.
    """
    write_json(os.path.join(os.path.expanduser(state_dir), RECORD), record)


def drop_record(state_dir: str) -> None:
    """Forget what was launched."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(os.path.expanduser(state_dir), RECORD))


def save_text(path: str, text: str | bytes, mode: int = 0o600) -> None:
    """Write a file of its owner's own, making its folder."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    data = text.encode() if isinstance(text, str) else text
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)


def started(pid: int) -> int | None:
    """When a process started, in the kernel's ticks since boot; None where there is none."""
    try:
        with open(f"/proc/{int(pid)}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError, TypeError):
        return None


def launcher_lives(record: dict | None) -> bool:
    """Whether a launcher that stays in front of its model still does."""
    launcher = (record or {}).get("launcher")
    if not isinstance(launcher, dict) or launcher.get("started") is None:
        return False
    return started(launcher.get("pid")) == launcher["started"]


def end_launcher(state_dir: str) -> None:
    """Kill a launcher that stayed in front of its model.

    Left alone it would stop whatever carries the container's name, on every node, once its model is gone: by then
    that is the next model. Its own traps do the same on TERM, so it gets no warning.
    """
    record = read_record(state_dir)
    if launcher_lives(record):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(record["launcher"]["pid"], signal.SIGKILL)


def launch_log(state_dir: str, model: str) -> str:
    """Where the launcher's output for that model goes on the head."""
    return os.path.join(os.path.expanduser(state_dir), "launch", f"{os.path.basename(model)}.log")


def read_end(path: str, size: int = 65536) -> bytes:
    """The file's last `size` bytes, or nothing where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - size))
            return file.read()
    except OSError:
        return b""


class Vllm:
    """One vLLM server's HTTP, by IP address: nothing here resolves a name or follows a redirect."""

    def __init__(self, address: str, port: int, timeout: float = 2.0):
        self.address, self.port, self.timeout = address, port, timeout

    def models(self) -> list[str] | None:
        """The names it serves, or None where it does not answer."""
        body = self._get("/v1/models")
        try:
            return [str(model["id"]) for model in json.loads(body or "")["data"]]
        except (ValueError, KeyError, TypeError):
            return None

    def in_flight(self) -> int | None:
        """Requests running and waiting, from its Prometheus page; None where it does not tell."""
        page = self._get("/metrics")
        counts = re.findall(r"^vllm:num_requests_(?:running|waiting)(?:\{[^}]*\})? ([0-9.e+]+)$", page or "", re.M)
        return round(sum(map(float, counts))) if counts else None

    def first_token(self, model: str) -> tuple[bool, str]:
        """Whether MODEL streams one real token, and what it said instead; asks chat first, then completions."""
        chat = {
            "model": model,
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 4,
            "stream": True,
        }
        streamed, said = self._stream("/v1/chat/completions", chat)
        if streamed or not said.startswith("HTTP 4"):
            return streamed, said
        # A base model has no chat template, and says so with a 400.
        plain = {"model": model, "prompt": "Hi", "max_tokens": 4, "stream": True}
        return self._stream("/v1/completions", plain)

    def _get(self, path: str) -> str | None:
        connection = http.client.HTTPConnection(self.address, self.port, timeout=self.timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read(4_000_000).decode(errors="replace")
            return body if answer.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _stream(self, path: str, body: dict) -> tuple[bool, str]:
        connection = http.client.HTTPConnection(self.address, self.port, timeout=self.timeout)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                return False, f"HTTP {answer.status}: {answer.read(400).decode(errors='replace')}"
            for line in iter(answer.readline, b""):
                if line.startswith(b"data:") and _has_token(line[5:].strip()):
                    return True, ""
            return False, "its stream ended without a token"
        except (OSError, http.client.HTTPException) as error:
            return False, f"{type(error).__name__}: {error}"
        finally:
            connection.close()


def _has_token(data: bytes) -> bool:
    """Whether one server-sent event carries generated text: chat, reasoning, tool call or completion."""
    try:
        choices = json.loads(data).get("choices") or []
    except (ValueError, AttributeError):
        return False
    for choice in choices:
        delta = choice.get("delta") or {}
        if choice.get("text") or any(
            delta.get(key) for key in ("content", "reasoning_content", "reasoning", "tool_calls")
        ):
            return True
    return False


# vLLM's own log lines, in the order in which they come; the percents are where each phase starts and ends, from
# how long the phases take on a Spark (weights are most of it). (pattern, phase, from %, to %).
_PHASES = [
    (r"API server version|vLLM API server|Resolved architecture", "starting", 2, 5),
    (r"Starting to load model|Loading model from scratch", "loading weights", 5, 5),
    (r"Loading (?:safetensors|pt|\w+ )?\s*checkpoint shards:\s+(\d+)%", "loading weights", 5, 70),
    (r"Loading weights took|Model loading took", "loading weights", 70, 70),
    (r"torch\.compile|Dynamo bytecode transform|Compiling a graph", "compiling", 72, 80),
    (r"KV cache memory|GPU KV cache size", "making the cache", 82, 84),
    (r"Capturing CUDA graphs?[^:]*:\s+(\d+)%", "capturing graphs", 84, 95),
    (r"Graph capturing finished|init engine .*took", "capturing graphs", 95, 95),
    (r"Starting vLLM API server|Started server process", "opening the address", 97, 97),
    (r"Application startup complete", "answering", 99, 99),
]
_PHASES = [(re.compile(pattern), phase, start, end) for pattern, phase, start, end in _PHASES]


def progress(log: str) -> tuple[str, int]:
    """How far a loading vLLM is by its log: (phase, percent), never further back than its furthest line.

    A progress bar overwrites its own line with carriage returns; each state of it counts as a line.
    """
    best = ("starting", 1)
    for line in re.split(r"[\r\n]+", log):
        for pattern, phase, start, end in _PHASES:
            found = pattern.search(line)
            if not found:
                continue
            share = int(found[1]) / 100 if found.groups() else 0.0
            percent = round(start + (end - start) * share)
            if percent >= best[1]:
                best = (phase, percent)
    return best


def last_lines(log: bytes | str, count: int = 30) -> list[str]:
    """The last lines of a log for a person: no control characters, no access-log noise, no half progress bars."""
    text = log.decode(errors="replace") if isinstance(log, bytes) else log
    lines = [line.rsplit("\r", 1)[-1] for line in text.split("\n")]
    clean = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]|[^\t\x20-\x7e\x80-\U0010ffff]", "", line).rstrip() for line in lines]
    return [line[:500] for line in clean if line and not re.search(r'"(GET|POST) /\S* HTTP/1\.\d" 200', line)][-count:]


_TROUBLE = re.compile(r"\b(error|failed|denied|refused|no such|cannot|could not|unable|not found|invalid)\b", re.I)


def last_words(log: bytes | str) -> str:
    """What a program said at its end, for a sentence: its last two complaints, else its last line."""
    lines = [" ".join(line.split()) for line in last_lines(log)]
    complaints = [number for number, line in enumerate(lines) if _TROUBLE.search(line)]
    if not complaints:
        return lines[-1].rstrip(".") if lines else "it did not say why"
    chosen = [lines[number] for number in complaints[-2:]]
    return "; ".join(dict.fromkeys(line.rstrip(".") for line in chosen))[:600]


# What gloo and NCCL say on the head when another node's part is gone. The head falls too, maybe before that is seen.
_LOST = re.compile(r"connection (was )?(closed|reset) by (remote )?peer|ncclRemoteError|remote process exited", re.I)


def fallen(said: str, log: bytes | str, nodes: list[dict]) -> str:
    """Why a launch fell, `said` of the head: with the workers named where its log tells that it lost one of them."""
    workers = [node["host"] for node in nodes[1:]]
    if not workers or not _LOST.search("\n".join(last_lines(log))):
        return said
    return f"{said[:-1]}, when it lost the connection to {' or '.join(workers)}."


def drain(vllm: Vllm, seconds: float) -> int:
    """Wait until no request is in flight, at most `seconds`; returns how many still were."""
    deadline = time.monotonic() + seconds
    while True:
        left = vllm.in_flight() or 0
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(min(0.25, max(0.0, deadline - time.monotonic())))
