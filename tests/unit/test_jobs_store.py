"""The jobs' folders as they are found: ended, cut off, half-written, too many."""

import json
import os
import subprocess
import sys
import time

import pytest

from tests.integration.jobs_project import lay
from webui.jobs import extra, processes
from webui.jobs.environment import environment, shown_command, with_runner
from webui.jobs.folder import new_id, take
from webui.jobs.supervisor import _masked, _strings

BROKEN = ["", "{", "[]", "null", '{"operation": 5}', '{"operation": "swap"}', "\xff" * 9, "[" * 99999]
NO_IDS = ["", "..", "../x", "20260101-000000-abcd/..", "x" * 999, None, 5, "20260101-000000-abcd"]


@pytest.fixture
def store(tmp_path):
    return lay(tmp_path)


def put(store, number, **more):
    """Lay a finished job by hand."""
    created = 1_700_000_000 + number
    folder = store.folder / new_id(created)
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    data = {"id": folder.name, "operation": "swap", "variables": {"model": "a"}, "created": created, "started": created,
            "status": "successful", "ended": created + 10, "seconds": 10.0, "changed": True}  # fmt: skip
    (folder / "job.json").write_text(json.dumps(data | more))
    (folder / "result.json").write_text(json.dumps({"operation": "swap", "ok": True, "message": str(number)}))
    return folder


def test_newest_first_and_only_as_many_as_asked(store):
    for number in range(5):
        put(store, number)
    assert [job.result["message"] for job in store.list(limit=3)] == ["4", "3", "2"]
    assert store.list(operation="probe") == []


def test_broken_folders_break_nothing(store):
    good = put(store, 1)
    for number, text in enumerate(BROKEN):
        put(store, 10 + number).joinpath("job.json").write_text(text)
    (put(store, 30) / "job.json").unlink()
    put(store, 31).joinpath("result.json").write_text("{")
    (store.folder / "something else").mkdir()
    (store.folder / "20260101-000000-abcd").write_text("a file")
    assert [job.dir for job in store.list()][-1] == good
    assert len(store.list()) == 2
    assert store.list()[0].result["message"] == "swap is done; nothing changed."
    assert store.running() == []
    assert store.reconcile() == []
    store.prune()


@pytest.mark.parametrize("job_id", NO_IDS)
def test_an_id_that_is_none_finds_no_job(store, job_id):
    assert store.get(job_id) is None
    assert store.cancel(job_id) is False


def test_status_comes_from_the_lock(store):
    folder = put(store, 1, status=None, ended=None, seconds=None)
    (folder / "result.json").unlink()
    job = store.get(folder.name)
    assert job.status == "interrupted"
    assert (
        job.result["message"]
        == "The run was cut off before its first task. Run it again: it takes up whatever is there."
    )
    lock = take(folder / "lock")
    assert store.get(folder.name).status == "starting"
    assert [other.id for other in store.running()] == [job.id]
    (folder / "job.json").write_text(json.dumps({**json.loads((folder / "job.json").read_text()), "playbook_pid": 1}))
    assert store.get(folder.name).status == "running"
    (folder / "cancel").write_text("{}")
    assert store.get(folder.name).status == "cancelling"
    os.close(lock)
    assert [other.id for other in store.reconcile()] == [job.id]
    assert json.loads((folder / "job.json").read_text())["status"] == "interrupted"


def test_the_expected_time_is_the_median_of_like_runs(store):
    for number, seconds in enumerate([10, 30, 20]):
        put(store, number, seconds=seconds, phases={"Launch": seconds / 10})
    put(store, 5, seconds=500, status="failed")
    put(store, 6, seconds=500, check=True)
    put(store, 7, seconds=1, changed=False)
    put(store, 8, seconds=99, variables={"model": "b"})
    assert store.expected_seconds("swap", {"model": "a"}) == 20
    assert store.expected_phases("swap", {"model": "a"}) == {"Launch": 2.0}
    assert store.expected_seconds("swap", {"model": "c"}) is None


def test_old_jobs_go_and_background_ones_sooner(store, monkeypatch):
    monkeypatch.setenv("SPARK_CONTROL_KEEP_JOBS", "3")
    for number in range(6):
        put(store, number)
        put(store, 100 + number, background=True)
    kept = put(store, -5, status=None)
    lock = take(kept / "lock")  # old, but it runs
    (store.folder / ".new-x").mkdir()
    os.utime(store.folder / ".new-x", (0, 0))
    store.prune()
    os.close(lock)
    assert [job.result["message"] for job in store.list(limit=3)] == ["5", "4", "3"]
    assert len(store.list(background=True)) == 3 + 5 + 1
    assert kept.exists()
    assert not (store.folder / ".new-x").exists()


