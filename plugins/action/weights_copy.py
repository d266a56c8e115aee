"""Ansible action: decide from every Spark's look who sends a model to whom, and put what came of it into words.

Those two steps (`planned`, `told`) run on the controller alone; the others run the module, with the Sparks' addresses.
"""

from __future__ import annotations

from pathlib import Path

from ansible.plugins.action import ActionBase
from ansible_collections.spark.control.plugins.module_utils import spark_copy, spark_report
from ansible_collections.spark.control.plugins.module_utils.spark_transfer import Trouble, amount

_OWN = ("source", "to", "operation", "plan", "hashes")


class ActionModule(ActionBase):
    """See plugins/modules/weights_copy.py."""

    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """One step: here, or on the Spark."""
        super().run(tmp, task_vars)
        wish = dict(self._task.args)
        seen = {
            name: spark_report.per_host(task_vars, f"__weights_copy_{name}")
            for name in ("looked", "planned", "started", "watched", "settled", "hashed", "stopped")
        }
        peers, here = peers_of(task_vars), task_vars["inventory_hostname"]
        plan = (next(iter(seen["planned"].values()), None) or {}).get("plan") or {}
        preview = bool(task_vars.get("ansible_check_mode"))
        if wish["state"] == "planned":
            return planned(wish, seen["looked"], peers)
        if wish["state"] == "told":
            return {"changed": False, "result": Outcome(wish, plan, seen, preview).result()}
        given = {key: value for key, value in wish.items() if key not in _OWN}
        if wish["state"] in ("started", "watched"):
            given["copies"] = [copy for copy in plan["copies"] if copy["runner"] == here]
        elif wish["state"] == "hashed":
            given["manifest"] = plan["manifest"]
        elif wish["state"] == "finished":
            problem = went_wrong(here, plan, seen) if not preview else None
            if problem:
                return {"changed": False, "done": True, "problem": problem, "message": problem["message"]}
            hashes = (seen["hashed"].get(plan["source"]) or {}).get("hashes") or {}
            rows = [row | {"sha256": row["sha256"] or hashes.get(row["path"])} for row in plan["manifest"]["files"]]
            given["manifest"] = plan["manifest"] | {"files": rows}
        else:
            given["peers"] = [peer for host, peer in peers.items() if host != here]
        answer = self._execute_module(module_args=given, task_vars=task_vars)
        if wish["state"] == "started" and answer.get("changed"):
            answer["diff"] = listed(given["copies"], plan["manifest"])
        return answer


def peers_of(task_vars: dict) -> dict[str, dict]:
    """{host: {host, address, user}} of the play's Sparks; the address is the fast link's where there is one."""
    peers = {}
    for host in task_vars["ansible_play_hosts_all"]:
        known = task_vars["hostvars"][host]
        addresses = (known.get(key) for key in ("spark_link_address", "cluster_address", "ansible_host"))
        address = next((str(address) for address in addresses if address), host)
        peers[host] = {"host": host, "address": address, "user": str(known.get("ansible_user") or "")}
    return peers


def planned(wish: dict, answers: dict, peers: dict) -> dict:
    """{changed, plan, problem}: see RETURN in plugins/modules/weights_copy.py."""
    try:
        plan = Plan(wish, answers, peers).plan()
    except Trouble as trouble:
        return {"changed": False, "plan": {}, "problem": trouble.problem(), "message": str(trouble)}
    return {"changed": False, "plan": plan, "message": "decided"}


def listed(copies: list[dict], manifest: dict) -> dict:
    """The diff of what is sent, by the names that the files have in the model."""
    names = {link["to"]: link["path"].split("/", 2)[-1] for link in manifest["links"] if manifest["kind"] == "cache"}
    sizes = {row["path"]: amount(row["size"]) for row in manifest["files"]}
    rows = [f"{copy['to']}: {names.get(path, path)} ({sizes[path]})\n" for copy in copies for path in copy["paths"]]
    return {"before": "", "after": "".join(rows)}


