"""Two simulated Sparks that are laid once by the demo's own playbook and put back, in this process, between tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import PROJECT
from tests.support import Cluster, wait_for

# The programs of the simulated Sparks lie on no path; what is alive and what memory is free is asked of them.
sys.path.insert(0, str(PROJECT / "roles/demo_spark/files/lib"))

import sim_containers
import sim_host

# What is no file of a host as it was laid: what its daemon keeps, and that it is switched off.
DAEMONS = ("proc", "memory", "lock", "hostd.lock", "off")


class Simulation:
    """The simulated Sparks below `folder`/demo, at `network`.11 and .12; a model loads in half a second."""

    def __init__(self, folder: Path, network: str):
        self.folder, self.network = folder, network
        self.own = Cluster(folder / "demo", network)
        self.root = self.own.root
        self.lay()
        self.first = Copy(self.root, folder / "first")
        self.served = None

    def lay(self) -> None:
        """Lay and start them, by the playbook."""
        laid = self.own.run("demo", demo_spark_load_seconds=0.5)
        assert laid.code == 0, laid.output
        self.standing = self.processes()

    def remove(self) -> None:
        """Take them down, by the playbook."""
        gone = self.own.run("demo", demo_spark_state="absent")
        assert gone.code == 0, gone.output
        assert not self.root.exists()

    @contextlib.contextmanager
    def lent(self, folder: Path, serving: bool = False) -> Iterator[Cluster]:
        """The Sparks as they were laid, or serving demo-small, and a controller's state folder below `folder`."""
        self.freshen()
        if serving:
            self.serve()
        yield Cluster(self.root, self.network, state=folder / "state")
        self.freshen()

    def serve(self) -> None:
        """Have demo-small serve: by a swap, the first time; then as a Spark does that was switched off and on again."""
        if not self.served:
            swapped = self.own.swap("demo-small")
            assert swapped.code == 0, swapped.output
            self.served = Copy(self.root, self.folder / "served")
            return
        hosts = sim_host.hosts_of(self.root)
        for host in hosts:
            Path(host.path("off")).touch()  # so that nobody clears up the containers before they are started
        wait_for(self.served.put_back, what="every file being as it was while demo-small served")
        for host in hosts:
            for container in sim_containers.containers(host):
                container.resume()
            Path(host.path("off")).unlink()
        wait_for(lambda: self.own.models() == ["demo-small"], what="demo-small serving again")

    def freshen(self) -> None:
        """End what was started since they were laid, and put every file back."""
        for pid in self.started():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not self.started(), what="the end of what a test left running")
        hosts = sim_host.hosts_of(self.root)
        for host in hosts:
            host.refresh_memory()  # what leaked is noted as a fault, which goes with the next line
        wait_for(self.first.put_back, what="every file being as it was laid")
        for host in hosts:
            host.refresh_memory()
        if self.processes() != self.standing:
            self.lay()

    def started(self) -> list[int]:
        """Pids of these Sparks' processes, and of everything that was started to work on them, but for the standing."""
        return [pid for pid, ticks in self.processes(by_hand=True).items() if self.standing.get(pid) != ticks]

    def outside_containers(self) -> list[str]:
        """The command lines of what was started on these Sparks, or for them, and runs in no container."""
        found = []
        for pid in self.started():
            with contextlib.suppress(OSError):
                if f"{sim_host.ENV_CONTAINER}=".encode() not in Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        return found

    def processes(self, by_hand: bool = False) -> dict[int, int]:
        """{pid: when it started} of these Sparks' processes; by_hand: and of the playbooks and servers for them."""
        tags = [(sim_host.ENV_ROOT, str(self.root))] + ([("SPARK_DEMO_ROOT", str(self.root))] if by_hand else [])
        pids = {pid for name, value in tags for pid in sim_host.tagged(name, value)} - {os.getpid()}
        return {pid: ticks for pid in pids if (ticks := sim_host.ticks(pid)) is not None}


def survey(root: Path) -> dict[str, tuple]:
    """{path below root: what tells whether it is as it was laid}.

    A file's mode, size, time and whether it takes its room on the disk; a link's mode and text; a folder's mode.
    """
    rows, left = {}, [""]
    while left:
        folder = left.pop()
        try:
            entries = list(os.scandir(root / folder))
        except FileNotFoundError:  # a container's, which its daemon has cleared up since
            continue
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if entry.name in DAEMONS and folder.startswith("spark") and "/" not in folder:
                continue
            with contextlib.suppress(FileNotFoundError):  # a program's temporary file
                row = entry.stat(follow_symlinks=False)
                if entry.is_symlink():
                    rows[name] = (row.st_mode, os.readlink(entry.path))
                elif entry.is_dir(follow_symlinks=False):
                    rows[name] = (row.st_mode,)
                    left.append(name)
                else:
                    rows[name] = (row.st_mode, row.st_size, row.st_mtime_ns, row.st_blocks * 512 >= row.st_size)
    return rows


class Copy:
    """How the Sparks' files were at some time: a copy below `folder`, and what tells whether one is as it was."""

    def __init__(self, root: Path, folder: Path):
        self.root, self.folder = root, folder
        # A daemon's temporary file may go while it is copied; then it is copied again.
        copy = ["cp", "-a", "--sparse=auto", "--no-target-directory", root, folder]
        wait_for(lambda: subprocess.run(copy, check=False).returncode == 0, what="a copy of the Sparks' files")
        taken = survey(root)
        # Only the copy tells what was copied, and only the file itself whether it takes its room.
        self.rows = {name: (*row[:3], taken[name][3]) if row[3:] else row for name, row in survey(folder).items()}

    def put_back(self) -> bool:
        """Make the files again what they were; True once there is nothing to do.

        The hosts' daemons clear up at the same time, so what was seen may be gone.
        """
        root, rows, now = self.root, self.rows, survey(self.root)
        differs = {name for name in now.keys() | rows.keys() if now.get(name) != rows.get(name)}
        for name in sorted(differs & now.keys(), reverse=True):
            there, here = rows.get(name), root / name
            if not stat.S_ISDIR(now[name][0]):
                here.unlink(missing_ok=True)
            elif there is None or not stat.S_ISDIR(there[0]):
                shutil.rmtree(here, ignore_errors=True)
        files = {"never": [], "auto": []}
        for name in sorted(differs & rows.keys()):
            row = rows[name]
            if stat.S_ISDIR(row[0]):
                (root / name).mkdir(exist_ok=True)
                (root / name).chmod(stat.S_IMODE(row[0]))
            else:
                files["never" if stat.S_ISREG(row[0]) and row[3] else "auto"].append(name)
        for sparse, names in files.items():
            if names:
                subprocess.run(
                    ["cp", "-a", "--parents", f"--sparse={sparse}", *names, root], cwd=self.folder, check=True
                )
        return not differs
