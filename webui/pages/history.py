"""A job's page, live while it runs, and the list of all jobs."""

import time

from flask import Blueprint, Response, current_app, render_template, request
from jinja2_fragments.flask import render_block
from markupsafe import escape

from webui.core import fragments, streams, words
from webui.core.problems import Problem
from webui.jobs import JobView
from webui.pages import cluster, jobs, progress

pages = Blueprint("history", __name__)
PAGE = 30
FRAGMENTS = ("headline", "steps", "end")


def find(job_id):
    """The Job of an id, or Problem 404."""
    job = jobs.get(job_id) if words.JOB_ID.fullmatch(job_id) else None
    if job is None:
        raise Problem(404, "There is no such job.")
    return job


@pages.get("/jobs")
def history():
    """The jobs, newest first; ?before=ID shows older ones."""
    before = request.args.get("before", "")
    if before and not words.JOB_ID.fullmatch(before):
        raise Problem(404, "There is no such job.")
    rows = [job for job in cluster.ledger.jobs() if not job.background and (not before or job.id < before)]
    rows, more = rows[:PAGE], len(rows) > PAGE
    facts = cluster.facts()
    shown = [
        (job, words.name_of(job.operation, job.variables, facts.titles), progress.STATUS[job.status]) for job in rows
    ]
    return render_template("jobs.html", rows=shown, older=rows[-1].id if more else None, before=before, at=time.time())


@pages.get("/jobs/<job_id>")
def job(job_id):
    """One job."""
    return render_template("job.html", **_context(find(job_id)))


def _context(found, view=None):
    return {"job": progress.of(found, cluster.facts(), jobs._get_current_object(), view), "at": time.time()}


@pages.get("/jobs/<job_id>/stream")
def stream(job_id):
    """The fragments of a job's page, each when it changed; ends with `done`."""
    return streams.respond(_fragments(find(job_id), streams.watcher(), current_app._get_current_object()))


def _fragments(found, over, app):
    sent, view, beaten, rendered, dirty = {}, JobView(), time.monotonic(), 0.0, True

    def fresh():
        with app.app_context():
            values = _context(found, view)
            for name in FRAGMENTS:
                html = render_block("job.html", name, **values)
                if words.still(html) != sent.get(name):
                    sent[name] = words.still(html)
                    yield streams.event(name, html)

    view.feed_all(found.events())
    with app.extensions["cluster"].watching():
        yield from fresh()
        for event in found.follow(after=view.counter, heartbeat=0.2):
            if over():
                return
            if event is not None:
                view.feed(event)
                dirty = True
            # A burst of events is one change of the page, not fifty.
            if dirty and time.monotonic() - rendered >= 0.1:
                found = _again(app, found)
                rendered, dirty = time.monotonic(), False
                yield from fresh()
            elif event is None and time.monotonic() - rendered >= 1.0:
                rendered, found = time.monotonic(), _again(app, found)
                yield from fresh()
            if time.monotonic() - beaten >= streams.HEARTBEAT:
                beaten = time.monotonic()
                yield streams.event("beat", str(int(time.time())))
        found = _again(app, found)
        yield from fresh()
        yield streams.event("done", "")


def _again(app, found):
    return app.extensions["jobs"].get(found.id) or found


@pages.get("/jobs/<job_id>/output")
def output(job_id):
    """What ansible-playbook printed: text for a browser or curl, escaped for the page's fold."""
    text, cut = progress.raw_output(find(job_id))
    if cut:
        text = "(only the end is shown; the job's folder has it all)\n" + text
    if fragments.asked():
        return Response(escape(text or "Nothing was printed yet."), mimetype="text/html")
    return Response(text, mimetype="text/plain")


@pages.get("/jobs/<job_id>/cancel")
def ask_cancel(job_id):
    """The question before a job is cancelled."""
    found = find(job_id)
    values = _context(found)
    text = progress.CANCEL.get(found.operation, "The run ends within about ten seconds. What it has done stays done.")
    return render_template("cancel.html", text=text, fragment=fragments.asked(), **values)


@pages.post("/jobs/<job_id>/cancel")
def cancel(job_id):
    """Cancel the job and go back to its page."""
    found = find(job_id)
    jobs.cancel(found.id)
    return fragments.lead(f"/jobs/{found.id}")