class Plan:
    """Who sends what to whom."""

    def __init__(self, wish: dict, answers: dict, peers: dict):
        self.name, self.answers, self.peers = wish["name"], answers, peers
        self.by_hash = wish.get("verify") == "hash"
        self.looks = {host: answer["looked"] for host, answer in answers.items() if answer.get("looked")}
        asked = wish.get("to") or []
        asked = asked.split(",") if isinstance(asked, str) else asked  # from a command line, -e to=spark2
        self.source = self.choose(wish.get("source"), asked)
        to = asked or [host for host in answers if host != self.source]
        self.to = list(dict.fromkeys(host for host in to if host != self.source))
        if not self.to:
            raise Trouble("no_host", f"There is no other Spark than {self.source} to copy {self.name} to.")
        unknown = [host for host in self.to if host not in answers]
        if unknown:
            raise Trouble("no_host", f"There is no Spark {unknown[0]} that serves models.")

    def choose(self, asked: str | None, to: list) -> str:
        """The Spark to copy from: the one asked for, else the first that has it whole."""
        if asked and asked not in self.answers:
            raise Trouble("no_host", f"There is no Spark {asked} that serves models.")
        for host in [asked] if asked else [*sorted(self.answers, key=lambda host: host in to)]:
            if (self.looks.get(host) or {}).get("complete"):
                return host
        if asked and asked in self.looks:
            raise Trouble("not_whole", f"{self.name} is not whole on {asked}: {self.looks[asked]['reason']}.")
        told = [self.silent(host) for host in ([asked] if asked else self.answers) if host not in self.looks]
        if asked or len(told) == len(self.answers):
            raise Trouble(told[0]["code"], told[0]["message"])
        why = "; ".join(f"{host}: {look['reason']}" for host, look in self.looks.items())
        raise Trouble("not_whole", " ".join([f"No Spark has the whole of {self.name} ({why}).",
                                             *(problem["message"] for problem in told)]))  # fmt: skip

    def silent(self, host: str) -> dict:
        """Why a Spark's look says nothing."""
        answer = self.answers[host]
        if answer.get("problem"):
            return {"code": answer["problem"]["code"], "message": f"{host}: {answer['problem']['message']}"}
        code = "unreachable" if answer.get("unreachable") else "failed"
        return {"code": code, "message": f"{spark_report.fault(host, answer)}."}

    def plan(self) -> dict:
        """{name, source, manifest, copies, targets, rows: {host: {unchanged, problem, bytes}}}."""
        manifest = self.looks[self.source]["manifest"]
        plan = {"name": self.name, "source": self.source, "manifest": manifest, "copies": [], "targets": []}
        plan |= {"rows": {}, "runners": []}
        for host in self.to:
            row = plan["rows"][host] = {"unchanged": False, "problem": None, "bytes": 0}
            try:
                copy = self.copy(host, manifest, row)
            except Trouble as trouble:
                row["problem"] = trouble.problem()
                continue
            if copy:
                plan["copies"].append(copy)
                plan["runners"] = sorted({*plan["runners"], copy["runner"]})
            if not row["unchanged"] or self.by_hash:
                plan["targets"].append(host)
        return plan

    def copy(self, host: str, manifest: dict, row: dict) -> dict | None:
        """How a Spark gets what it lacks, or None where it lacks nothing that would have to be sent."""
        if host not in self.looks:
            problem = self.silent(host)
            raise Trouble(problem["code"], problem["message"])
        here, far = self.looks[self.source], self.looks[host]
        row["unchanged"] = spark_copy.whole(manifest, far)
        missing = spark_copy.lacking(manifest, far["have"])
        paths = missing
        if manifest["kind"] == "cache":  # what is named by its content and came whole is not sent again
            paths = [file for file in missing if far["staged"].get(file["path"]) != file["size"]]
        row["bytes"] = sum(file["size"] for file in missing)
        if not paths:
            return None
        need = sum(file["size"] - min(far["staged"].get(file["path"], 0), file["size"]) for file in paths)
        if need > far["free"]:
            raise Trouble(
                "disk_full",
                f"{self.name} needs {amount(need)} more on {host}, and {amount(far['free'])} are free in "
                f"{Path(far['root']).parent}.",
            )
        if far.get("closed"):
            raise Trouble("not_writable", f"{self.name} cannot be put on {host}: {far['closed']}")
        for side in (self.source, host):
            if not self.looks[side]["rsync"]:
                raise Trouble("rsync_missing", f"{side} has no rsync: sudo apt install rsync.")
        refused = here["reaches"].get(host)
        push = refused is None
        if not push and far["reaches"].get(self.source) is not None:
            words = refused["words"].format(near=self.source, far=host)
            code, middle = refused["code"], self.middle(host)
            if middle:
                code = "no_key"
                words = f"neither {self.source} nor {host} has a key for the other; copy it to {middle} first, then on"
            elif code == "no_key":
                words = f"neither {self.source} nor {host} is let in by the other; run mesh_ssh_keys first"
            raise Trouble(code, f"{self.name} cannot be sent to {host}: {words}.")
        copy = {"to": host, "runner": self.source if push else host, "direction": "push" if push else "pull"}
        copy |= {
            "kind": manifest["kind"],
            "peer": self.peers[host if push else self.source],
            "root": here["root"],
            "stage": far["stage"],
        }
        coming = sum(file["size"] for file in paths)
        total = manifest["bytes"]
        return copy | {"paths": [file["path"] for file in paths], "total": total, "base": total - coming}

    def middle(self, host: str) -> str | None:
        """A Spark that reaches the source and that one: mesh_ssh_keys gives the head keys, and nobody else."""
        for middle, look in self.looks.items():
            if all(look["reaches"].get(side, "") is None for side in (self.source, host)):
                return middle
        return None


