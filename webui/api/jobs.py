"""/api/jobs: the jobs, one job, its events as JSON or as a resumable stream, its end."""

import json
import time

from flask import Blueprint, current_app, jsonify, request

from webui.core import streams, words
from webui.core.problems import Problem, wrong_field

api = Blueprint("api_jobs", __name__)


def find(job_id):
    """The Job of an id, or Problem 404."""
    job = current_app.extensions["jobs"].get(job_id) if words.JOB_ID.fullmatch(job_id) else None
    if job is None:
        raise Problem(404, "There is no such job.")
    return job


def as_json(job, full=True):
    """A job as JSON; full: with its tasks and hosts."""
    shown = {
        "job_id": job.id,
        "url": f"/jobs/{job.id}",
        "operation": job.operation,
        "variables": job.variables,
        "status": job.status,
        "check": job.check,
        "asked_by": job.asked_by,
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
        "seconds": job.seconds,
        "result": job.result,
    }
    if not full:
        shown["result"] = shown["result"] and {
            key: shown["result"].get(key) for key in ("ok", "changed", "outcome", "message")
        }
        return shown
    view = job.view()
    told = ("phase", "percent", "current_task", "failed", "tasks")
    expected = current_app.extensions["jobs"].expected_seconds(job.operation, job.variables)
    return shown | {"command": job.command, "expected_seconds": expected, **{key: getattr(view, key) for key in told}}


@api.get("/api/jobs")
def jobs():
    """List the jobs, newest first."""
    limit, before = number("limit", 50, 1, 200), request.args.get("before")
    operation = request.args.get("operation")
    if before is not None and not words.JOB_ID.fullmatch(before):
        raise wrong_field("before", "Expected a job's id.")
    found = [
        job
        for job in current_app.extensions["cluster"].ledger.jobs()
        if not job.background and (before is None or job.id < before) and operation in (None, job.operation)
    ]
    return jsonify(jobs=[as_json(job, full=False) for job in found[:limit]])


@api.get("/api/jobs/<job_id>")
def job(job_id):
    """Tell of a job, with its tasks, hosts and result."""
    return jsonify(as_json(find(job_id)))


@api.get("/api/jobs/<job_id>/events")
def events(job_id):
    """Follow a job: its events above ?after= or Last-Event-ID.

    A stream that ends with the event `end`; a list for callers that accept JSON and no stream.
    """
    found = find(job_id)
    after = number("after", None, 0, 2**31)
    if after is None:
        last = request.headers.get("Last-Event-ID", "")
        after = int(last) if last.isascii() and last.isdigit() and len(last) < 11 else 0
    if request.accept_mimetypes.best_match(["text/event-stream", "application/json"]) == "application/json":
        return jsonify(events=found.events(after=after), ended=found.finished)
    return streams.respond(_follow(found, after, streams.watcher(), current_app.extensions["jobs"]))


def _follow(found, after, over, store):
    beaten = time.monotonic()
    for event in found.follow(after=after, heartbeat=0.5):
        if over():
            return
        if event is not None:
            yield streams.event(event["event"], json.dumps(event, default=str), event["counter"])
            beaten = time.monotonic()
        elif time.monotonic() - beaten >= streams.HEARTBEAT:
            beaten = time.monotonic()
            yield ": still here\n\n"
    ended = store.get(found.id) or found
    yield streams.event("end", json.dumps({"job_id": found.id, "status": ended.status}))


@api.post("/api/jobs/<job_id>/cancel")
def cancel(job_id):
    """Cancel a job: 202, or 409 when it has ended already."""
    found = find(job_id)
    if not current_app.extensions["jobs"].cancel(found.id, by="api"):
        raise Problem(409, f"This job has ended already: {found.status}.")
    return jsonify(job_id=found.id, url=f"/jobs/{found.id}", status="cancelling"), 202


def number(name, default, least, most):
    """A whole number of the query, or Problem 422."""
    text = request.args.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 11 and least <= int(text) <= most):
        raise wrong_field(name, f"Expected a whole number from {least} to {most}.")
    return int(text)
