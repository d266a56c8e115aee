"""A cluster of simulated Sparks of one's own, and a web server in front of it: for tests and benchmarks."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import PROJECT

BIN = Path(sys.executable).parent


@dataclass
class Run:
    """One finished run of ansible-playbook: its exit code, the playbook's `result`, what it printed."""

    code: int
    result: dict
    output: str
    recap: dict = field(default_factory=dict)


@dataclass
class Cluster:
    """Two simulated Sparks below `root`, at `network`.11 and .12; `state` is the controller's folder."""

    root: Path
    network: str
    state: Path = field(default=None, kw_only=True)

    def __post_init__(self):
        self.state = self.state or self.root.parent / "state"

    @property
    def head(self) -> str:
        """The IP address at which the head's vLLM answers."""
        return f"{self.network}.11"

    @property
    def environment(self) -> dict[str, str]:
        """What every program of this test's runs with: nothing of the caller's but PATH and HOME."""
        return {
            "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin",
            "HOME": os.environ.get("HOME", "/"),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_INVENTORY": str(PROJECT / "inventory/demo"),
            "SPARK_DEMO_ROOT": str(self.root),
            "SPARK_DEMO_NETWORK": self.network,
            "SPARK_CONTROL_STATE": str(self.state),
        }

    def start(self, playbook: str, *arguments: str, **variables) -> subprocess.Popen:
        """Start a playbook by hand, as from a laptop."""
        arguments += ("-e", json.dumps(variables)) if variables else ()
        return self.program("ansible-playbook", str(PROJECT / "playbooks" / f"{playbook}.yml"), *arguments)

    def program(self, name: str, *arguments: str) -> subprocess.Popen:
        """Start a program of ours, as a person who works on these Sparks does."""
        return subprocess.Popen(
            [BIN / name, *arguments],
            env=self.environment,
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, playbook: str, *arguments: str, **variables) -> Run:
        """Run a playbook to its end."""
        return self.finish(self.start(playbook, *arguments, **variables))

    @staticmethod
    def finish(process: subprocess.Popen, seconds: float = 240) -> Run:
        """What came of a playbook."""
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return Cluster.read(process.returncode, output)

    @staticmethod
    def read(code: int, output: str) -> Run:
        """A finished run, out of what it printed."""
        stats = re.search(r"^\s*RUN: (\{.*\})\s*$", output, re.M)
        result = json.loads(stats[1])["result"] if stats else {}
        recap = {
            host: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", counts)}
            for host, counts in re.findall(r"^(\w+)\s+: (ok=.*)$", output, re.M)
        }
        return Run(code, result, output, recap)

    def swap(self, model: str, *arguments: str, **variables) -> Run:
        """playbooks/swap.yml with bounds that suit a simulation."""
        quick = {"vllm_memory_seconds": 5, "vllm_load_seconds": 60, "vllm_answer_seconds": 5, "vllm_hold_seconds": 1}
        return self.run("swap", *arguments, model=model, **(quick | variables))

    def host(self, name: str, *command: str) -> subprocess.CompletedProcess:
        """Run a program as somebody who is logged in on that Spark."""
        environment = {"PATH": f"{self.root / name}/bin:/usr/bin:/bin", "HOME": str(self.root / name / "home")}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def containers(self, name: str) -> list[str]:
        """The names of the containers on that Spark."""
        return self.host(name, "docker", "ps", "-a", "--format", "{{.Names}}").stdout.split()

    def models(self) -> list[str]:
        """Which model names the head answers to; none where nothing listens."""
        try:
            with urllib.request.urlopen(f"http://{self.head}:8888/v1/models", timeout=2) as answer:
                return [model["id"] for model in json.load(answer)["data"]]
        except OSError:
            return []

    def chat(self, model: str) -> str:
        """One word from the model, through the head's API."""
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        request = urllib.request.Request(
            f"http://{self.head}:8888/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)["choices"][0]["message"]["content"]

    def fault(self, host: str, name: str, text: str = "") -> Path:
        """Break something on a simulated Spark (roles/demo_spark/README.md lists what can be)."""
        path = self.root / host / "faults" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def behave(self, repo: str, behaviour: str, load_seconds: float | None = None) -> None:
        """Have the simulated model of that repo behave otherwise, on every Spark."""
        folder = "models--" + repo.replace("/", "--")
        files = list(self.root.glob(f"*/home/.cache/huggingface/hub/{folder}/snapshots/*/demo.json"))
        assert files
        for file in files:
            file.write_text(json.dumps({"behaviour": behaviour, "load_seconds": load_seconds}))

    def load_seconds(self, seconds: float) -> None:
        """Have every simulated model that says nothing else take that long to load."""
        (self.root / "demo.json").write_text(json.dumps({"load_seconds": seconds}))

    def free_gb(self, host: str) -> int:
        """Memory available on a simulated Spark, in whole GiB."""
        text = (self.root / host / "proc/meminfo").read_text()
        return int(re.search(r"MemAvailable:\s+(\d+)", text)[1]) >> 20

    def recipe(self, name: str, text: str) -> None:
        """Put a recipe beside the simulation's own."""
        (self.root / "recipes" / f"{name}.yaml").write_text(text)


def first_token(address: str, model: str) -> float:
    """Ask the vLLM at that IP address until the model streams one token; when that was, by the monotonic clock."""
    body = {"model": model, "stream": True, "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}
    url, headers = f"http://{address}:8888/v1/chat/completions", {"Content-Type": "application/json"}

    def streamed() -> float | None:
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
            if any(b'"content"' in line for line in answer):
                return time.monotonic()
        return None

    return wait_for(streamed, what=f"the first token of {model}")


def run_async(coroutine):
    """What a coroutine returns; in a thread of its own, because playwright keeps a loop running in the tests'."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def wait_for(condition, seconds: float = 60, what: str = ""):
    """Wait for a condition to be true and return its value; after `seconds` fail the test and say what did not happen.

    Without `what` the condition's own line of source is told.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what or inspect.getsource(condition).strip()} did not happen within {seconds} s")
        time.sleep(0.02)
    return value


class Server:
    """`spark-control serve` in front of one simulated cluster."""

    def __init__(self, cluster):
        self.cluster = cluster
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.state = Path(cluster.environment["SPARK_CONTROL_STATE"])
        self.start()

    def start(self) -> None:
        """Start it, or start it again on the same port."""
        command = [BIN / "spark-control", "serve", "--host", "127.0.0.1", "--port", str(self.port)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=self.cluster.environment, start_new_session=True, **quiet)
        wait_for(lambda: self.ask("GET", "/healthz")[0] == 200, what="the server's start")

    def stop(self) -> float:
        """End it as a service manager does; returns how many seconds that took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        return time.monotonic() - began

    def kill(self) -> None:
        """kill -9, the workers too."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def ask(self, method: str, path: str, body: dict | None = None) -> tuple[int, dict]:
        """One JSON request: (status, body); status 0 where nothing listens."""
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            return 0, {}

    def job(self, job_id: str) -> dict:
        """GET /api/jobs/<id>."""
        return self.ask("GET", f"/api/jobs/{job_id}")[1]

    def ended(self, job_id: str, seconds: float = 120) -> dict:
        """The job once it has ended."""
        over = ("successful", "failed", "cancelled", "interrupted")
        return wait_for(
            lambda: (found := self.job(job_id))["status"] in over and found, seconds, f"the end of {job_id}"
        )
