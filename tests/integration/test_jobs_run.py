"""Jobs from their start to their result, run by a real ansible-playbook."""

import concurrent.futures
import os
import subprocess
import sys

import pytest

from tests.integration.jobs_project import command_lines, ended, job_file, lay, whole
from tests.support import wait_for
from webui.jobs import InvalidVariables, JobRunning, JobStore, UnknownOperation
from webui.jobs.events import TIDY

SECRET = "hunter2-Zaphod"


@pytest.fixture
def store(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("ANSIBLE_", "SPARK_"))]:
        monkeypatch.delenv(name)
    return lay(tmp_path)


def test_a_job_runs_its_playbook_and_keeps_its_result(store):
    job = store.start("swap", {"model": "qwen", "count": "5"})
    assert job.status in ("starting", "running")
    assert [other.id for other in store.running()] == [job.id]
    ended(job)
    assert job.status == "successful"
    assert job.result["message"] == "qwen is serving."
    assert job.changed is True
    assert job.variables == {"model": "qwen", "count": 5}
    assert job.command == """ansible-playbook playbooks/swap.yml -e model=qwen -e '{"count": 5}'"""
    assert job.seconds > 0
    assert job.ended >= job.started >= job.created
    assert store.running() == []
    assert store.latest_result("swap")[1].id == job.id
    assert store.expected_seconds("swap", {"model": "qwen"}) == pytest.approx(job.seconds, abs=0.1)
    assert store.expected_seconds("swap", {"model": "other"}) is None
    assert "Show the model" in store.expected_phases("swap", {"model": "qwen"})
    view = job.view()
    assert [task["name"].split(" : ")[-1] for task in view.tasks] == ["Show the model", "Write it down"]
    assert view.tasks[1]["hosts"]["localhost"]["status"] == "changed"
    assert view.failed == []


def test_the_environment_is_minimal_and_tagged(store, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "not-for-playbooks")
    monkeypatch.setenv("SPARK_KNOB", "for playbooks")
    job = ended(store.start("swap", {"model": "qwen"}))
    env = dict(line.split("=", 1) for line in job.result["env"] if "=" in line)
    assert env["SPARK_CONTROL_JOB"] == job.id
    assert env["SPARK_KNOB"] == "for playbooks"
    assert env["LC_ALL"] == "C.UTF-8"
    assert env["PATH"].split(":")[0] == os.path.dirname(sys.executable)
    assert "HF_TOKEN" not in env
    assert "ANSIBLE_HOST_KEY_CHECKING" not in env
    assert not list(job.dir.rglob("command"))


def test_the_jobs_before_are_named_as_dead(store):
    first = ended(store.start("empty", {}))
    second = ended(store.start("swap", {"model": "qwen"}))
    assert second.result["dead"] == [first.id]


def test_a_template_from_outside_stays_text(store):
    job = ended(store.start("swap", {"model": "{{ lookup('pipe', 'id') }}"}))
    assert job.result["message"] == "{{ lookup('pipe', 'id') }} is serving."


def test_a_secret_is_nowhere(store):
    job = store.start("swap", {"model": "qwen", "token": SECRET})
    seen = command_lines()
    for _ in job.follow():
        seen += command_lines()
    assert job.status == "successful"
    assert SECRET not in seen
    assert SECRET not in whole(job.dir)
    assert job.variables["token"] == "********"
    assert "token=********" in job.command
    assert job.result["said"] == "********"
    assert not (job.dir / "vars.json").exists()


def test_a_failure_says_which_task_failed_where_and_why(store):
    job = ended(store.start("broken", {}))
    assert job.status == "failed"
    assert job.result["ok"] is False
    assert job.result["message"] == "“Look for the moon” failed on localhost: The moon is down."
    assert job.result["problems"][0]["host"] == "localhost"
    assert job.view().failed[0]["message"] == "The moon is down."


def test_an_unreachable_host_is_said_plainly(store):
    job = ended(store.start("absent", {}))
    assert job.status == "failed"
    assert job.result["message"].startswith("gone does not answer: ")
    assert job.result["problems"][0]["code"] == "unreachable"
    assert job.view().tasks[0]["hosts"]["gone"]["status"] == "unreachable"


def test_a_playbook_that_ansible_cannot_read_says_why(store):
    job = ended(store.start("unreadable", {}))
    assert job.status == "failed"
    assert "no_such_keyword" in job.result["message"]


def test_a_result_too_long_to_keep_is_said_to_be(store):
    job = ended(store.start("many", {}))
    last = [event for event in job.events() if event["event"] == "runner_on_ok"][-1]
    assert "was not kept" in last["res"]["message"]
    assert len(last["stdout"]) < 30_000
    assert job.status == "successful"


