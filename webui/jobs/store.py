"""The jobs of one state folder: start, list, follow, cancel, take up again. The truth is in the folders."""

import collections
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from webui import cores
from webui.jobs import extra, processes, result
from webui.jobs.catalogue import operations, validate
from webui.jobs.environment import KEPT, KEPT_PREFIXES, MASK, shown_command
from webui.jobs.folder import FINAL, ID, UNTIDY, is_held, locked, new_id, scrub, take, write_json, write_lock
from webui.jobs.job import Job

KEEP = 200  # jobs; SPARK_CONTROL_KEEP_JOBS
KEEP_BACKGROUND = 5  # background jobs; SPARK_CONTROL_KEEP_BACKGROUND_JOBS
DEAD = 50  # ids that a run is told of as ended


class JobRunning(Exception):
    """The job that keeps an exclusive one from starting; see `job`."""

    def __init__(self, job: "Job"):
        super().__init__(f"{job.operation} is running already (job {job.id}).")
        self.job = job


class UnknownOperation(ValueError):
    """No playbook of that name; the message lists those that there are."""


class InvalidVariables(ValueError):
    """Variables that an operation doesn't take; `errors` is [{field, message}]."""

    def __init__(self, errors: list[dict[str, str]]):
        super().__init__(" ".join(f"{error['field']}: {error['message']}" for error in errors))
        self.errors = errors


class Laid(NamedTuple):
    """A job whose folder is laid: itself, its held lock, and its variables as checked, secrets in clear."""

    job: Job
    lock: int
    variables: dict


