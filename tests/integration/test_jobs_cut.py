"""Jobs that are cut: cancelled at every point, or their supervisor killed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.jobs_project import ended, job_file, lay, whole
from tests.support import wait_for
from webui import cores
from webui.jobs import JobRunning, processes
from webui.jobs.events import TIDY


@pytest.fixture
def store(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("ANSIBLE_", "SPARK_"))]:
        monkeypatch.delenv(name)
    return lay(tmp_path)


def of(store, job):
    """The living processes of a job."""
    return [pid for pid, owner in processes.tagged(store.state).items() if owner == job.id]


def test_cancel_in_mid_task_ends_every_process_and_tidies_up(store, tmp_path):
    gate = tmp_path / "gate"
    job = store.start("long", {"gate": str(gate)})
    wait_for((tmp_path / "gate.waiting").exists)
    assert len(of(store, job)) >= 3  # ansible-playbook, its worker, the task's shell
    assert store.cancel(job.id, by="api")
    assert job.status in ("cancelling", "cancelled")
    assert store.cancel(job.id) or job.finished  # a second one does no harm
    ended(job)
    assert job.status == "cancelled"
    assert job.cancelled_by == "api"
    assert job.result["message"] == "Put away."
    assert job.result["ok"] is False
    assert (tmp_path / "gate.tidied").read_text() == job.id
    assert of(store, job) == []
    tidying = [event for event in job.events() if event["ident"] == "tidy"]
    assert tidying
    assert all(event["counter"] > TIDY for event in tidying)
    assert [event["counter"] for event in job.follow()] == [event["counter"] for event in job.events()]
    assert not store.cancel(job.id)


def test_a_job_may_use_every_core_of_a_server_that_keeps_to_one(store, tmp_path):
    every = os.sched_getaffinity(0)

    def asked():
        cores.pin()
        assert len(os.sched_getaffinity(0)) == 1
        job = store.start("long", {"gate": str(tmp_path / "gate")})
        assert len(os.sched_getaffinity(0)) == 1
        return job

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(asked).result()
    wait_for((tmp_path / "gate.waiting").exists)
    assert all(os.sched_getaffinity(pid) == every for pid in of(store, job))
    store.cancel(job.id)
    ended(job)


def test_cancel_while_starting(store, tmp_path):
    job = store.start("long", {"gate": str(tmp_path / "gate")})
    assert store.cancel(job.id)
    ended(job)
    assert job.status == "cancelled"
    assert job.result["message"]
    assert of(store, job) == []
    assert not (tmp_path / "gate.waiting").exists()


def test_cancel_before_the_first_event(store, tmp_path):
    job = store.start("long", {"gate": str(tmp_path / "gate")})
    wait_for(lambda: of(store, job))
    store.cancel(job.id)
    assert ended(job).status == "cancelled"
    assert of(store, job) == []


def test_without_a_tidying_playbook_the_message_names_the_task(store, tmp_path):
    (store.project / "playbooks/tidy_long.yml").unlink()
    job = store.start("long", {"gate": str(tmp_path / "gate")})
    wait_for((tmp_path / "gate.waiting").exists)
    wait_for(lambda: job.view().current_task)
    store.cancel(job.id)
    ended(job)
    assert job.result["message"].startswith("Cancelled at “Wait for the gate”.")


CUT = "The run was cut off at “Wait for the gate”. Run it again: it takes up whatever is there."
SECRET = "hunter2-Zaphod"


def in_mid_task(store, tmp_path):
    """A job that was given a secret, once its task runs."""
    job = store.start("long", {"gate": str(tmp_path / "gate"), "token": SECRET})
    wait_for((tmp_path / "gate.waiting").exists)
    wait_for(lambda: job.view().current_task)
    return job


def beside(store, job):
    """The processes of Spark Control's own that see to a job: its supervisor and the one that outlives that."""
    found = []
    for pid in processes._pids():
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            if f"\0{job.id}\0".encode() in line and b"webui.cli" in line:
                found.append(pid)
    return found


def test_a_killed_supervisor_leaves_no_process_and_its_job_is_written_down_as_interrupted(store, tmp_path):
    job = in_mid_task(store, tmp_path)
    (job.dir / "artifacts/run/job_events/x-partial.json").write_text("{}")
    os.kill(job_file(job)["pid"], signal.SIGKILL)
    wait_for(lambda: job_file(job)["status"] == "interrupted", what="the job being written down as interrupted")
    assert job.status == "interrupted"
    assert job.result["message"] == job_file(job, "result.json")["message"] == CUT
    assert of(store, job) == []
    assert not (job.dir / "vars.json").exists()
    assert not list(job.dir.rglob("*-partial.json*"))
    assert store.reconcile() == []
    wait_for(lambda: not beside(store, job), what="the end of the process that outlived the supervisor")


