"""One round of chaos: a swap under way, one thing killed or half-written at some moment of it, and what holds after.

A round is decided by its number alone: which model is asked for, by which road, what is broken, and at which step of
the playbook. After it nothing may be stuck, lost or lied about, no process of an ended job may go on, and the next swap
succeeds by whatever road, unaided.
"""

from __future__ import annotations

import contextlib
import functools
import html
import json
import os
import random
import re
import signal
import threading
import time
import urllib.request
from pathlib import Path

from ansible_collections.spark.control.plugins.module_utils import spark_recipe
from ansible_collections.spark.control.plugins.module_utils.spark_recipe_fields import Recipe

from tests.conftest import PROJECT
from tests.support import Cluster, Server, wait_for
from webui.jobs import JobStore, processes

# The steps of a swap at which something is broken, by how the task's name begins.
STEPS = ("Plan", "Look at", "Decide", "Reserve", "Stop", "Start", "Wait for", "Give")
MODELS = ("demo-small", "demo-pair")  # that load
OTHERS = ("demo-slow", "demo-crash")
ROADS = ("api", "command", "playbook")
VICTIMS = (
    "web server",
    "supervisor",
    "ansible-playbook",
    "worker",
    "all of the job",
    "all of the controller",
    "container",
    "model server",
    "half a job.json",
    "half an event",
    "half a lease",
    "half a record",
)
NEED_A_JOB = ("supervisor", "half a job.json", "half an event")
QUICK = {"vllm_memory_seconds": 5, "vllm_load_seconds": 60, "vllm_answer_seconds": 5, "vllm_hold_seconds": 1}


