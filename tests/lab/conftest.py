"""One lab for all of its tests, put back into its first state after each."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.lab.engine import LabError, docker
from tests.lab.lab import Lab
from tests.support import BIN, Cluster

# As root: nothing of an earlier test is left on a host, and the launcher and the models are as they were laid.
FRESH = """
pkill -CONT dockerd; mountpoint -q /home/spark/.spark-control && umount -l /home/spark/.spark-control
/usr/bin/docker ps -aq | xargs -r /usr/bin/docker rm -f
tc qdisc del dev eth0 root
rm -rf /home/spark/.spark-control /home/spark/.cache/vllm /home/spark/.triton /run/spark-gpu/faults/*
for file in /home/spark/.cache/huggingface/hub/*/snapshots/*/demo.json; do
  sed -i 's/"load_seconds": [^,]*/"load_seconds": null/' $file
done
"""


def pytest_configure(config):
    """`-m "not lab"` leaves these tests out."""
    config.addinivalue_line("markers", "lab: on containers with a real sshd and dockerd; needs docker or root")


def pytest_collection_modifyitems(items):
    """Every test here is the lab's, and one worker runs them all."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.lab)
            item.add_marker(pytest.mark.xdist_group("lab"))


@dataclass
class LabCluster(Cluster):
    """The lab with the words of the simulated cluster's tests."""

    lab: Lab = None

    @property
    def environment(self) -> dict[str, str]:
        """The lab's, with this Python's programs first."""
        found = self.lab.environment
        return found | {"PATH": f"{BIN}:{found['PATH']}"}

    def host(self, name: str, *command: str) -> subprocess.CompletedProcess:
        """Run a program as the user of that host, round ssh."""
        inside = ["exec", "--user", "spark", "--env", "HOME=/home/spark", self.lab.container(name), *command]
        return docker(*inside, check=False, encoding="utf-8", timeout=60)

    def unplug(self, name: str) -> None:
        """Pull a host's network cable."""
        docker("network", "disconnect", f"spark-{self.lab.name}", self.lab.container(name))

    def plug(self, name: str) -> None:
        """Put it in again."""
        network = ("network", "connect", "--ip", self.lab.hosts[name], f"spark-{self.lab.name}")
        docker(*network, self.lab.container(name), check=False)

    def behave(self, repo: str, behaviour: str, load_seconds: float | None = None) -> None:
        """Have a model take that long to load; put back after the test."""
        folder = f"/home/spark/.cache/huggingface/hub/models--{repo.replace('/', '--')}"
        text = f'\'s/"load_seconds": [^,]*/"load_seconds": {load_seconds or "null"}/\''
        for name in self.lab.hosts:
            self.lab.root(name, "sh", "-c", f"sed -i {text} {folder}/snapshots/*/demo.json")


@pytest.fixture(scope="session")
def lab():
    """A lab of two Sparks, connected by the project's own playbooks. SPARK_LAB_KEEP=1 leaves it up for the next run."""
    made = Lab(name="test", network="172.31.78", state=PROJECT / "var/lab-test", load_seconds=0.5)
    with made.held():
        try:
            made.up()
            made.connect()
        except LabError as error:
            if os.environ.get("CI") == "true" or not os.geteuid():
                raise
            pytest.skip(str(error))
        yield made
        if not os.environ.get("SPARK_LAB_KEEP"):
            made.down()


@pytest.fixture
def cluster(lab):
    """The lab with nothing running on it."""
    made = LabCluster(lab.state, lab.network, lab)
    freshen(made)
    yield made
    freshen(made)


def freshen(cluster: LabCluster) -> None:
    """Put every host back, at once."""
    lab = cluster.lab

    def one(name: str) -> None:
        cluster.plug(name)
        lab.root(name, "sh", "-c", FRESH, check=False)

    with ThreadPoolExecutor(len(lab.hosts)) as pool:
        list(pool.map(one, lab.hosts))
    lab.put_launcher(os.environ.get("LAUNCHER_DIR") or lab.launcher)
