"""A job's folder on disk: which files, who writes them, and how they are written so that no reader sees half.

`<state>/jobs/<id>/`, made under another name and renamed, so that a folder with a job's name is whole:

- `lock`         flocked (exclusive) by the supervisor for its whole life; free: none lives. It holds a copy of
                 job.json, so that a job whose job.json cannot be read is found by its lock.
- `job.json`     {id, operation, variables (secrets masked), asked_by, created epoch, check, diff, background,
                 command (the ansible-playbook line), revision, pid, pid_started, started epoch, playbook_pid,
                 and at the end: status, ended epoch, seconds, changed, rc, phases {task: seconds}}.
                 `status` is null until the supervisor writes the final one; before that it is derived from
                 the lock.
- `result.json`  the playbook's `result`, or one made from what failed: {operation, ok, changed, message}.
- `vars.json`    the extra variables: a pipe (extra.py), there until ansible-playbook has opened it.
- `cancel`       {by, at epoch}: somebody asked for an end.
- `artifacts/run/job_events/<counter>-<uuid>.json`, `artifacts/run/stdout`   what ansible-runner writes.
- `artifacts/tidy/...`   the same for `playbooks/tidy_<operation>.yml`, which runs after a cancel.
- `supervisor.log`  what the supervisor itself complained about; empty in good days.

`<state>/jobs/.lock` is held for the moment in which a job is made, declared interrupted or deleted.
"""

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

FINAL = ("successful", "failed", "cancelled", "interrupted")
UNFINISHED = ("starting", "running", "cancelling")
STATUSES = UNFINISHED + FINAL

ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}")
EVENT_FILE = re.compile(r"(\d+)-(?!.*-partial)[^/]*\.json")
UNTIDY = ".new-"  # a folder that is still being made


def project_folder() -> Path:
    """Where ansible.cfg, playbooks and roles are: SPARK_CONTROL_PROJECT, else this repository."""
    return Path(os.environ.get("SPARK_CONTROL_PROJECT") or Path(__file__).parents[2]).absolute()


def state_folder() -> Path:
    """Where jobs and settings of this installation live: SPARK_CONTROL_STATE, else `var/` of the project."""
    return Path(os.environ.get("SPARK_CONTROL_STATE") or project_folder() / "var").absolute()


def new_id(now: float) -> str:
    """An id that sorts by time: UTC to the second, then the second's fraction in 1/65536."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    return f"{stamp}-{int(now % 1 * 65536):04x}"


def write_json(path: Path, value: object, *, durable: bool = False) -> None:
    """Replace `path` in one step; mode 0600. `durable` waits for the disk: for what a power cut must not take."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(value, file, ensure_ascii=True, default=str)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(scratch, path)


def read_job(folder: Path) -> dict | None:
    """What is known of the job in `folder`: its job.json, else the copy in its lock; None where neither can be read."""
    for name in ("job.json", "lock"):
        data = read_json(folder / name)
        if data and isinstance(data.get("operation"), str) and isinstance(data.get("created"), int | float):
            return data
    return None


def write_lock(lock: int, data: dict) -> None:
    """Keep a copy of job.json in the held lock itself."""
    text = json.dumps(data, ensure_ascii=True, default=str).encode()
    os.pwrite(lock, text, 0)
    os.ftruncate(lock, len(text))


def read_json(path: Path) -> dict | None:
    """The object in `path`, or None where there is none that can be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def take(path: Path) -> int:
    """Open and flock `path`; the lock lives as long as the returned descriptor, in whichever process has it.

    Raises BlockingIOError when somebody has it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(handle)
        raise
    return handle


def is_held(path: Path) -> bool:
    """Whether a supervisor has the lock. A shared lock looks, so that two lookers don't see each other."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock `path`, waiting for it; threads of one process exclude each other as well."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def scrub(folder: Path) -> None:
    """Remove what may hold a secret in clear from a job that is over: variables, environment, unfinished events."""
    for path in [
        folder / "vars.json",
        *folder.glob("artifacts/*/command"),
        *folder.glob("artifacts/*/job_events/*-partial.json*"),
    ]:
        path.unlink(missing_ok=True)


def event_files(folder: Path, after: int = 0) -> list[tuple[int, str]]:
    """(counter, path) of the event files above `after`, in order; partial and temporary ones are left out."""
    found = []
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    for name in names:
        match = EVENT_FILE.fullmatch(name)
        if match and (counter := int(match[1])) > after:
            found.append((counter, os.path.join(folder, name)))
    found.sort()
    return found
