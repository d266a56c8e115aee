"""Moving weights: how far, how fast, how long yet; the record of a transfer; and a process that outlives SSH.

A transfer is a download into this Spark or a copy from it. Its record is `<state_dir>/transfers/<id>.json`, its log
stands beside it; both are the owner's own. Sizes are bytes, times are epoch seconds.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pwd
import re
import shlex
import signal
import subprocess
import sys
import time

from .spark_write import write_json, write_text

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
# Speed is what came within this many seconds; longer, and it lags behind a link that slowed down.
_WINDOW = 20.0


class Trouble(Exception):
    """Why a transfer cannot be, for a person; `code` is for a program."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code

    def problem(self) -> dict:
        """As a result's `problem`."""
        return {"code": self.code, "message": str(self)}


def answer(module, phase, **result) -> None:
    """Run one phase of a copy and end the module with what it answers; what goes wrong is its `problem`.

    A failed task would be retried by `until`, and would stop what the other Sparks do.
    """
    result = {"changed": False, **result}
    try:
        result |= phase()
    except Trouble as trouble:
        result |= {"problem": trouble.problem(), "message": str(trouble)}
    except OSError as error:
        message = f"{error.filename or 'A folder'} cannot be used: {error.strerror or error}."
        code = "disk_full" if error.errno == errno.ENOSPC else "not_writable"
        result |= {"problem": {"code": code, "message": message}, "message": message}
    module.exit_json(**result)


def check_repo(repo: str, revision: str = "main") -> None:
    """Raise Trouble unless this is `org/name` and a branch, tag or commit: both become paths, URLs and arguments."""
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise Trouble("bad_repo", f"\u201c{repo[:100]}\u201d is not a repo of the Hub (org/name).")
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise Trouble("bad_revision", f"\u201c{revision[:100]}\u201d is not a branch, tag or commit.")


def transfer_id(*parts: str) -> str:
    """A name for a transfer that a file and a container may bear; other parts never give the same one."""
    text = re.sub(r"[^a-z0-9]+", "-", "-".join(parts[:1]).lower()).strip("-")[:60]
    return f"{text}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:8]}"


def repo_folder(hf_home: str, repo: str) -> str:
    """The repo's own folder in the Hugging Face cache, its home resolved."""
    return os.path.join(os.path.realpath(os.path.expanduser(hf_home)), "hub", "models--" + repo.replace("/", "--"))


def free(path: str) -> int:
    """Bytes free for us on the file system of PATH, or of its nearest parent that is there."""
    while not os.path.exists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def must_write(*places: str) -> None:
    """Raise Trouble for the first of these folders that this user may not write into; for one that is not there, its
    nearest parent decides. Containers write as root, so what a model server fetched may be root's."""
    for place in places:
        path = place
        while not os.path.exists(path) and os.path.dirname(path) != path:
            path = os.path.dirname(path)
        if os.access(path, os.W_OK | os.X_OK):
            continue
        found = os.stat(path)
        if found.st_uid == os.getuid():
            raise Trouble("not_writable", f"{path} may not be written.")
        names = []
        for uid in (found.st_uid, os.getuid()):
            try:
                names.append(pwd.getpwuid(uid).pw_name)
            except KeyError:
                names.append(str(uid))
        raise Trouble(
            "not_writable",
            f"{path} belongs to {names[0]}, and {names[1]} may not write there. Run on that Spark, once:"
            f" sudo chown -R {names[1]} {shlex.quote(path)}",
        )


# --- words ----------------------------------------------------------------------------------------------------------


def amount(size: float) -> str:
    """Bytes in a person's words; binary, as everywhere on a Spark."""
    for unit, scale in (("GB", 1 << 30), ("MB", 1 << 20)):
        if size >= scale:
            count = size / scale
            return f"{count:.0f} {unit}" if count >= 10 else f"{count:.1f} {unit}"
    return f"{size / 1024:.0f} kB"


def left(seconds: float) -> str:
    """How long yet, no more exact than such a guess is."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"


def gauge(record: dict, done: int) -> dict:
    """Where a transfer is: {phase, percent, message, seconds, progress}. Notes the look in record["samples"].

    The record is kept between looks, because each one is a process of its own.
    """
    now = time.time()
    total = record["total"]
    samples = [row for row in record.get("samples", []) if now - _WINDOW <= row[0] <= now]
    record["samples"] = samples = [*samples[-200:], [now, done]]
    span = now - samples[0][0]
    speed = max(0.0, (done - samples[0][1]) / span) if span >= 0.5 else 0.0
    percent = min(99, int(done * 100 / total)) if total else 0
    words = [same_unit(done, total)]
    if speed >= 1024:  # less than that, nothing has come to speak of: a first small file, days left
        words += [f"{amount(speed)}/s", left((total - done) / speed)]
    progress = {"done": done, "total": total, "percent": percent, "speed": round(speed)}
    seconds = round(now - record["started"], 1)
    message = ", ".join(words)
    return {"phase": record["phase"], "percent": percent, "message": message, "seconds": seconds, "progress": progress}


def same_unit(done: int, total: int) -> str:
    """`12 of 61 GB`."""
    unit = "GB" if total >= 1 << 30 else "MB"
    scale = 1 << 30 if unit == "GB" else 1 << 20
    digits = 0 if total >= 10 * scale else 1
    return f"{done / scale:.{digits}f} of {total / scale:.{digits}f} {unit}"


# --- records --------------------------------------------------------------------------------------------------------


def record_path(state_dir: str, identity: str, suffix: str = ".json") -> str:
    """Where a transfer's record (or log, or secret) is."""
    return os.path.join(os.path.expanduser(state_dir), "transfers", identity + suffix)