class JobStore:
    """The jobs under `<state_dir>/jobs`, run from the playbooks of `project_dir`."""

    def __init__(self, state_dir: Path | str, project_dir: Path | str):
        self.state = Path(state_dir).absolute()
        self.project = Path(project_dir).absolute()
        self.folder = self.state / "jobs"
        self._ended: dict[str, Job] = {}  # finished jobs don't change, and pages ask often

    # Looking

    def get(self, job_id: str) -> Job | None:
        """The job of that id, or None, whatever the string."""
        if not isinstance(job_id, str) or not ID.fullmatch(job_id):
            return None
        return Job.load(self.folder / job_id)

    def list(self, limit: int = 50, operation: str | None = None, background: bool = False) -> "list[Job]":
        """Newest first; background jobs only when asked for. Folders that cannot be read are passed over."""
        found = []
        for job in self._newest():
            if len(found) >= limit:
                break
            if (background or not job.background) and operation in (None, job.operation):
                found.append(job)
        return found

    def running(self, operation: str | None = None) -> "list[Job]":
        """The jobs that have not ended, background ones left out, newest first."""
        return [
            job
            for job in self._newest()
            if not job.background and operation in (None, job.operation) and not job.finished
        ]

    def latest_result(self, operation: str) -> tuple[dict, Job] | None:
        """(result, job) of the newest finished job of that operation with a result; previews don't count."""
        for job in self._newest():
            if job.operation == operation and not job.check and job.finished and (found := job.result):
                return found, job
        return None

    def expected_seconds(self, operation: str, variables: Mapping[str, object] | None = None) -> float | None:
        """How long such a job takes, or None: the median of the last nine successful ones with the same model
        (of those that changed something, if there are any)."""
        times = [job.data["seconds"] for job in self._like(operation, variables)]
        return round(statistics.median(times), 1) if times else None

    def expected_phases(self, operation: str, variables: Mapping[str, object] | None = None) -> dict[str, float]:
        """Task name → seconds: the medians of the same jobs."""
        times: dict[str, list[float]] = {}
        for job in self._like(operation, variables):
            for name, seconds in (job.data.get("phases") or {}).items():
                times.setdefault(name, []).append(seconds)
        return {name: round(statistics.median(values), 1) for name, values in times.items()}

    # Doing

    def start(
        self,
        operation: str,
        variables: Mapping[str, object],
        *,
        check: bool = False,
        diff: bool = False,
        asked_by: str = "page",
        background: bool = False,
        exclusive: Collection[str] = (),
    ) -> Job:
        """Start a job in a process of its own, which outlives this one, and return at once.

        Raises UnknownOperation, InvalidVariables, and JobRunning when one of the operations in `exclusive`
        runs (previews and background jobs don't count). The check and the start are one step, for every
        process.
        """
        laid = self.create(
            operation,
            variables,
            check=check,
            diff=diff,
            asked_by=asked_by,
            background=background,
            exclusive=exclusive,
        )
        try:
            self._spawn(laid)
        except OSError as error:
            reason = f"its process could not be started ({error.strerror})."
            self._settle(laid.job, "failed", result.crashed(operation, reason))
        finally:
            os.close(laid.lock)  # the supervisor has inherited it
        return laid.job

    def create(
        self,
        operation: str,
        variables: Mapping[str, object],
        *,
        check: bool = False,
        diff: bool = False,
        asked_by: str = "terminal",
        background: bool = False,
        exclusive: Collection[str] = (),
    ) -> Laid:
        """Lay a job's folder, for the supervisor to be. Raises as `start`."""
        known = operations(self.project)
        if operation not in known:
            names = ", ".join(known) or "none yet"
            raise UnknownOperation(f"There is no operation {operation[:64]!r}. There are: {names}.")
        clean, errors = validate(known[operation], variables)
        if errors:
            raise InvalidVariables(errors)
        masked = {name: MASK if name in known[operation].secrets else value for name, value in clean.items()}
        data = {
            "operation": operation,
            "variables": masked,
            "asked_by": asked_by,
            "check": check,
            "diff": diff,
            "background": background,
            "command": shown_command(operation, masked, check=check, diff=diff),
            "revision": _revision(self.project),
            "pid": None,
            "pid_started": None,
            "started": None,
            "playbook_pid": None,
            "status": None,
        }
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.folder / ".lock"):
            if exclusive:
                for other in self.running():
                    if other.operation in exclusive and not other.check:
                        raise JobRunning(other)
            return Laid(*self._lay(data), clean)

    def cancel(self, job_id: str, by: str = "page") -> bool:
        """Ask a job to end. True when it was still going; asking again does no harm."""
        job = self.get(job_id)
        if not job or job.finished:
            return False
        if not (job.dir / "cancel").exists():
            write_json(job.dir / "cancel", {"by": by, "at": time.time()})
        # The supervisor looks for that file once it has written its pid, so one of the two always finds the
        # other.
        data = job.data
        if data.get("pid") and data.get("pid_started"):
            processes.send(data["pid"], processes.signal.SIGTERM, begun=data["pid_started"])
        return True

    def reconcile(self) -> "list[Job]":
        """At start-up: write down as interrupted what nobody is running any more. Returns those jobs."""
        found = []
        for job in self._newest():
            if self.bury(job):
                found.append(job)
        return found

    def bury(self, job: Job) -> bool:
        """Write a job down as interrupted that nobody is running any more; False for any other."""
        with locked(self.folder / ".lock"):
            if job.data.get("status") in FINAL or job.status != "interrupted":
                return False
            self._settle(job, "interrupted", job.result)
        return True

    def end_leftovers(self) -> "list[int]":
        """End the processes that an interrupted job of this folder left behind; returns their pids."""
        orphans = set(processes.tagged(self.state).values())
        jobs = {job_id for job_id in orphans if (job := self.get(job_id)) and job.status == "interrupted"}
        ended = processes.end(self.state, jobs) if jobs else []
        for job_id in jobs:
            scrub(self.folder / job_id)
        return ended

    def dead(self) -> "list[str]":
        """The ids of the newest jobs here that have come to an end, at most DEAD, newest first."""
        ids = []
        for job in self._newest():
            if len(ids) == DEAD:
                break
            if job.finished:
                ids.append(job.id)
        return ids

    def prune(self) -> None:
        """Delete the oldest finished jobs beyond those to keep, and unreadable folders after a day."""
        # Housekeeping is kept by operation, so that previews do not push the last look at the cluster out.
        left = collections.defaultdict(lambda: _knob("SPARK_CONTROL_KEEP_BACKGROUND_JOBS", KEEP_BACKGROUND))
        left[None] = _knob("SPARK_CONTROL_KEEP_JOBS", KEEP)
        doomed = []
        for name in self._names():
            job = Job.load(self.folder / name)
            if job is None:
                if _old(self.folder / name) and not is_held(self.folder / name / "lock"):
                    doomed.append(self.folder / name)
                continue
            kind = job.operation if job.background else None
            left[kind] -= 1
            if left[kind] < 0 and job.finished:
                doomed.append(job.dir)
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.folder):
                if entry.name.startswith(UNTIDY) and _old(Path(entry.path)):
                    doomed.append(Path(entry.path))
        for folder in doomed:
            shutil.rmtree(folder, ignore_errors=True)

    # Within

    def _names(self) -> "list[str]":
        try:
            return sorted(filter(ID.fullmatch, os.listdir(self.folder)), reverse=True)
        except OSError:
            return []

    def _newest(self) -> Iterator[Job]:
        names = self._names()
        for name in self._ended.keys() - set(names):
            self._ended.pop(name, None)
        for name in names:
            job = self._ended.get(name) or Job.load(self.folder / name)
            if job and job.data.get("status") in FINAL:
                self._ended[name] = job
            if job:
                yield job

    def _like(self, operation: str, variables: Mapping[str, object] | None) -> "list[Job]":
        model, found, idle = (variables or {}).get("model"), [], []
        for job in self._newest():
            data = job.data
            if (
                job.operation == operation
                and data.get("status") == "successful"
                and not job.check
                and isinstance(data.get("seconds"), int | float)
                and job.variables.get("model") == model
            ):
                # A run that found nothing to do says nothing about one that has; but a probe never has.
                (found if data.get("changed") else idle).append(job)
            if len(found) == 9:
                break
        return found or idle[:9]

    def _lay(self, data: dict) -> tuple[Job, int]:
        while True:
            now = time.time()
            final = self.folder / new_id(now)
            if not final.exists():  # only one of us is here, by the store's lock
                break
        scratch = self.folder / f"{UNTIDY}{final.name}"
        scratch.mkdir(mode=0o700)
        lock = take(scratch / "lock")
        try:
            data = {"id": final.name, "created": now, **data}
            write_lock(lock, data)
            write_json(scratch / "job.json", data)
            os.rename(scratch, final)
        except BaseException:
            os.close(lock)
            raise
        return Job(final, data), lock

    def _spawn(self, laid: Laid) -> None:
        job, lock, held = laid.job, laid.lock, extra.keep(laid.variables)
        env = {k: v for k, v in os.environ.items() if k in KEPT or k.startswith(KEPT_PREFIXES)}
        env |= {"SPARK_CONTROL_STATE": str(self.state), "SPARK_CONTROL_PROJECT": str(self.project)}
        env |= {"LC_ALL": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
        env.pop(processes.TAG, None)  # a job that a playbook starts is not part of that playbook's job
        with open(held, "rb"), open(job.dir / "supervisor.log", "ab") as log, cores.unpinned():
            child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "webui.cli",
                    "run",
                    job.operation,
                    "--job-id",
                    job.id,
                    "--lock",
                    str(lock),
                    "--variables",
                    str(held),
                ],
                cwd=Path(__file__).parents[2],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock, held),
                start_new_session=True,
            )
        # Nobody waits for it, but a child that ended stays a zombie until its parent looks.
        threading.Thread(target=child.wait, daemon=True).start()

    def _settle(self, job: Job, status: str, found: dict) -> None:
        if not job.dir.exists():
            return
        write_json(job.dir / "result.json", found)
        ended = time.time() if status == "failed" else job.last_heard()
        data = {**job.data, "status": status, "ended": ended, "changed": bool(found.get("changed"))}
        write_json(job.dir / "job.json", data)
        scrub(job.dir)


def _old(path: Path) -> bool:
    try:
        return time.time() - os.stat(path).st_mtime > 86400
    except OSError:
        return False


def _knob(name: str, default: int) -> int:
    try:
        return max(1, int(os.environ.get(name) or default))
    except ValueError:
        return default


def _revision(project: Path) -> str | None:
    """The commit checked out in `project`, read from its files: no git process for a line in job.json."""
    git = project / ".git"
    try:
        if git.is_file():
            git = (project / git.read_text().removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head
        name = head.removeprefix("ref:").strip()
        common = git
        if (git / "commondir").exists():
            common = (git / (git / "commondir").read_text().strip()).resolve()
        if (common / name).exists():
            return (common / name).read_text().strip()
        for line in (common / "packed-refs").read_text().splitlines():
            if line.endswith(f" {name}"):
                return line.split()[0]
    except (OSError, UnicodeError):
        pass
    return None
