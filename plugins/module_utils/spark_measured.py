"""What launched models were seen to hold: kept on the head Spark, so that the next estimate says how far it was off.

Runs on the Spark and on the controller: Python standard library only.
"""

from __future__ import annotations

import json
import os
import time

from .spark_write import write_json

FILE = "measured.json"
MOST = 64  # launches, and models
LARGEST = 128 * 1024  # bytes


def read_measured(state_dir: str) -> dict:
    """{launches: {digest: row}, models: {repo or path: row}}, a row {estimate, measured (bytes), at (epoch seconds)}.

    Whatever else stands in the file is left out: it is a file that anybody with an account can write.
    """
    path = os.path.join(os.path.expanduser(state_dir), FILE)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            raw = file.read(LARGEST + 1)
        said = json.loads(raw) if len(raw) <= LARGEST else {}
    except (OSError, ValueError, RecursionError):
        said = {}
    return tidy(said)


def tidy(said: object) -> dict:
    """Only what is of the right shape, the newest rows first, at most MOST of each."""
    said = said if isinstance(said, dict) else {}
    return {key: _rows(said.get(key)) for key in ("launches", "models")}


def keep_measured(state_dir: str, plan: dict, estimate: int, measured: int) -> None:
    """Write down what a launch held once it answered; both sizes are bytes on the head."""
    kept = read_measured(state_dir)
    row = {"estimate": int(estimate), "measured": int(measured), "at": round(time.time(), 1)}
    kept["launches"][str(plan["digest"])[:300]] = row
    if name := model_of(plan):
        kept["models"][name] = row
    write_json(os.path.join(os.path.expanduser(state_dir), FILE), tidy(kept))


def recall(measured: object, plan: dict) -> dict | None:
    """The row of exactly this launch, else of another launch of its model: {estimate, measured, at, same}, or None."""
    kept = tidy(measured)
    row = kept["launches"].get(str(plan.get("digest")))
    if row:
        return row | {"same": True}
    row = kept["models"].get(model_of(plan) or "")
    return row | {"same": False} if row else None


def model_of(plan: dict) -> str | None:
    """What a plan's weights are called in a scan: the repo, or the folder of a local model."""
    mounts = plan.get("mounts") or []
    name = plan.get("repo") or (mounts[0]["source"] if mounts else None)
    return str(name)[:300] if name else None


def _rows(said: object) -> dict:
    rows = {}
    for name, row in said.items() if isinstance(said, dict) else ():
        if not isinstance(name, str) or len(name) > 300 or not isinstance(row, dict):
            continue
        sizes = [row.get(key) for key in ("estimate", "measured")]
        at = row.get("at")
        number = isinstance(at, int | float) and not isinstance(at, bool) and 0 <= at < 1e11
        if number and all(isinstance(n, int) and not isinstance(n, bool) and 0 < n < 2**50 for n in sizes):
            rows[name] = {"estimate": sizes[0], "measured": sizes[1], "at": at}
    newest = sorted(rows.items(), key=lambda item: item[1]["at"], reverse=True)[:MOST]
    return dict(newest)
