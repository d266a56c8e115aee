"""One lab for all of its tests, put back into its first state after each."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ansible_collections.spark.control.plugins.module_utils import spark_launcher

from tests.conftest import PROJECT
from tests.lab import engine
from tests.lab.engine import LabError, docker
from tests.lab.lab import Lab
from tests.support import BIN, Cluster, wait_for

PACKAGES = "/usr/lib/python3/dist-packages"
DELAY = Path(__file__).with_name("delay.py")


@dataclass
class LabCluster(Cluster):
    """The lab with the words of the simulated cluster's tests."""

    lab: Lab = None
    started: list[subprocess.Popen] = field(default_factory=list)
    unplugged: set[str] = field(default_factory=set)

    @property
    def environment(self) -> dict[str, str]:
        """The lab's, with this Python's programs first."""
        found = self.lab.environment
        return found | {"PATH": f"{BIN}:{found['PATH']}"}

    def start(self, playbook: str, *arguments: str, **variables) -> subprocess.Popen:
        """Start a playbook by hand; one that a failed test leaves running is ended with the test."""
        self.started.append(super().start(playbook, *arguments, **variables))
        return self.started[-1]

    def end(self) -> None:
        """End the playbooks that still run, and put the hosts back for whoever comes next."""
        for run in self.started:
            if run.poll() is None:
                run.kill()
                run.communicate()
        for name in tuple(self.unplugged):
            self.plug(name)
        self.lab.freshen()

    def host(self, name: str, *command: str) -> subprocess.CompletedProcess:
        """Run a program as the user of that host, round ssh."""
        inside = ["exec", "--user", "spark", "--env", "HOME=/home/spark", self.lab.container(name), *command]
        return docker(*inside, check=False, encoding="utf-8", timeout=60)

    def unplug(self, name: str) -> None:
        """Pull a host's network cable."""
        self.unplugged.add(name)
        docker("network", "disconnect", f"spark-{self.lab.name}", self.lab.container(name))

    def plug(self, name: str) -> None:
        """Put it in again."""
        network = ("network", "connect", "--ip", self.lab.hosts[name], f"spark-{self.lab.name}")
        docker(*network, self.lab.container(name), check=False)
        self.unplugged.discard(name)

    def log_out(self) -> None:
        """End every ssh session on every host, and what Ansible keeps of them here."""
        self.lab.close_connections()
        for name in self.lab.hosts:
            self.lab.root(name, "pkill", "-KILL", "-f", "sshd: spark", check=False)

    def skew(self, name: str, seconds: int) -> None:
        """Set a host's clock apart, for every Python on it: containers on one machine share the kernel's clock."""
        text = f"import time\n\ntrue = time.time\ntime.time = lambda: true() + {seconds}\n"
        self.lab.root(name, "tee", f"{PACKAGES}/skew.py", input=text.encode())
        self.lab.root(name, "tee", f"{PACKAGES}/skew.pth", input=b"import skew\n")

    def slow(self, milliseconds: int) -> dict:
        """Variables that put so much of a round trip into the way to every host."""
        known = f"-o UserKnownHostsFile={self.lab.state / 'known_hosts'}"
        through = f"-o 'ProxyCommand={sys.executable} {DELAY} {milliseconds} %h %p'"
        return {
            "ansible_ssh_common_args": f"{known} {through}",
            "ansible_control_path_dir": f"{self.lab.state}/s",
        }

    def behave(self, repo: str, behaviour: str, load_seconds: float | None = None) -> None:
        """Have a model take that long to load; put back after the test."""
        folder = f"/home/spark/.cache/huggingface/hub/models--{repo.replace('/', '--')}"
        text = f'\'s/"load_seconds": [^,]*/"load_seconds": {load_seconds or "null"}/\''
        for name in self.lab.hosts:
            self.lab.root(name, "sh", "-c", f"sed -i {text} {folder}/snapshots/*/demo.json")


def patiently(condition, what: str):
    """Wait for a condition to be true and return its value; a busy machine takes its time to start a playbook."""
    return wait_for(condition, 240, what)


def need_engine() -> None:
    """Have a docker engine; skip where none can be had, but not where nothing may be skipped."""
    try:
        engine.need()
    except LabError as error:
        if os.environ.get("CI") == "true" or not os.geteuid():
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def lab(worker_id):
    """Three Sparks, connected by the project's own playbooks. SPARK_LAB_KEEP=1 leaves them up for the next run."""
    # A worker has one of its own.
    number = int(worker_id.removeprefix("gw")) if worker_id.startswith("gw") else 0
    name = f"test{number or ''}"
    made = Lab(name, 3, f"172.31.{84 + number if number else 78}", PROJECT / f"var/lab-{name}", load_seconds=0.5)
    need_engine()
    with made.held():
        made.up()
        made.connect()
        LabCluster(made.state, made.network, made).end()
        yield made
        if not os.environ.get("SPARK_LAB_KEEP"):
            made.down()


@pytest.fixture
def launcher(request, lab) -> str | None:
    """The shape of launch-cluster.sh that the test is for; None where any will do.

    A test says so by an `indirect` parameter, or by the mark `launcher` with every shape that will do. Where
    LAUNCHER_DIR gives a folder of the real project, that one is laid, and a test for another shape is skipped.
    """
    mark, given = request.node.get_closest_marker("launcher"), os.environ.get("LAUNCHER_DIR")
    shapes = (request.param,) if hasattr(request, "param") else mark.args if mark else ()
    if not shapes or not given:
        return shapes[0] if shapes else None
    shape = shape_of(given)
    if shape not in shapes:
        wanted = " or ".join(shapes)
        pytest.skip(f"It is for the launcher of {wanted}, and LAUNCHER_DIR has one like that of {shape}.")
    return shape


def shape_of(folder: str) -> str:
    """Which of SHAPES the launcher in a folder is like, by what a probe of a Spark finds there."""
    found = spark_launcher.look(folder)
    if not found["present"]:
        raise LabError(f"{folder}, which LAUNCHER_DIR names, has no working launch-cluster.sh")
    return found["shape"]


@pytest.fixture
def cluster(lab, launcher):
    """Two of the lab's Sparks, with nothing running on any. What the test leaves behind is gone afterwards."""
    made = LabCluster(lab.state, lab.network, lab)
    lab.use(2)
    if launcher:
        lab.put_launcher(launcher)
    yield made
    made.end()
