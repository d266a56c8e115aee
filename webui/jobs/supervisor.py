"""One job from its folder to its result: the process that `spark-control run` is.

It holds the folder's lock, runs the playbook through ansible-runner, answers SIGTERM, SIGINT and SIGHUP with
a proper cancel, and writes how it ended before it lets go of the lock.

Runner is used below its `run()` interface: that one takes over SIGINT and SIGTERM, seeds the run's
environment with the whole of ours and leaves it in `artifacts/run/command`, switches SSH host key checking
off, writes env files that the next run would read, and its own cancel does not reach the workers of
ansible-core ≥ 2.19.
"""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from webui.jobs import events, extra, processes, result
from webui.jobs.environment import MASK, environment, program, with_runner
from webui.jobs.folder import scrub, write_json, write_lock
from webui.jobs.job import Job
from webui.jobs.mourner import Mourner
from webui.jobs.store import JobStore

GRACE = 10.0  # seconds that ansible-playbook has to end by itself
TIDY_SECONDS = 60.0  # bound of the tidying run
ASKERS = {"page": "the page", "api": "the API"}  # who holds the lease of a job that was asked for there
SHORTEST_SECRET = 4  # characters; masking a shorter one would mask half of every output


class _Cancelled(Exception):
    """The job was cancelled before its playbook began."""


