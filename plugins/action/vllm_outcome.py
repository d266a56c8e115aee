"""Ansible action: put what came of a swap or a stop into one result, in words that a person understands.

An action plugin, because it reads nothing but what the tasks before it registered.
"""

from __future__ import annotations

from ansible.plugins.action import ActionBase
from ansible_collections.spark.control.plugins.module_utils import spark_report

DICT = {"type": "dict", "default": {}}


class ActionModule(ActionBase):
    """See plugins/modules/vllm_outcome.py."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Collect what was registered, put it into words."""
        super().run(tmp, task_vars)
        name = {"type": "str", "required": True}
        _unused, said = self.validate_argument_spec(
            {
                "operation": {
                    "type": "str",
                    "choices": ["swap", "stop_model", "tidy_swap"],
                    "required": True,
                },
                "head": {"type": "str", "required": True},
                "seen": name,
                "stopped": name,
                "attempt": name,
                **dict.fromkeys(("planned", "decision", "leased", "launched", "answer"), DICT),
            }
        )
        for key in ("seen", "stopped", "attempt"):
            said[key] = spark_report.per_host(task_vars, said[key])
        said["preview"] = bool(task_vars.get("ansible_check_mode"))
        return {"changed": False, "result": Outcome(said).result()}


class Outcome:
    """One run's registered results, read as a story."""

    def __init__(self, said: dict):
        self.said = said
        self.operation = said["operation"]
        self.plan = said["planned"].get("plan") or {}
        self.decision = said["decision"]
        self.previous = self.decision.get("previous")
        self.title = self.plan.get("title") or (self.previous or {}).get("title")

    def result(self) -> dict:
        """The whole result, documented in the role's README."""
        previous = public(self.previous)
        base = {
            "operation": self.operation,
            "ok": False,
            "changed": False,
            "outcome": "refused",
            "reason": self.decision.get("reason"),
            "model": self.plan.get("model") or (self.previous or {}).get("model"),
            "title": self.title,
            "previous": previous,
            "serving": previous,
            "stories": {},
            "log_tail": [],
        }
        for key in ("problems", "warnings", "arithmetic", "stops"):
            base[key] = self.decision.get(key) or []
        return base | self.ending()

    def ending(self) -> dict:
        """What differs by how it ended."""
        if self.operation == "swap" and not self.plan:
            failed = self.said["planned"]
            return {
                "reason": failed.get("reason") or "broken_recipe",
                "message": failed.get("msg") or "No recipe.",
            }
        if self.operation == "tidy_swap":
            return self.tidied()
        if not self.decision:
            return {"reason": "unreachable", "message": "No Spark could be asked."}
        if self.decision["problems"]:
            return {"message": self.refusal(" ".join(sentence(row["message"]) for row in self.decision["problems"]))}
        if self.decision["unchanged"]:
            left_over = self.decision["left_over"]
            return {"ok": True, "changed": left_over, "outcome": "unchanged", "message": self.unchanged()}
        leased = self.said["leased"]
        if leased.get("failed"):
            return {"reason": leased.get("reason") or "lease", "message": self.refusal(leased.get("msg", ""))}
        if self.said["preview"]:
            return {"ok": True, "changed": True, "outcome": "preview", "message": self.preview()}
        return {"changed": True} | (self.stopped() if self.operation == "stop_model" else self.swapped())

    def refusal(self, why: str) -> str:
        """Nothing was touched, and why."""
        verb = "stopped" if self.operation == "stop_model" else "started"
        stays = f" {self.previous['title']} goes on serving." if (self.previous or {}).get("ready") else ""
        return f"{self.title or 'The model'} was not {verb}: {after_colon(why)}{stays}"

    def unchanged(self) -> str:
        """Why there was nothing to do."""
        freed = " What an ended job had left reserved is free again." if self.decision["left_over"] else ""
        if self.operation == "stop_model":
            return f"No model was running; there was nothing to stop.{freed}"
        return f"{self.title} serves already, exactly as its recipe says; there was nothing to change.{freed}"

    def preview(self) -> str:
        """What a real run would do."""
        stops = [f"{row['title']} stops on {spark_report.join(row['hosts'])}" for row in self.decision["stops"]]
        if self.operation == "swap":
            nodes = spark_report.join([node["host"] for node in self.plan["nodes"]])
            stops.append(f"{self.title} starts on {nodes}")
        return ", then ".join(stops) + "."

    def stopped(self) -> dict:
        """How a stop ended, by what is there afterwards."""
        now = self.now()
        if now is None:
            title = (self.previous or {}).get("title") or "The model"
            return {"ok": True, "outcome": "stopped", "serving": None, "message": f"{title} is stopped."}
        why = self.stop_trouble(self.said["stopped"])
        message = f"{self.title} was not stopped: {why or 'its container is still there.'}"
        return {"outcome": "failed", "reason": "stop_failed", "serving": public(now), "message": message}

    def tidied(self) -> dict:
        """What is there after a cancel."""
        now = self.now()
        if now and now["ready"]:
            return {
                "ok": True,
                "outcome": "cancelled",
                "serving": public(now),
                "message": f"{now['title']} serves.",
            }
        title = (self.previous or {}).get("title")
        if now:
            why = self.stop_trouble(self.said["stopped"]) or "Its container is still there."
            return {
                "outcome": "failed",
                "serving": public(now),
                "message": f"{title} was left half-started. {why}",
            }
        stopped = f"{title} was still starting and is stopped. " if self.previous else ""
        message = f"{stopped}Nothing is serving now; choose a model to start."
        return {
            "ok": True,
            "changed": bool(self.previous),
            "outcome": "cancelled",
            "serving": None,
            "message": message,
        }

    def swapped(self) -> dict:
        """How a swap ended: serving, rolled back, or nothing serving."""
        tried = self.said["attempt"]
        answer = self.said["answer"]
        if not tried and answer.get("ready"):
            kept = {key: self.plan[key] for key in ("model", "title", "repo", "served_name", "mode", "digest", "port")}
            nodes = [node["host"] for node in self.plan["nodes"]]
            now = kept | {"nodes": nodes, "since": answer["since"], "ready": True}
            message = f"{self.title} serves on {spark_report.join(nodes)}, {answer['seconds']:.0f} s after its launch."
            return {"ok": True, "outcome": "serving", "serving": now, "message": message}
        first = next(iter(tried.values()), {})
        new, reason, tail = self.story(
            {host: row.get("stopped") for host, row in tried.items()},
            first.get("launched"),
            first.get("answer"),
        )
        now = self.now()
        message = f"{self.title} did not start: {after_colon(new)}"
        done = {
            "serving": public(now) if now else None,
            "reason": reason,
            "log_tail": tail,
            "stories": {"new": new},
        }
        if now and now["ready"]:
            outcome = "rolled back" if now["model"] == (self.previous or {}).get("model") else "failed"
            return done | {"outcome": outcome, "message": f"{message} {now['title']} is serving again."}
        if not (self.previous or {}).get("plan"):
            before = (
                "Nothing was serving before" if not self.previous else f"{self.previous['title']} cannot be put back"
            )
            return done | {
                "outcome": "nothing serving",
                "message": f"{message} {before}, and nothing is serving now.",
            }
        old, _unused, _unused = self.story(self.said["stopped"], self.said["launched"], answer)
        message += f" {self.previous['title']} did not come back: {after_colon(old)}"
        message += " Nothing is serving now; choose a model to start."
        return done | {
            "outcome": "nothing serving",
            "reason": "rollback_failed",
            "stories": {"new": new, "old": old},
            "message": message,
        }

    def story(self, stopped: dict, launched: dict | None, answer: dict | None) -> tuple[str, str, list]:
        """Why one try to serve failed: (a sentence or two, the reason's code, the log's last lines)."""
        if trouble := self.stop_trouble(stopped):
            codes = [row["problem"]["code"] for row in stopped.values() if (row or {}).get("problem")]
            return trouble, codes[0] if codes else "unreachable", []
        if (launched or {}).get("failed"):
            return (
                str(launched.get("msg", "")),
                launched.get("reason") or "launch_failed",
                launched.get("log_tail") or [],
            )
        if (launched or {}).get("unreachable") or (answer or {}).get("unreachable"):
            return "The head Spark stopped answering.", "unreachable", []
        if fault := (answer or {}).get("problem"):
            return fault["message"], fault["code"], answer.get("log_tail") or []
        if (answer or {}).get("failed"):
            return sentence(answer.get("msg")), "not_answering", []
        return "It was cut off.", "launch_failed", []

    def stop_trouble(self, stopped: dict) -> str:
        """What the Sparks said against being stopped, as sentences."""
        said = []
        for host, row in (stopped or {}).items():
            if (row or {}).get("problem"):
                said.append(f"{host}: {row['problem']['message']}")
            elif (row or {}).get("unreachable"):
                said.append(spark_report.fault(host, row) + ".")
        return " ".join(said)

    def now(self) -> dict | None:
        """What serves, by the last look at every Spark."""
        return spark_report.serving(self.said["head"], self.said["seen"])


def after_colon(text: str) -> str:
    """A sentence that goes on after a colon: «It needs 96 GB.» becomes «it needs 96 GB.»"""
    return text[0].lower() + text[1:] if text.startswith(("It ", "Its ")) else text


def sentence(said: object) -> str:
    """What a module said, closed like a sentence."""
    text = " ".join(str(said or "It did not say why.").split())
    return text if text.endswith((".", "!", "?")) else f"{text}."


def public(serving: dict | None) -> dict | None:
    """What serves, without the plan that only a rollback wants."""
    return {key: value for key, value in serving.items() if key != "plan"} if serving else None
