"""The view of a run, folded from events that ansible-runner wrote (test_jobs_events.json, recorded from a real run)."""

import json
from pathlib import Path

import pytest

from webui.jobs import events
from webui.jobs.view import JobView

RECORDED = json.loads(Path(__file__).with_name("test_jobs_events.json").read_text())


@pytest.fixture
def trimmed():
    return [events.trim(raw, raw["counter"]) for raw in RECORDED]


def until(trimmed, kind, nth=0):
    """The view just after the nth event of a kind."""
    place = [number for number, event in enumerate(trimmed) if event["event"] == kind][nth]
    return JobView().feed_all(trimmed[: place + 1])


def test_each_host_of_each_task_has_its_status(trimmed):
    tasks = {task["name"]: task["hosts"] for task in JobView().feed_all(trimmed).tasks}
    assert tasks["Knock"]["gone"]["status"] == "unreachable"
    assert tasks["Knock"]["localhost"]["status"] == "ok"
    assert tasks["Change something"]["localhost"]["status"] == "changed"
    assert tasks["Leave something out"]["localhost"]["status"] == "skipped"
    assert tasks["Wait until it answers"]["localhost"]["status"] == "ok"
    assert tasks["Try what may fail"]["localhost"]["status"] == "ignored"
    assert tasks["Do each"]["localhost"]["status"] == "failed"
    assert list(tasks) == list(dict.fromkeys(event["task"] for event in trimmed if event["task"]))


def test_a_waiting_task_tells_its_phase(trimmed):
    view = until(trimmed, "runner_retry", 1)
    assert view.current_task == "Wait until it answers"
    assert (view.phase, view.percent, view.message) == ("loading weights", 50, "Weights: 50 %")
    assert view.tasks[-1]["hosts"]["localhost"]["status"] == "retrying"


def test_a_started_task_runs(trimmed):
    view = until(trimmed, "runner_on_start", 0)
    assert view.tasks[0]["hosts"]["localhost"]["status"] == "running"
    assert view.current_task == "Knock"


def test_failures_name_host_task_and_the_item_s_own_reason(trimmed):
    view = JobView().feed_all(trimmed)
    assert [(failure["host"], failure["task"]) for failure in view.failed] == [
        ("gone", "Knock"),
        ("localhost", "Do each"),
    ]
    assert view.failed[0]["message"].startswith("Failed to connect to the host")
    assert view.failed[1]["message"] == "No tea."
    assert view.changed
    assert view.current_task is None


def test_feeding_twice_changes_nothing(trimmed):
    once, twice = JobView().feed_all(trimmed), JobView().feed_all(trimmed).feed_all(trimmed)
    assert once.as_dict() == twice.as_dict()
    json.dumps(once.as_dict())


def test_a_task_s_time_is_that_of_its_slowest_host(trimmed):
    view = JobView().feed_all(trimmed)
    assert view.seconds()["Wait until it answers"] == pytest.approx(0.906, abs=0.01)


def test_argument_checks_show_only_when_they_fail():
    check = {
        "counter": 1, "event": "runner_on_ok", "ident": "run", "created": 1.0, "task": "Check", "task_uuid": "1",
        "action": "ansible.builtin.validate_argument_spec", "res": {}, "duration": 0.1, "ignored": False,
        "play": "p", "role": "r", "host": "a",
    }  # fmt: skip
    assert JobView().feed(check).tasks == []
    failed = JobView().feed({**check, "event": "runner_on_failed", "res": {"msg": "model is required"}})
    assert failed.failed[0]["message"] == "model is required"


def test_an_event_is_trimmed_to_what_is_shown():
    raw = {
        "counter": 4, "event": "runner_on_ok", "created": "2026-01-02T03:04:05", "stdout": "\x1b[0;32mok\x1b[0m\r\n",
        "event_data": {"host": "a", "res": {"msg": "m" * 9000, "invocation": {"x": 1}, "diff": "d" * 30_000}},
    }  # fmt: skip
    event = events.trim(raw, 4)
    assert event["stdout"] == "ok"
    assert event["created"] == 1767323045.0
    assert set(event["res"]) == {"msg", "diff"}
    assert len(event["res"]["msg"]) < 4100
    assert event["res"]["diff"] == {"message": "The difference is too long to show."}


def test_files_that_are_not_final_events_are_ignored(tmp_path):
    folder = tmp_path / "artifacts/run/job_events"
    folder.mkdir(parents=True)
    good = json.dumps({"counter": 2, "event": "verbose", "uuid": "b", "stdout": "x", "created": "2026-01-02T03:04:05"})
    (folder / "2-b.json").write_text(good)
    (folder / "10-c.json").write_text(good)
    (folder / "1-a.json").write_text('{"half":')
    (folder / "a-partial.json").write_text(good)
    (folder / "3-a-partial.json").write_text(good)
    (folder / "4-d.json.tmp").write_text(good)
    (folder / "5-e.json").write_text("[]")
    assert [event["counter"] for event in events.read(tmp_path)] == [2, 10]
    assert [event["counter"] for event in events.read(tmp_path, after=2)] == [10]
