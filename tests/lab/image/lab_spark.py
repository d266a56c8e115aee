"""One simulated GPU shared by a lab host and the containers in it: a folder, and processes by their start time.

    host.json  demo.json     as in roles/demo_spark (sim_host.py)
    memory/<ticks>-<pid>.json  what a process in a container holds; its pid is the container's own
    proc/meminfo             what is left, rewritten by the lab host (0.2 s)

A process has another pid in each namespace and one start time in all of them, so the two together find it again.
"""

from __future__ import annotations

import contextlib
import json
import os

import sim_host

FOLDER = "/run/spark-gpu"


class LabSpark(sim_host.Host):
    """The host as the simulation's programs know it."""

    def holders(self):
        """What living processes hold, each with the pid that it has here."""
        alive, here = [], None
        for entry in os.listdir(self.path("memory")):
            path = self.path("memory", entry)
            try:
                holder = sim_host.read_json(path)
            except (OSError, ValueError):
                continue
            here = here if here is not None else _processes()
            pid = here.get((holder["ticks"], holder["pid"]))
            if pid is not None:
                alive.append(holder | {"pid": pid})
            elif os.access(path, os.W_OK):
                self._forget(path, holder)
        return alive

    def _forget(self, path, holder):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            if holder.get("leak"):
                sim_host.write_atomic(self.path("faults", "leaked"), f"{self.leaked() + holder['bytes']}\n")

    def refresh_memory(self):
        """Bytes that are free by the lab host's last count: a container cannot see its neighbours' processes."""
        with open(self.path("proc/meminfo")) as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024

    available = refresh_memory

    def count(self):
        """Rewrite proc/meminfo; the lab host's own part."""
        available = sim_host.Host.available(self)
        text = sim_host.meminfo(self.total // 1024, available // 1024)
        path = self.path("proc/meminfo")
        with contextlib.suppress(FileNotFoundError), open(path) as file:
            if file.read() == text:
                return
        sim_host.write_atomic(path, text)

    def hold(self, pid, size, **extra):
        """Let process `pid` (of this namespace) hold `size` bytes."""
        ticks = sim_host.ticks(pid)
        entry = {"pid": pid, "ticks": ticks, "bytes": int(size), **extra}
        sim_host.write_atomic(self.path("memory", f"{ticks}-{pid}.json"), json.dumps(entry))


def _processes():
    """{(start ticks, innermost pid): pid here} of every process that can be seen."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or (ticks := sim_host.ticks(int(entry))) is None:
            continue
        with contextlib.suppress(OSError), open(f"/proc/{entry}/status") as lines:
            inner = next((line.split()[-1] for line in lines if line.startswith("NSpid:")), entry)
            found[ticks, int(inner)] = int(entry)
    return found