class Supervisor:
    """Runs one job. `lock`: the held descriptor of its lock; `live`: print Ansible's output as it comes."""

    def __init__(self, store: JobStore, job: Job, lock: int, variables: dict, *, live: bool):
        self.store, self.job, self.live = store, job, live
        os.set_inheritable(lock, False)
        self.lock = lock  # kept open, hence held, until this process ends
        self.view = job.view()
        self.variables = variables
        secrets = {name for name, value in job.variables.items() if value == MASK}
        self.secrets = _strings([self.variables.get(name) for name in secrets])
        self.set_stats: dict | None = None
        self.counted = False  # the playbook came to its own end, which its last event tells
        self.hostless = False  # a play found no host; ansible-playbook calls that a success
        self.complaints: list[str] = []
        self.playbook_pid: int | None = None
        self.stopping = threading.Event()
        self.hurry = threading.Event()
        self.over = threading.Event()  # the playbook has ended, or will not start any more
        self.cut_at: str | None = None
        self._canceller: threading.Thread | None = None
        self._offset = 0

    def run(self) -> dict:
        """See the job through; returns its result, which is on disk by then. Never raises."""
        self.data = {**self.job.data, "pid": os.getpid(), "pid_started": processes.started(os.getpid())}
        self.data["started"] = time.time()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        code, mourner = None, Mourner(self.store, self.job)
        try:
            self._write()
            if (self.job.dir / "cancel").exists():
                self._begin_cancel()
            self.store.end_leftovers()
            with contextlib.suppress(_Cancelled):
                code = self._play("run", self.job.operation, self.variables)
            self.over.set()
            status, found = self._outcome(code)
        except Exception as error:
            traceback.print_exc()
            self.over.set()
            processes.end(self.store.state, {self.job.id}, grace=1)
            status = "cancelled" if self.stopping.is_set() else "failed"
            found = result.crashed(self.job.operation, f"{type(error).__name__}: {error}")
        self._finish(status, found, code)
        mourner.dismiss()
        return found

    def _outcome(self, code: int | None) -> tuple[str, dict]:
        operation = self.job.operation
        if self.stopping.is_set():
            if self._canceller:
                self._canceller.join()
            # A playbook that reached its end before the signal did has not been cancelled.
            if code == 0 and self.set_stats is not None:
                return "successful", result.finished(operation, "successful", self.set_stats, self.view)
            return "cancelled", result.cancelled(operation, self._tidy(), self.view, self.cut_at)
        if self.view.plays and not self.counted:
            self.cut_at = self.view.current_task
            processes.end(self.store.state, {self.job.id}, grace=1.0)
            return "failed", result.killed(operation, self._tidy(), self.view, self.cut_at, self.complaints)
        if self.hostless and not self.view.tasks:
            return "failed", result.crashed(operation, "the inventory names no host for it.")
        status = "successful" if code == 0 else "failed"
        return status, result.finished(operation, status, self.set_stats, self.view, self.complaints)

    def _finish(self, status: str, found: dict, code: int | None) -> None:
        ended = time.time()
        scrub(self.job.dir)
        write_json(self.job.dir / "result.json", _masked(found, self.secrets), durable=True)
        self.data |= {
            "status": status,
            "ended": ended,
            "seconds": round(ended - self.data["started"], 3),
            "changed": bool(found.get("changed")),
            "rc": code,
            "phases": self.view.seconds(),
        }
        self._write(durable=True)
        with contextlib.suppress(OSError):
            self.store.prune()

    def _play(self, ident: str, playbook: str, variables: dict) -> int | None:
        """Run one playbook to its end; returns ansible-playbook's exit code, None when a signal ended it."""
        import ansible_runner.display_callback.callback as callbacks
        from ansible_runner.config.runner import RunnerConfig
        from ansible_runner.runner import Runner

        folder = self.job.dir
        told = {"spark_control_job": self.job.id, "spark_control_dead_jobs": self.store.dead()}
        if self.job.asked_by != "terminal":  # then the playbook names the user and the machine
            told["spark_control_asked_by"] = ASKERS.get(self.job.asked_by, self.job.asked_by)
        config = RunnerConfig(
            private_data_dir=str(folder),
            project_dir=str(self.store.project),
            playbook=f"playbooks/{playbook}.yml",
            ident=ident,
            fact_cache_type="memory",
            suppress_env_files=True,
        )
        config.prepare()
        # After prepare(), which forgets settings given to it when there is no file of them. The poll only
        # matters when a stray process keeps the terminal open after ansible-playbook has ended.
        config.pexpect_timeout = 1
        config.suppress_ansible_output = True  # _print does that, and outlives a closed terminal
        env = environment(self.store.project, self.store.state, self.job.id, os.environ)
        if self.live and sys.stdout.isatty() and "NO_COLOR" not in os.environ:
            env.setdefault("ANSIBLE_FORCE_COLOR", "true")
        config.env = with_runner(env, Path(config.artifact_dir), os.path.dirname(callbacks.__file__))
        config.command = [program(), "-e", f"@{folder / 'vars.json'}", f"playbooks/{playbook}.yml"]
        config.command += ["--check"] * bool(self.data["check"]) + ["--diff"] * bool(self.data["diff"])
        self._offset = events.TIDY if ident == "tidy" else 0
        runner = Runner(config, event_handler=self._on_event, status_handler=self._on_status)
        try:
            with extra.Pipe(folder / "vars.json", variables | told):
                runner.run()
        except _Cancelled:
            raise
        except Exception:
            # A stray process can keep the terminal open for longer than runner has patience (pexpect's
            # TIMEOUT).
            if not self.view.plays and not self.stopping.is_set():
                raise
            return 0 if self.counted and not self.view.failed else runner.rc
        return runner.rc

    # Runner's callbacks

    def _on_status(self, status: dict, runner_config) -> None:
        if status["status"] == "running":  # ansible-playbook is about to start
            # Runner has just written the run's whole environment there.
            Path(runner_config.artifact_dir, "command").unlink(missing_ok=True)
            if self.stopping.is_set() and runner_config.ident == "run":
                raise _Cancelled

    def _on_event(self, raw: dict) -> bool:
        """Every event, before runner writes it. Returning True has it written."""
        if "uuid" not in raw:
            return True
        if self.secrets:
            clean = _masked(raw, self.secrets)
            raw.clear()
            raw.update(clean)
        if self.playbook_pid is None and raw.get("pid"):
            self.playbook_pid = raw["pid"]
            self.data["playbook_pid"] = raw["pid"]
            self._write()
        if raw["event"] == "playbook_on_stats":
            self.counted = True
            found = (raw.get("event_data") or {}).get("artifact_data") or {}
            self.set_stats = found["result"] if isinstance(found.get("result"), dict) else None
        elif raw["event"] == "playbook_on_no_hosts_matched":
            self.hostless = True
        elif raw["event"] in ("error", "verbose") and len(self.complaints) < 20:
            text = events.trim(raw, 0)["stdout"].strip()
            if text.startswith("[ERROR]") or raw["event"] == "error":
                self.complaints.append(text)
        self.view.feed(events.trim(raw, raw["counter"] + self._offset))
        if self.live and (raw["stdout"] or raw["event"] == "verbose"):
            self._print(raw["stdout"])
        return True

    def _print(self, text: str) -> None:
        try:
            print(text.replace("\r\n", "\n"), flush=True)
        except OSError:
            self.live = False  # nobody looks any more (`| head`); the job goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    # Cancel

    def _on_signal(self, number: int, frame: object) -> None:
        if self.stopping.is_set() and number == signal.SIGINT:
            self.hurry.set()  # a second Ctrl-C: no more waiting, no tidying
        self._begin_cancel()

    def _begin_cancel(self) -> None:
        if self.stopping.is_set():
            return
        self.stopping.set()
        self._canceller = threading.Thread(target=self._cancel, daemon=True)
        self._canceller.start()

    def _cancel(self) -> None:
        """TERM ansible-playbook, wait, then KILL whatever carries the job's tag, until nothing is left."""
        if not (self.job.dir / "cancel").exists():
            write_json(self.job.dir / "cancel", {"by": "terminal", "at": time.time()})
        self.cut_at = self.view.current_task
        deadline, told = time.monotonic() + GRACE, 0.0
        # TERM again each second: one that hits between fork and exec is lost.
        while not self.over.wait(0.02) and time.monotonic() < deadline and not self.hurry.is_set():
            if time.monotonic() - told > 1:
                # Its pid stands in its first event, but it can be cancelled before that: it is our one child.
                for pid in processes.children(os.getpid()):
                    processes.send(pid, signal.SIGTERM)
                    told = time.monotonic()
        processes.end(self.store.state, {self.job.id}, grace=0 if self.hurry.is_set() else 1.0)

    def _tidy(self) -> dict | None:
        """After a cancel: `playbooks/tidy_<operation>.yml`, bounded. Returns the result that it sets."""
        name = f"tidy_{self.job.operation}"
        began = self.view.counter > 0  # without an event nothing was touched
        if (
            self.data["check"]
            or not began
            or self.hurry.is_set()
            or not (self.store.project / "playbooks" / f"{name}.yml").exists()
        ):
            return None
        self.set_stats = None
        over = threading.Event()
        watch = threading.Thread(target=self._bound, args=(over,), daemon=True)
        watch.start()
        try:
            self._play("tidy", name, self.variables)
        finally:
            over.set()
            watch.join()
        return self.set_stats

    def _bound(self, over: threading.Event) -> None:
        deadline = time.monotonic() + TIDY_SECONDS
        while time.monotonic() < deadline and not self.hurry.is_set():
            if over.wait(0.2):
                return
        processes.end(self.store.state, {self.job.id}, grace=1.0)

    def _write(self, *, durable: bool = False) -> None:
        write_json(self.job.dir / "job.json", self.data, durable=durable)
        write_lock(self.lock, self.data)


def _strings(value: object) -> list[str]:
    """Every string in a value that is long enough to be masked, longest first."""
    found: set[str] = set()
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack += item.values()
        elif isinstance(item, list):
            stack += item
        elif item is not None and len(str(item)) >= SHORTEST_SECRET:
            found.add(str(item))
    return sorted(found, key=len, reverse=True)


def _masked(value: object, secrets: list[str]) -> object:
    """`value` with every secret in every string replaced, as it stands and as JSON writes it."""
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, MASK)
        return value
    if isinstance(value, dict):
        return {_masked(key, secrets): _masked(item, secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, secrets) for item in value]
    return value
