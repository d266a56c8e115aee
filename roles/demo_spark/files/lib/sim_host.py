"""One simulated Spark: its folder, its faults, its processes and its memory.

A host is a folder:

    host.json       {"name", "address", "root", "mem_total_kb", "mem_baseline_kb"}
    address         the address alone, for shell scripts
    home/ bin/      what HOME and PATH point at
    proc/meminfo    rewritten whenever a process takes or gives back memory
    docker/         images.json, containers/<id>/, names/<name> (a link to a container)
    memory/         <pid>.json of every process that holds memory: {"pid", "ticks", "bytes", "leak", "name", "busy"}
    faults/         files that make something fail; see the role's README
    off             there while the host is "switched off" (the demo is stopped)

Memory is counted from the processes that are alive, so it comes back however one ends.
"""

import contextlib
import fcntl
import json
import os

GIB = 1 << 30
ENV_CONTAINER = "SPARK_SIM_CONTAINER"
ENV_HOST = "SPARK_SIM_HOST"
ENV_ROOT = "SPARK_SIM_ROOT"


class Host:
    """A simulated Spark by its folder. Attributes: folder, name, address, root (str); total, baseline (bytes)."""

    def __init__(self, folder):
        self.folder = os.path.realpath(folder)
        facts = read_json(self.path("host.json"))
        self.name = facts["name"]
        self.address = facts["address"]
        self.root = facts["root"]
        self.total = facts["mem_total_kb"] * 1024
        self.baseline = facts["mem_baseline_kb"] * 1024

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def fault(self, name):
        """The text of a fault file, None when it isn't there."""
        try:
            with open(self.path("faults", name)) as file:
                return file.read()
        except FileNotFoundError:
            return None

    @property
    def off(self):
        return os.path.exists(self.path("off"))

    @contextlib.contextmanager
    def locked(self, name="lock"):
        with open(self.path(name), "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def holders(self):
        """What processes hold: the memory/ entries whose process is alive. A leaking one that ended moves into
        faults/leaked; any other that ended is forgotten."""
        alive = []
        folder = self.path("memory")
        for entry in os.listdir(folder):
            if not entry.endswith(".json"):
                continue
            path = os.path.join(folder, entry)
            try:
                holder = read_json(path)
            except (OSError, ValueError):
                continue
            if ticks(holder["pid"]) == holder["ticks"]:
                alive.append(holder)
                continue
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
                if holder.get("leak"):
                    leaked = self.leaked() + holder["bytes"]
                    write_atomic(self.path("faults", "leaked"), f"{leaked}\n")
        return alive

    def leaked(self):
        """Bytes that a leaking model never gave back."""
        try:
            return int(self.fault("leaked") or 0)
        except ValueError:
            return 0

    def available(self):
        """Bytes free now."""
        held = sum(holder["bytes"] for holder in self.holders())
        return max(self.total - self.baseline - held - self.leaked(), 200 << 20)

    def refresh_memory(self):
        """Rewrite proc/meminfo when it no longer says what is free; returns the bytes that are."""
        with self.locked():
            available = self.available()
            text = meminfo(self.total // 1024, available // 1024)
            path = self.path("proc", "meminfo")
            try:
                with open(path) as file:
                    old = file.read()
            except FileNotFoundError:
                old = None
            if text != old:
                write_atomic(path, text)
        return available

    def hold(self, pid, size, **extra):
        """Let process `pid` hold `size` bytes (extra: name, leak, busy)."""
        entry = {"pid": pid, "ticks": ticks(pid), "bytes": int(size), **extra}
        write_atomic(self.path("memory", f"{pid}.json"), json.dumps(entry))
        return self.refresh_memory()


def hosts_of(root):
    """Every host of a demo root."""
    found = []
    for entry in sorted(os.listdir(root)):
        if os.path.isfile(os.path.join(root, entry, "host.json")):
            found.append(Host(os.path.join(root, entry)))
    return found


def read_json(path):
    with open(path) as file:
        return json.load(file)


def write_atomic(path, text):
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w") as file:
        file.write(text)
    os.replace(temporary, path)


def ticks(pid):
    """When a process started, in the kernel's ticks; None when it is gone (a zombie is gone)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def tagged(name, value):
    """Pids of the living processes that carry name=value in their environment."""
    tag = f"\0{name}={value}\0".encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                environment = b"\0" + file.read() + b"\0"
        except OSError:
            continue
        if tag in environment and ticks(int(entry)) is not None:
            found.append(int(entry))
    return found


def meminfo(total_kb, available_kb):
    """/proc/meminfo as the kernel writes it, for that much free memory (kB)."""
    cached = min(available_kb // 4, 6_000_000)
    free = available_kb - cached
    values = {
        "MemTotal": total_kb,
        "MemFree": free,
        "MemAvailable": available_kb,
        "Buffers": 214532,
        "Cached": cached,
        "SwapCached": 0,
        "Active": 2153844,
        "Inactive": cached,
        "SwapTotal": 16777212,
        "SwapFree": 16777212,
        "Dirty": 348,
        "Writeback": 0,
        "AnonPages": 1894320,
        "Mapped": 612480,
        "Shmem": 41200,
        "Slab": 901244,
        "SReclaimable": 512360,
        "SUnreclaim": 388884,
    }
    lines = [f"{key + ':':<15} {value:>8} kB" for key, value in values.items()]
    return "\n".join(
        [*lines, "HugePages_Total:       0", "HugePages_Free:        0", "Hugepagesize:       2048 kB", ""]
    )
