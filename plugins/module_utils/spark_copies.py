"""The copies of one model that this Spark's rsync makes: each is started, watched and ended here, by its record.

A copy is {to, runner, direction: push|pull, kind, peer, root, stage, paths, listed, total, base}, as the controller
planned it: `base` and `total` are the bytes that are there before and that the whole has, `listed` its lines in the
diff. The record is spark_transfer's, and {name, to, base, process}.
"""

from __future__ import annotations

import os
import time

from . import spark_copy, spark_transfer
from .spark_write import write_text

_LOOK_EVERY = 0.25


class Copies:
    """The copies of one model that run on this Spark."""

    def __init__(self, name: str, state_dir: str):
        self.name, self.state_dir = name, state_dir

    def start(self, copies: list[dict], key: str) -> dict:
        """Start each copy that does not run already: where they are, and whether any was started."""
        changed = False
        for copy in copies:
            with spark_transfer.alone(self.state_dir):
                record = self._record(copy["to"])
                if record and spark_transfer.alive(record.get("process")):
                    continue
                self._start(copy, key)
                changed = True
        return self.state(copies) | {"changed": changed}

    def watch(self, copies: list[dict], seconds: float) -> dict:
        """Watch until there is news, at most that long."""
        until = time.monotonic() + seconds
        first = None
        while True:
            now = self.state(copies)
            if now["done"]:
                return now
            first = first or now
            ended = [to for to, row in now["copies"].items() if row["done"] and not first["copies"][to]["done"]]
            if ended or now["percent"] >= first["percent"] + 2 or time.monotonic() >= until:
                return now
            time.sleep(_LOOK_EVERY)

    def state(self, copies: list[dict]) -> dict:
        """Where all copies are, as one."""
        rows = {copy["to"]: self._state_of(copy) for copy in copies}
        running = {to: row for to, row in rows.items() if not row["done"]}
        if not running:
            return {"done": True, "copies": rows, "message": "copied"}
        total = sum(row["progress"]["total"] for row in running.values()) or 1
        percent = int(sum(row["progress"]["done"] for row in running.values()) * 100 / total)
        words = [row["message"] if len(rows) == 1 else f"to {to} {row['message']}" for to, row in running.items()]
        seconds = max(row["seconds"] for row in running.values())
        told = {"phase": "copying", "percent": min(99, percent), "message": "; ".join(words), "seconds": seconds}
        return {"done": False, "copies": rows} | told

    def stop(self, hosts: list[str], check: bool) -> list[str]:
        """End the copies to these Sparks and say where each was. What came stays."""
        stopped = []
        if not check:
            with spark_transfer.alone(self.state_dir):
                pass  # a start that was under way when the job was cancelled has ended now
        for to in hosts:
            record = self._record(to)
            if record and spark_transfer.alive(record["process"]):
                came = spark_transfer.same_unit(record["base"] + spark_copy.sent(self._tail(to)), record["total"])
                stopped.append(f"the copy to {to} was stopped at {came}")
                if not check:
                    spark_transfer.end(record["process"])
            if record and not check:
                spark_transfer.forget(self.state_dir, self._identity(to))
        return stopped

    def _start(self, copy: dict, key: str) -> None:
        """Start one copy."""
        identity = self._identity(copy["to"])
        spark_transfer.forget(self.state_dir, identity)
        log, listed, code = (
            spark_transfer.record_path(self.state_dir, identity, suffix) for suffix in (".log", ".list", ".exit")
        )
        write_text(listed, "".join(f"{path}\0" for path in copy["paths"]))
        if copy["direction"] == "pull":
            os.makedirs(copy["stage"], exist_ok=True)
        process = spark_transfer.start_detached(spark_copy.rsync_command(copy, key, listed), log, code)
        record = {
            "phase": "copying",
            "total": copy["total"],
            "base": copy["base"],
            "started": time.time(),
            "samples": [],
        }
        record |= {"name": self.name, "to": copy["to"], "process": process}
        spark_transfer.write_record(self.state_dir, identity, record)

    def _state_of(self, copy: dict) -> dict:
        """One copy: how far, or how it ended."""
        to = copy["to"]
        record = self._record(to)
        if record is None:
            problem = {"code": "stopped", "words": "somebody else stopped the copy"}
            return {"done": True, "problem": problem}
        running = spark_transfer.alive(record["process"])
        log = self._tail(to)
        if running:
            told = spark_transfer.gauge(record, record["base"] + spark_copy.sent(log))
            spark_transfer.write_record(self.state_dir, self._identity(to), record)
            return {"done": False, **told}
        code = self._tail(to, ".exit").strip()
        seconds = round(time.time() - record["started"], 1)
        if code == "0":
            return {"done": True, "problem": None, "seconds": seconds}
        problem = {"code": "stopped", "words": "the copy was cut off on {near}"}
        if code:
            problem = spark_copy.fault(int(code), log)
        return {"done": True, "problem": problem, "seconds": seconds, "log_tail": spark_transfer.lines(log)}

    def _identity(self, to: str) -> str:
        """The name of a copy's record."""
        return "copy-" + spark_transfer.transfer_id(self.name, to)

    def _record(self, to: str) -> dict | None:
        """The record of the copy to a Spark, if it is one."""
        record = spark_transfer.read_record(self.state_dir, self._identity(to))
        return record if record and isinstance(record.get("base"), int) else None

    def _tail(self, to: str, suffix: str = ".log") -> str:
        return spark_transfer.tail(spark_transfer.record_path(self.state_dir, self._identity(to), suffix))