class Chaos:
    """A served cluster, a server before it, and the round that is played on both."""

    victims = VICTIMS

    def __init__(self, cluster: Cluster, number: int):
        self.cluster, self.number = cluster, number
        chance = random.Random(number)
        # Each victim comes as often as the others, whatever else falls out.
        self.victim = self.victims[number % len(self.victims)]
        self.road = chance.choice([road for road in ROADS if road != "playbook" or self.victim not in NEED_A_JOB])
        self.then = chance.choice(ROADS)
        self.step = chance.choice(STEPS)
        self.model = chance.choice([*MODELS, *OTHERS])
        self.next = chance.choice([model for model in MODELS if model != self.model])
        self.store = JobStore(cluster.environment["SPARK_CONTROL_STATE"], PROJECT)
        self.server = Server(cluster)
        self.run = self.job = None

    def __str__(self) -> str:
        return (
            f"round {self.number}: {self.model} by {self.road}, {self.victim} at “{self.step}”,"
            f" then {self.next} by {self.then}"
        )

    def play(self) -> None:
        """Break it, and see that everything holds."""
        wait_for(lambda: self.server.ask("GET", "/api/models")[1].get("models"), what=f"{self}: the first look")
        self.begin(self.road, self.model)
        self.reach(self.step)
        self.break_it()
        self.settle()
        self.look("after it was broken")
        self.begin(self.then, self.next)
        said = self.end()
        assert said["ok"], f"{self}: the next swap: {said['message']}"
        assert self.cluster.models() == [self.next], self
        self.settle()
        self.look("after the next swap")
        assert self.lease() is None, f"{self}: the lease outlived the swap"

    def begin(self, road: str, model: str) -> None:
        """Ask for a swap by one of the roads."""
        self.run = self.job = None
        if road == "api":
            status, said = self.server.ask("POST", "/api/swap", {"model": model})
            assert status == 202, f"{self}: the API refused {model}: {said}"
            self.job = self.store.get(said["job_id"])
            return
        known = {job.id for job in self.store.list()}
        if road == "playbook":
            self.run = self.cluster.start("swap", model=model, **QUICK)
        else:
            self.run = self.cluster.program("spark-control", "run", "swap", "-e", f"model={model}")
        self.lines: list[str] = []
        threading.Thread(target=self.lines.extend, args=(self.run.stdout,), daemon=True).start()
        if road == "command":
            self.job = wait_for(
                lambda: next((job for job in self.store.list() if job.id not in known), None), what=f"{self}: its job"
            )

    def reach(self, step: str) -> None:
        """Wait until the swap is at that step, or past it."""
        later = STEPS[STEPS.index(step) :]

        def there() -> bool:
            if self.over():
                return True
            names = [line.split("] *")[0] for line in self.lines if line.startswith("TASK [")] if self.run else []
            names = [name.rpartition(" : ")[2].removeprefix("TASK [") for name in names]
            if self.job:
                names = [task["name"] for task in self.job.view().tasks]
            return any(name.startswith(later) for name in names)

        wait_for(there, what=f"{self}: reaching the step")

    def over(self) -> bool:
        """Whether the swap has come to its end."""
        return self.job.finished if self.job else self.run.poll() is not None

    def break_it(self) -> None:
        """Kill, or cut short, what this round is about."""
        getattr(self, self.victim.replace(" ", "_").replace("-", "_").replace(".", "_"))()

    def web_server(self) -> None:
        self.server.kill()
        self.server.start()

    def supervisor(self) -> None:
        if pid := self.job.data.get("pid"):
            self.kill(pid)

    def ansible_playbook(self) -> None:
        if pid := self.playbook():
            self.kill(pid)

    def worker(self) -> None:
        parent = self.playbook()
        for pid in processes.children(parent)[:1] if parent else []:
            self.kill(pid)

    def playbook(self) -> int | None:
        """The pid of the swap's ansible-playbook; None before it is known."""
        return self.job.data.get("playbook_pid") if self.job else self.run.pid

    def all_of_the_job(self) -> None:
        for pid in [*self.of_the_job(), *self.beside_the_job()]:
            self.kill(pid)

    def all_of_the_controller(self) -> None:
        self.all_of_the_job()
        self.web_server()

    def container(self) -> None:
        self.cluster.host("spark1", "docker", "rm", "-f", "vllm_node")

    def model_server(self) -> None:
        for row in self.cluster.host("spark1", "docker", "top", "vllm_node", "-eo", "pid,args").stdout.splitlines()[1:]:
            if "vllm" in row:
                self.kill_there(int(row.split()[0]))

    def half_a_job_json(self) -> None:
        self.cut(self.job.dir / "job.json")

    def half_an_event(self) -> None:
        for path in sorted((self.job.dir / "artifacts/run/job_events").glob("*.json"))[-3:]:
            self.cut(path)

    def half_a_lease(self) -> None:
        self.cut_there("lease.json")

    def half_a_record(self) -> None:
        self.cut_there("serving.json")

    def cut_there(self, name: str) -> None:
        """Leave the first half of a file in the head's state folder."""
        half = f"f=$HOME/.spark-control/{name}; test -e $f && truncate -s $(($(stat -c %s $f) / 2)) $f"
        self.cluster.host("spark1", "sh", "-c", half)

    def kill_there(self, pid: int) -> None:
        """kill -9 of a process of the head, by its number there."""
        self.kill(pid)

    @staticmethod
    def kill(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    @staticmethod
    def cut(path: Path) -> None:
        """Leave the first half of a file, as a machine that lost its power does."""
        with contextlib.suppress(FileNotFoundError):
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])

    def of_the_job(self) -> list[int]:
        """What carries the job's tag; of a playbook run by hand, itself and its children."""
        if self.job:
            return [pid for pid, job in processes.tagged(self.store.state).items() if job == self.job.id]
        return [self.run.pid, *processes.children(self.run.pid)]

    def beside_the_job(self) -> list[int]:
        """The job's supervisor, and the process that would outlive it."""
        pid = self.job and self.job.data.get("pid")
        return [pid, *processes.children(pid)] if pid else []

    def end(self) -> dict:
        """Wait for the end of the swap; its result."""
        wait_for(self.over, 120, f"{self}: the end of the swap")
        if self.job:
            return self.job.result
        found = Cluster.read(self.run.returncode, "".join(self.lines))
        return {"ok": False, "message": found.output[-500:]} | found.result

    def settle(self) -> None:
        """Nothing is stuck: every job comes to an end, and no process of an ended job goes on."""
        wait_for(self.over, 120, f"{self}: the end of the swap")
        wait_for(lambda: not self.store.running(), 60, f"{self}: the end of every job")
        wait_for(lambda: not self.left(), 20, f"{self}: the end of what an ended job left")

    def left(self) -> list[int]:
        """The processes of jobs that have ended."""
        ended = {job.id for job in self.store.list(1000, background=True) if job.finished}
        return [pid for pid, job in processes.tagged(self.store.state).items() if job in ended]

    def look(self, when: str) -> None:
        """Nothing is lost and nothing is a lie: each job is there with its end, and the page says what answers."""
        for job in self.store.list():
            assert (job.result or {}).get("message"), f"{self} {when}: {job} ended without a word"
        if self.job:
            assert self.job.id in [job.id for job in self.store.list()], f"{self} {when}: its job is lost"
        lease = self.lease()
        assert lease is None or lease["expires"] - time.time() <= 300, f"{self} {when}: {lease}"
        # A model that still loads may come up between two looks; what is kept asking has to agree in the end.
        wait_for(lambda: self.told() in self.truth(), 30, f"{self} {when}: the page's word for what answers")

    def told(self) -> str:
        """What the page says to somebody who opens it: the title of what serves, or nothing."""
        request = urllib.request.Request(f"{self.server.url}/", headers={"Accept": "text/html"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            page = answer.read().decode()
        heading = re.search(r'<h1 class="now (\w+)">(.*?)</h1>', page, re.S)
        words = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", heading[2])).split())
        return words.removeprefix("Serving ") if words.startswith("Serving ") else ""

    def truth(self) -> set[str]:
        """What the model that answers on the head may be called: by its recipe's title, or as itself says."""
        names = self.cluster.models()[:1]
        return {title for name in names for title in (name, self.titles.get(name))} or {""}

    @functools.cached_property
    def titles(self) -> dict[str, str]:
        """What the recipes call their models."""
        found = spark_recipe.load_all([PROJECT / "roles/demo_spark/files/recipes"])
        return {recipe.name: recipe.title for recipe in found if isinstance(recipe, Recipe)}

    def lease(self) -> dict | None:
        """The lease in force on the head."""
        text = self.cluster.host("spark1", "sh", "-c", "cat $HOME/.spark-control/lease.json").stdout
        try:
            found = json.loads(text)
        except ValueError:
            return None
        return found if found["expires"] > time.time() else None

    def close(self) -> None:
        """End what a failed round left."""
        if self.run and self.run.poll() is None:
            self.run.kill()
        self.server.stop()