def test_of_a_job_that_lost_every_process_the_next_start_tells_and_no_secret_is_left(store, tmp_path):
    job = in_mid_task(store, tmp_path)
    for pid in beside(store, job):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: job.finished)
    assert job.status == "interrupted"
    assert job.result["message"] == CUT
    assert of(store, job)  # the task's own processes go on, for want of anybody who would end them
    assert SECRET not in whole(job.dir)
    assert not (job.dir / "vars.json").exists()
    assert [other.id for other in store.reconcile()] == [job.id]
    assert store.reconcile() == []
    assert job_file(job)["status"] == "interrupted"
    following = ended(store.start("empty", {}))
    assert following.status == "successful"
    assert of(store, job) == []


def test_a_secret_is_on_no_disk_while_a_job_runs(store, tmp_path):
    job = in_mid_task(store, tmp_path)
    assert SECRET not in whole(tmp_path)
    store.cancel(job.id)
    ended(job)
    assert SECRET not in whole(tmp_path)


def test_a_killed_playbook_is_tidied_after_as_after_a_cancel_and_told(store, tmp_path):
    job = in_mid_task(store, tmp_path)
    os.kill(job_file(job)["playbook_pid"], signal.SIGKILL)
    ended(job)
    assert job.status == "failed"
    assert job.result["ok"] is False
    assert job.result["message"] == "ansible-playbook was killed at “Wait for the gate”. Put away."
    assert (tmp_path / "gate.tidied").read_text() == job.id
    assert of(store, job) == []
    assert not job.cancelled_by


@pytest.mark.parametrize("left", ["", "{", '{"id": "x", "operation": "lo', "[]", "\0" * 400])
def test_a_running_job_whose_file_is_half_written_is_found_by_its_lock(store, tmp_path, left):
    job = in_mid_task(store, tmp_path)
    (job.dir / "job.json").write_text(left)
    found = store.get(job.id)
    assert (found.status, found.operation) == ("running", "long")
    assert [other.id for other in store.running()] == [job.id]
    with pytest.raises(JobRunning):
        store.start("long", {"gate": str(tmp_path / "other")}, exclusive=("long",))
    assert store.cancel(job.id)
    assert ended(found).status == "cancelled"
    assert job_file(job)["status"] == "cancelled"


def test_a_running_jobs_processes_are_left_alone_by_others(store, tmp_path):
    gate = tmp_path / "gate"
    job = store.start("long", {"gate": str(gate)})
    wait_for((tmp_path / "gate.waiting").exists)
    assert ended(store.start("empty", {})).status == "successful"
    gate.touch()
    assert ended(job).status == "successful"


def in_terminal(store, tmp_path):
    """`spark-control run long`, as from a terminal, once it is in mid-task."""
    command = [sys.executable, "-m", "webui.cli", "run", "long", "-e", f"gate={tmp_path / 'gate'}"]
    env = {**os.environ, "SPARK_CONTROL_STATE": str(store.state), "SPARK_CONTROL_PROJECT": str(store.project)}
    run = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    wait_for((tmp_path / "gate.waiting").exists)
    return run


def test_a_second_ctrl_c_waits_for_nothing(store, tmp_path):
    run = in_terminal(store, tmp_path)
    os.killpg(run.pid, signal.SIGINT)
    wait_for((store.list()[0].dir / "cancel").exists)
    os.killpg(run.pid, signal.SIGINT)
    output, _ = run.communicate(timeout=10)
    assert run.returncode == 1
    assert "Cancelled" in output
    assert of(store, store.list()[0]) == []


def test_a_closed_terminal_ends_no_job(store, tmp_path):
    run = in_terminal(store, tmp_path)
    run.stdout.close()
    (tmp_path / "gate").touch()
    run.wait(20)
    assert store.list()[0].status == "successful"


def test_ctrl_c_in_a_terminal_cancels_properly(store, tmp_path):
    run = in_terminal(store, tmp_path)
    os.killpg(run.pid, signal.SIGINT)
    output, _ = run.communicate(timeout=30)
    assert run.returncode == 1
    assert "Put away." in output
    assert store.list()[0].status == "cancelled"
    assert of(store, store.list()[0]) == []


@pytest.mark.parametrize("delay", [0.05, 0.1, 0.2, 0.3])
def test_cancel_at_every_moment_of_the_start(store, tmp_path, delay):
    """Not one of these may let the playbook run on: the gate never opens, so it would last for ever."""
    job = store.start("long", {"gate": str(tmp_path / "gate")})
    threading.Event().wait(delay)  # the moments lie between events that nobody reports
    store.cancel(job.id)
    assert ended(job, 8).status == "cancelled"
    assert of(store, job) == []