def test_events_are_followed_live_and_taken_up_by_counter(store):
    job = store.start("many", {})
    first = [event for event in job.follow() if event]
    counters = [event["counter"] for event in first]
    assert counters == sorted(set(counters))
    assert first[-1]["event"] == "playbook_on_stats"
    middle = counters[len(counters) // 2]
    again = store.get(job.id)
    assert [event["counter"] for event in again.follow(after=middle)] == [c for c in counters if c > middle]
    assert [event["counter"] for event in again.events(after=middle)] == [c for c in counters if c > middle]
    assert list(again.follow(after=counters[-1])) == []
    assert again.events(after=TIDY + 5) == []


def test_silence_gives_a_heartbeat(store, tmp_path):
    gate = tmp_path / "gate"
    job = store.start("long", {"gate": str(gate)})
    follow = job.follow(heartbeat=0.3)
    assert next(event for event in follow if event is None) is None
    gate.touch()
    assert [event for event in follow if event][-1]["event"] == "playbook_on_stats"


def test_of_two_exclusive_starts_exactly_one_runs(store, tmp_path):
    gate = tmp_path / "gate"
    other = JobStore(store.state, store.project)

    def start(which):
        try:
            return which.start("long", {"gate": str(gate)}, exclusive=("long", "swap"))
        except JobRunning as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(start, [store, other] * 4))
    jobs = [outcome for outcome in outcomes if not isinstance(outcome, JobRunning)]
    assert len(jobs) == 1
    assert {outcome.job.id for outcome in outcomes if isinstance(outcome, JobRunning)} == {jobs[0].id}
    with pytest.raises(JobRunning):
        store.start("swap", {"model": "qwen"}, exclusive=("long", "swap"))
    assert ended(store.start("empty", {}, exclusive=("swap",))).status == "successful"  # another operation may
    gate.touch()
    assert ended(jobs[0]).status == "successful"
    assert ended(store.start("swap", {"model": "qwen"}, exclusive=("long", "swap"))).status == "successful"


def test_a_preview_keeps_nobody_from_starting(store, tmp_path):
    gate = tmp_path / "gate"
    gate.touch()
    preview = store.start("long", {"gate": str(gate)}, check=True)
    real = store.start("long", {"gate": str(gate)}, exclusive=("long",))
    assert ended(preview).status == ended(real).status == "successful"
    assert preview.command.endswith("--check")
    assert store.latest_result("long")[1].id == real.id


def test_a_job_outlives_the_web_server(store, tmp_path):
    gate = tmp_path / "gate"
    program = (
        "import sys, time; from webui.jobs import JobStore;"
        f"print(JobStore({str(store.state)!r}, {str(store.project)!r})"
        f".start('long', {{'gate': {str(gate)!r}}}).id, flush=True); time.sleep(60)"
    )
    web = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    job = store.get(web.stdout.readline().strip())
    wait_for((tmp_path / "gate.waiting").exists)
    web.kill()
    web.wait()
    assert store.reconcile() == []
    assert [other.id for other in store.running()] == [job.id]
    gate.touch()
    assert ended(job).status == "successful"
    assert [event["event"] for event in job.events()][-1] == "playbook_on_stats"


def test_what_is_not_an_operation_or_not_an_option_is_refused(store):
    with pytest.raises(UnknownOperation, match="swap"):
        store.start("nonsense", {})
    with pytest.raises(UnknownOperation):
        store.start("../playbooks/swap", {})
    with pytest.raises(UnknownOperation):
        store.start("tidy_long", {})
    with pytest.raises(InvalidVariables) as caught:
        store.start("swap", {"modle": "qwen"})
    assert {error["field"] for error in caught.value.errors} == {"modle", "model"}
    assert store.list() == []


def test_a_job_whose_process_cannot_start_has_failed(store, monkeypatch):
    monkeypatch.setattr("webui.jobs.store.sys.executable", "/nonexistent/python")
    job = store.start("empty", {})
    assert job.status == "failed"
    assert "could not be started" in job.result["message"]


def test_background_jobs_are_kept_apart(store):
    job = ended(store.start("empty", {}, background=True, asked_by="timer"))
    assert job.asked_by == "timer"
    assert store.list() == []
    assert [other.id for other in store.list(background=True)] == [job.id]
    assert job_file(job)["background"] is True


def test_a_playbook_without_a_host_did_not_work_out(store):
    playbook = store.project / "playbooks/many.yml"
    playbook.write_text(playbook.read_text().replace("hosts: localhost", "hosts: nobody"))
    job = store.start("many", {})
    ended(job)
    assert job.status == "failed"
    assert "names no host" in job.result["message"]