def went_wrong(host: str, plan: dict, seen: dict) -> dict | None:
    """Why the copy to a Spark did not arrive, or None."""
    copy = next((copy for copy in plan["copies"] if copy["to"] == host), None)
    if copy is None:
        return None
    runner = copy["runner"]
    watched, started = (seen[name].get(runner) or {} for name in ("watched", "started"))
    last = started if not watched or watched.get("skipped") else watched
    if last.get("unreachable") or last.get("failed"):
        code = "unreachable" if last.get("unreachable") else "failed"
        more = " The copy goes on there; run it again to see how far it is." if started.get("copies") else ""
        return {"code": code, "message": f"{spark_report.fault(runner, last)}.{more}"}
    problem = last.get("problem") or ((last.get("copies") or {}).get(host) or {}).get("problem")
    if not problem:
        return None
    if "words" not in problem:
        return problem
    far = copy["to"] if copy["direction"] == "push" else plan["source"]
    words = problem["words"].format(near=runner, far=far)
    message = f"The copy of {plan['name']} to {host} failed: {words}; what came stays, and the next copy goes on there."
    return {"code": problem["code"], "message": message}


class Outcome:
    """One run's registered results as one result; the role's README describes it."""

    def __init__(self, wish: dict, plan: dict, seen: dict, preview: bool):
        self.wish, self.plan, self.seen, self.preview = wish, plan, seen, preview
        self.name, self.operation = wish["name"], wish.get("operation", "copy_weights")
        self.by_hash = wish.get("verify") == "hash"

    def result(self) -> dict:
        """The whole of it."""
        base = {"operation": self.operation, "ok": False, "changed": False, "outcome": "refused", "reason": None}
        base |= {"name": self.name, "source": self.plan.get("source"), "bytes": 0, "sparks": [], "problems": []}
        base |= {"verified": "hash" if self.by_hash else "size", "log_tail": []}
        if self.operation.startswith("tidy_"):
            return base | self.stopped()
        if not self.plan:
            answer = next(iter(self.seen["planned"].values()), {})
            problem = answer.get("problem") or {"code": "failed", "message": "No Spark could be asked."}
            return base | {"reason": problem["code"], "message": problem["message"], "problems": [problem]}
        rows = [self.row(host) for host in self.plan["rows"]]
        base |= {
            "sparks": rows,
            "bytes": self.plan["manifest"]["bytes"],
            "changed": any(row["changed"] for row in rows),
        }
        bad = [row for row in rows if not row["ok"]]
        done = [row["host"] for row in rows if row["ok"] and row["changed"]]
        same = [row["host"] for row in rows if row["ok"] and not row["changed"]]
        size = f"{amount(base['bytes'])} in {len(self.plan['manifest']['files'])} files"
        words = [row["message"] for row in bad]
        if done and self.preview:
            words.append(
                f"{self.name} would be copied from {self.plan['source']} to {spark_report.join(done)}: {size}."
            )
        elif done:
            words.append(
                f"{self.name} is copied from {self.plan['source']} to {spark_report.join(done)}: {size}, "
                f"verified by {base['verified']}."
            )
        if same:
            checked = ", verified by hash" if self.by_hash and not self.preview else ""
            words.append(f"{self.name} is whole on {spark_report.join(same)} already{checked}.")
        base["outcome"] = "failed" if bad else "preview" if self.preview and done else "copied" if done else "unchanged"
        base["problems"] = [{"host": row["host"], "code": row["reason"], "message": row["message"]} for row in bad]
        base["log_tail"] = [line for row in bad for line in self.log_of(row["host"])]
        return base | {"ok": not bad, "reason": bad[0]["reason"] if bad else None, "message": " ".join(words)}

    def row(self, host: str) -> dict:
        """What came of one target: {host, ok, changed, bytes, reason, message}."""
        plan = self.plan["rows"][host]
        settled = self.seen["settled"].get(host) or {}
        row = {"host": host, "ok": True, "changed": not plan["unchanged"], "bytes": plan["bytes"], "reason": None}
        problem = plan["problem"] or (went_wrong(host, self.plan, self.seen) if not self.preview else None)
        if not problem and (settled.get("unreachable") or settled.get("failed")):
            problem = {"code": "unreachable", "message": f"{spark_report.fault(host, settled)}."}
        if not problem and settled.get("problem"):
            problem = {"code": settled["problem"]["code"], "message": f"{host}: {settled['problem']['message']}"}
        if problem:
            began = any(copy["to"] == host for copy in self.plan["copies"]) and not self.preview
            return row | {"ok": False, "changed": began, "reason": problem["code"], "message": problem["message"]}
        return row | {"message": "whole already" if plan["unchanged"] else "copied"}

    def log_of(self, host: str) -> list[str]:
        """The last lines of rsync's log about one target."""
        for answer in self.seen["watched"].values():
            lines = ((answer.get("copies") or {}).get(host) or {}).get("log_tail")
            if lines:
                return lines
        return []

    def stopped(self) -> dict:
        """After a cancel."""
        answers = self.seen["stopped"]
        words = [line for answer in answers.values() for line in answer.get("stopped") or []]
        silent = [
            f"{spark_report.fault(host, answer)}." for host, answer in answers.items() if answer.get("unreachable")
        ]
        kept = f"Cancelled: {spark_report.join(words)}; what came stays, and the next copy goes on there."
        message = " ".join([kept if words else "Cancelled: no copy was running.", *silent])
        return {"ok": not silent, "changed": bool(words), "outcome": "stopped", "message": message}
