"""Ansible action: decide from every Spark's look who sends a model to whom.

An action plugin, because it reads nothing but its arguments and what was registered.
"""

from __future__ import annotations

from pathlib import Path

from ansible.plugins.action import ActionBase
from ansible_collections.spark.control.plugins.module_utils import spark_copy, spark_report
from ansible_collections.spark.control.plugins.module_utils.spark_transfer import Trouble, amount


class ActionModule(ActionBase):
    """See plugins/modules/weights_copy_plan.py."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Read the looks, decide."""
        super().run(tmp, task_vars)
        _unused, wish = self.validate_argument_spec(
            {
                "name": {"type": "str", "required": True},
                "looked": {"type": "str", "required": True},
                "source": {"type": "str"},
                # From a command line it is text, -e to=spark2,spark3.
                "to": {"type": "list", "elements": "str", "default": []},
                "verify": {"type": "str", "choices": ["size", "hash"], "default": "size"},
            }
        )
        return planned(wish, spark_report.per_host(task_vars, wish["looked"]), spark_report.peers(task_vars))


def planned(wish: dict, answers: dict, peers: dict) -> dict:
    """{changed, plan, problem}: see RETURN in plugins/modules/weights_copy_plan.py."""
    try:
        plan = Plan(wish, answers, peers).plan()
    except Trouble as trouble:
        return {"changed": False, "plan": {}, "problem": trouble.problem(), "message": str(trouble)}
    return {"changed": False, "plan": plan, "message": "decided"}


def listed(to: str, manifest: dict, files: list[dict]) -> str:
    """What is sent to a Spark as lines of the diff, by the names that the files have in the model."""
    names = {link["to"]: link["path"].split("/", 2)[-1] for link in manifest["links"] if manifest["kind"] == "cache"}
    return "".join(f"{to}: {names.get(row['path'], row['path'])} ({amount(row['size'])})\n" for row in files)


class Plan:
    """Who sends what to whom."""

    def __init__(self, wish: dict, answers: dict, peers: dict):
        self.name, self.answers, self.peers = wish["name"], answers, peers
        self.by_hash = wish["verify"] == "hash"
        self.looks = {host: answer["looked"] for host, answer in answers.items() if answer.get("looked")}
        asked = wish["to"]
        self.source = self.choose(wish["source"], asked)
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
        copy |= {"paths": [file["path"] for file in paths], "total": total, "base": total - coming}
        return copy | {"listed": listed(host, manifest, paths)}

    def middle(self, host: str) -> str | None:
        """A Spark that reaches the source and that one: mesh_ssh_keys gives the head keys, and nobody else."""
        for middle, look in self.looks.items():
            if all(look["reaches"].get(side, "") is None for side in (self.source, host)):
                return middle
        return None