def read_record(state_dir: str, identity: str) -> dict | None:
    """The transfer's record, or None."""
    try:
        with open(record_path(state_dir, identity), encoding="utf-8") as text:
            record = json.load(text)
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and all(
        isinstance(record.get(key), kind)
        for key, kind in {"total": int, "started": (int, float), "phase": str, "samples": list}.items()
    )
    return record if whole else None


def write_record(state_dir: str, identity: str, record: dict) -> None:
    """Keep the record; whoever reads it at the same time sees the old one or the new one."""
    write_json(record_path(state_dir, identity), record)


def forget(state_dir: str, identity: str) -> None:
    """Drop everything that was kept of a transfer."""
    for suffix in (".json", ".log", ".list", ".exit", ".token"):
        with contextlib.suppress(OSError):
            os.unlink(record_path(state_dir, identity, suffix))


@contextlib.contextmanager
def alone(state_dir: str):
    """Nobody else starts or stops a transfer on this Spark meanwhile: two runs at once, or a cancel amid a start."""
    os.makedirs(os.path.expanduser(state_dir), mode=0o700, exist_ok=True)
    with open(os.path.join(os.path.expanduser(state_dir), "transfers.lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def tail(path: str, size: int = 65536) -> str:
    """The end of a log, or nothing."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def lines(text: str, count: int = 20) -> list[str]:
    """The last lines of a log for a person: no control characters, of a progress bar only where it ended."""
    plain = (re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", row.rstrip("\r").rsplit("\r", 1)[-1]) for row in text.split("\n"))
    clean = (re.sub(r"[^\t\x20-\x7e\x80-\U0010ffff]", "", row).rstrip()[:300] for row in plain)
    return [row for row in clean if row][-count:]


# --- a process that outlives the session that started it --------------------------------------------------------------

# Runs a command and writes its exit code down: whoever started it has gone by then, and only a parent is told.
_KEEPER = """\
import os, subprocess, sys
exit_file, *command = sys.argv[1:]
try:
    code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
except OSError as error:
    print(error, flush=True)
    code = 127
with open(exit_file + ".new", "w") as file:
    file.write(str(code))
os.replace(exit_file + ".new", exit_file)
"""


def start_detached(command: list[str], log: str, exit_file: str) -> dict:
    """Run COMMAND in a session of its own; its output goes to `log`, its exit code to `exit_file` when it ends.

    Returns {pid, ticks, boot} of its keeper, which is what ends it and what tells it from a later process of that pid.
    """
    for path in (log, exit_file):
        write_text(path, "")
        os.unlink(path)
    # A job's own tag stays behind: a cancel kills what carries it, and this is ended by the tidying playbook, gently.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SPARK_CONTROL_", "ANSIBLE"))}
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _KEEPER, exit_file, *command],
            env=environment | {"LC_ALL": "C.UTF-8"},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return {"pid": keeper.pid, "ticks": ticks(keeper.pid), "boot": boot()}


def alive(process: object) -> bool:
    """Whether that very process runs still, told by pid, start time and boot."""
    if not isinstance(process, dict) or not isinstance(process.get("pid"), int) or process.get("boot") != boot():
        return False
    return process.get("ticks") is not None and ticks(process["pid"]) == process["ticks"]


def end(process: dict, seconds: float = 5.0) -> bool:
    """End the process and its session's group: first so that it can put its partial file away. Whether it was there."""
    if not alive(process):
        return False
    for number, grace in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process["pid"], number)
        deadline = time.monotonic() + grace
        while group_lives(process["pid"]) and time.monotonic() < deadline:
            time.sleep(0.05)
    return True


def group_lives(group: int) -> bool:
    """Whether any process but a zombie is left in the process group."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{entry}/stat", "rb") as stat:
                fields = stat.read().rpartition(b")")[2].split()
                if int(fields[2]) == group and fields[0] not in (b"Z", b"X"):
                    return True
    return False


def ticks(pid: int) -> int | None:
    """When a process started, in the kernel's ticks since boot; None where it is gone (a zombie is)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def boot() -> str:
    """This boot's id: pids and ticks begin again with each."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as text:
            return text.read().strip()
    except OSError:
        return ""
