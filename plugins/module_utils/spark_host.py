"""What a Spark says of itself: memory, GPU, disk, and whether background work lives on it."""

from __future__ import annotations

import getpass
import os
import subprocess


def memory(meminfo: str = "/proc/meminfo") -> dict:
    """Total and available memory in bytes, from a file in /proc/meminfo's format (values in kB of 1,024 bytes).

    GB10 shares one memory between CPU and GPU and nvidia-smi reports it as [N/A], so MemAvailable is the figure.
    """
    with open(meminfo, encoding="ascii") as lines:
        rows = dict(line.split(":", 1) for line in lines if ":" in line)
    total, available = (int(rows[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    return {"total": total, "available": available}


def gpu() -> dict | None:
    """The first GPU: {name, utilization (%), temperature (°C), power (W)}; None without nvidia-smi."""
    rows = _nvidia_smi("--query-gpu=name,utilization.gpu,temperature.gpu,power.draw")
    if not rows or len(rows[0]) < 4:
        return None
    name, *figures = rows[0]
    return {
        "name": name,
        **dict(zip(("utilization", "temperature", "power"), map(_number, figures), strict=True)),
    }


def gpu_memory_by_pid() -> dict[int, int]:
    """Bytes of GPU memory by process id; this does read on GB10."""
    rows = _nvidia_smi("--query-compute-apps=pid,used_memory")
    used = {_number(row[0]): _number(row[1]) for row in rows or [] if len(row) >= 2}
    return {int(pid): int(size) << 20 for pid, size in used.items() if pid is not None and size is not None}


def program(pid: int) -> str:
    """What a process runs, for a person: the first words of its command line; empty where it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).rstrip(b"\0").decode(errors="replace").split("\0")
    except OSError:
        return ""
    shown = " ".join([os.path.basename(words[0]), *words[1:3]])
    return "".join(c if c.isprintable() else "?" for c in shown)[:60].strip()


def disk(path: str) -> dict | None:
    """Bytes on the file system that holds PATH (or its nearest parent that exists): {path, total, free}."""
    place = os.path.expanduser(path)
    while place and not os.path.exists(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    try:
        found = os.statvfs(place)
    except OSError:
        return None
    return {"path": path, "total": found.f_blocks * found.f_frsize, "free": found.f_bavail * found.f_frsize}


def session() -> dict:
    """Whether what we start may outlive the SSH session: {user, linger, remove_ipc}; None where systemd does not tell.

    With RemoveIPC and without linger, logind takes a user's shared memory away when the last session ends, and
    background work dies of it (eugr #352).
    """
    user = getpass.getuser()
    linger = _said("loginctl", "show-user", user, "--property=Linger", "--value")
    manager = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
    remove = _said("busctl", "get-property", *manager, "RemoveIPC")
    known = {"yes": True, "no": False, "b true": True, "b false": False}
    # A user without a session is unknown to logind; what it keeps about linger is a file.
    if linger is None and remove is not None:
        linger = "yes" if os.path.exists(os.path.join("/var/lib/systemd/linger", user)) else "no"
    return {"user": user, "linger": known.get(linger or ""), "remove_ipc": known.get(remove or "")}


def _said(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def _nvidia_smi(query: str) -> list[list[str]] | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    lines = done.stdout.decode(errors="replace").splitlines()
    return [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