def test_ids_sort_by_time():
    assert new_id(1_700_000_000.25) == "20231114-221320-4000"
    assert new_id(1_700_000_000.25) < new_id(1_700_000_000.75) < new_id(1_700_000_001)


def test_a_signal_misses_a_process_that_took_over_the_number():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        begun = processes.started(child.pid)
        assert not processes.send(child.pid, 15, begun=begun - 1)
        assert child.poll() is None
        assert processes.send(child.pid, 15, begun=begun)
        assert child.wait(10) == -15
    finally:
        child.kill()
    assert not processes.send(child.pid, 15, begun=begun)


def test_only_tagged_processes_of_this_state_folder_are_found(tmp_path):
    def spawn(**tags):
        return subprocess.Popen(["sleep", "60"], env={"PATH": os.environ["PATH"], **tags})

    here = {"SPARK_CONTROL_STATE": str(tmp_path)}
    mine = spawn(SPARK_CONTROL_JOB="a", **here)
    others = [spawn(SPARK_CONTROL_JOB="a", SPARK_CONTROL_STATE="/elsewhere"), spawn()]
    others.append(spawn(SPARK_CONTROL_JOB="b", **here))
    try:
        deadline = time.monotonic() + 10
        while len(processes.tagged(tmp_path)) < 2 and time.monotonic() < deadline:
            os.sched_yield()
        assert processes.end(tmp_path, {"a"}) == [mine.pid]
        assert mine.wait(10) == -15
        assert [other.poll() for other in others] == [None] * 3
    finally:
        for process in [mine, *others]:
            process.kill()
            process.wait()


def test_the_environment_is_made_from_nothing(tmp_path):
    base = {
        "PATH": "/usr/bin",
        "HOME": "/h",
        "HF_TOKEN": "x",
        "ANSIBLE_FORKS": "9",
        "SPARK_X": "1",
        "LD_PRELOAD": "x",
        "PYTHONPATH": "x",
    }
    env = environment(tmp_path, tmp_path / "state", "job", base)
    assert set(env) == {
        "PATH", "HOME", "ANSIBLE_FORKS", "SPARK_X", "LANG", "LC_ALL", "ANSIBLE_CONFIG",
        "SPARK_CONTROL_JOB", "SPARK_CONTROL_STATE",
    }  # fmt: skip


def test_the_project_s_own_callbacks_are_carried_over(tmp_path):
    (tmp_path / "ansible.cfg").write_text("[defaults]\ncallback_plugins = a/b:c\nstdout_callback = spark\n")
    env = with_runner({"ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg")}, tmp_path, "/runner")
    assert env["ANSIBLE_CALLBACK_PLUGINS"] == f"{tmp_path}/a/b:{tmp_path}/c:/runner"
    assert env["ORIGINAL_STDOUT_CALLBACK"] == "spark"
    assert env["ANSIBLE_STDOUT_CALLBACK"] == "awx_display"


def test_the_line_for_a_shell_survives_quoting(monkeypatch):
    monkeypatch.setenv("ANSIBLE_INVENTORY", "inventory/demo")
    line = shown_command("swap", {"model": "a b'$(id)", "force": True, "token": "********"}, check=True, diff=True)
    assert line == (
        "ansible-playbook -i inventory/demo playbooks/swap.yml "
        """-e '{"model": "a b'"'"'$(id)"}' -e '{"force": true}' -e 'token=********' --check --diff"""
    )


def test_variables_survive_their_wrapping():
    value = {"a": ["{{ x }}", 1, None, True, {"b": "c"}]}
    wrapped = {"a": [{"__ansible_unsafe": "{{ x }}"}, 1, None, True, {"b": {"__ansible_unsafe": "c"}}]}
    assert extra.unsafe(value) == wrapped
    assert extra.take(extra.keep(value)) == value


def test_a_program_reads_the_variables_once_and_whole_and_nothing_is_left(tmp_path):
    value = {"text": "x" * 200_000}  # more than a pipe holds
    with extra.Pipe(tmp_path / "vars.json", value):
        read = subprocess.run(["cat", tmp_path / "vars.json"], capture_output=True, check=True).stdout
        assert json.loads(read) == extra.unsafe(value)
        assert list(tmp_path.iterdir()) == []
    with extra.Pipe(tmp_path / "vars.json", value):
        pass  # nobody came
    assert list(tmp_path.iterdir()) == []


def test_secrets_are_masked_wherever_they_stand():
    secrets = _strings([{"a": ["hunter2", "hunter22"]}, 123456, "abc", None])
    assert secrets == ["hunter22", "hunter2", "123456"]
    assert _masked({"hunter2": ["x hunter22 y", 5, {"z": "hunter2123456"}]}, secrets) == {
        "********": ["x ******** y", 5, {"z": "****************"}]
    }
