"""GET /health: the cluster, for a monitor. GET /healthz: this process, for whoever keeps it running."""

import time

from flask import Blueprint, current_app, jsonify

from webui.api.swap import lease_json
from webui.core import overview

api = Blueprint("api", __name__)


@api.get("/healthz")
def healthz():
    """Tell that this process answers."""
    return jsonify(status="ok")


@api.get("/health")
def health():
    """Tell how the cluster is: 200 when all is well, 503 when something is not; the body says what."""
    cluster = current_app.extensions["cluster"]
    cluster.ask_live(wait=2.5)
    cluster.facts(fresh=True)
    facts, now = cluster.now(), time.time()
    if facts.probe is None or now - facts.probed > overview.STALE:
        cluster.look()
    problems = [note for note in overview.notices(facts, now) if note.state in ("bad", "attention")]
    status = "degraded" if any(note.state == "bad" for note in problems) else "ok"
    if facts.probe is None:
        status = "unknown"
    live = facts.live
    body = {
        "status": status,
        "problems": [note.text for note in problems],
        "serving": facts.serving and {**facts.serving, "answers": live.answers if live.at else None},
        "vllm": {
            "answers": live.answers,
            "models": list(live.models),
            "running": live.running,
            "waiting": live.waiting,
            "tokens_per_second": live.tokens_per_second,
            "age_seconds": round(now - live.at, 1) if live.at else None,
        },
        "sparks": [_spark(spark) for spark in (facts.probe or {}).get("sparks") or []],
        "lease": lease_json(facts.lease),
        "running": [{"job_id": job.id, "operation": job.operation, "url": f"/jobs/{job.id}"} for job in facts.running],
        "facts_age_seconds": round(now - facts.probed, 1) if facts.probed else None,
    }
    return jsonify(body), 200 if status == "ok" else 503


def _spark(spark):
    kept = ("host", "address", "reachable", "error", "memory", "gpu", "disk")
    return {key: spark.get(key) for key in kept} | {"problems": overview.spark_problems(spark)}
