"""Are the other nodes of a launch alive? Asked from the head, over the SSH that the launcher itself needs."""

from __future__ import annotations

import subprocess
import time

from .spark_docker import ray_node, rows, working

_EVERY = 3.0
# Twice unheard, a few seconds apart: one lost connection is no dead Spark.
_MISSES = 2


class Workers:
    """Looks at every worker's container side by side and never waits for an answer."""

    def __init__(self, nodes: list[dict], container: str):
        self.rows = [
            {"node": node, "ask": None, "next": 0.0, "misses": 0, "alive": False, "there": False} for node in nodes
        ]
        self.container = container

    def trouble(self, grace_over: bool) -> dict | None:
        """Why a worker will not serve, {code, message}, or None. `grace_over`: its server should be there by now."""
        for row in self.rows:
            answer = self._look(row)
            host = row["node"]["host"]
            if row["misses"] >= _MISSES:
                return {"code": "unreachable", "message": f"{host} stopped answering while it loaded."}
            if answer is None:
                continue
            found = rows(answer[1])
            row["there"] = row["there"] or answer[0] == 0
            alive = bool(working(found)) or ray_node(found)
            if not alive and (row["alive"] or grace_over):
                if not row["alive"] and not row["there"]:
                    # Nothing ended that never was: the launcher's words tell why.
                    return {"code": "launch_failed", "message": f"Its container did not start on {host}."}
                what = f"Its container on {host} ended" if answer[0] else f"Its part on {host} stopped by itself"
                return {"code": "crashed", "message": f"{what} while it loaded."}
            row["alive"] = alive
        return None

    def unreachable(self) -> str | None:
        """The first worker that cannot be reached, by name."""
        for row in self.rows:
            self._look(row)
        return next((row["node"]["host"] for row in self.rows if row["misses"] >= _MISSES), None)

    def close(self) -> None:
        """End the questions that are still open."""
        for row in self.rows:
            if row["ask"]:
                row["ask"].kill()
                row["ask"].communicate()

    def _look(self, row: dict) -> tuple[int, bytes] | None:
        """An answer that has just come, (exit code, output), or None; asks again when it is time."""
        if row["ask"] is None:
            if time.monotonic() >= row["next"]:
                row["ask"] = self._ask(row["node"]["address"])
            return None
        if row["ask"].poll() is None:
            return None
        output, _said = row["ask"].communicate()
        code, row["ask"], row["next"] = row["ask"].returncode, None, time.monotonic() + _EVERY
        row["misses"] = row["misses"] + 1 if code == 255 else 0
        return None if code == 255 else (code, output)

    def _ask(self, address: str) -> subprocess.Popen:
        # The name was checked when the plan was made, and no shell of this host reads it.
        options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=3", "-o", "ServerAliveInterval=2"]
        command = ["ssh", *options, "--", address, f"docker top {self.container} -eo pid,args"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, **quiet)
