"""Ansible action: are the options of what is about to run what its argument spec says, and named as they are there?

One task for what Ansible does by itself in one of its own, on every host: each costs a run some fifty milliseconds.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from ansible.plugins.action.validate_argument_spec import ActionModule as Validation
from ansible.utils.vars import load_extra_vars

ROLES = Path(__file__).parents[2] / "roles"
ALIKE = 0.75  # of difflib's ratio: forse for force, hots for hosts, modle for model; not name for model
OURS = "spark_control_"  # what a job tells its playbook


class ActionModule(Validation):
    """See plugins/modules/spark_options.py."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Compare the names of what was given by -e with those of the options; then let Ansible look at the values."""
        _validation, wish = self.validate_argument_spec(
            {"role": {"type": "str", "required": True}, "entry": {"type": "str", "default": "main"}}
        )
        role = ROLES / wish["role"]
        specs = self._loader.load_from_file(str(role / "meta/argument_specs.yml"))["argument_specs"]
        knobs = self._loader.load_from_file(str(role / "defaults/main.yml")) if (role / "defaults").is_dir() else {}
        options = specs[wish["entry"]].get("options") or {}
        wrong = slips(load_extra_vars(self._loader), options, knobs or {})
        if wrong:
            said = [f"There is no option {given}; did you mean {meant}?" for given, meant in wrong]
            told = {"reason": "unknown_option", "msg": " ".join(said), "argument_errors": said}
            return {"changed": False, "failed": True} | told
        self._task.args = {"argument_spec": options}
        return super().run(tmp, task_vars)


def slips(given: Iterable[str], options: Iterable[str], knobs: Iterable[str] = ()) -> list[tuple[str, str]]:
    """(name, the option that it is like) of each given name that is nearly one of the options, and no knob either."""
    found = []
    for name in sorted(set(given) - set(options) - set(knobs)):
        near = difflib.get_close_matches(name.lower(), list(options), n=1, cutoff=ALIKE)
        if near and not name.startswith(OURS):
            found.append((name, near[0]))
    return found
