"""The sentence of a playbook's `result` as the last line on the terminal; beside playbooks it loads unconfigured."""

from __future__ import annotations

import os

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: outcome
type: aggregate
short_description: What came of the playbook, in one sentence
description:
  - Shows the C(message) of the C(result) that a playbook of this collection sets, after everything else.
  - In a job it shows nothing, because whoever runs the job says it.
"""


class CallbackModule(CallbackBase):
    """One line, at the end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "outcome"

    def v2_playbook_on_stats(self, stats):
        """The playbook is over: say what came of it."""
        result = stats.custom.get("_run", {}).get("result")
        message = result.get("message") if isinstance(result, dict) else None
        if message and "SPARK_CONTROL_JOB" not in os.environ:
            self._display.display(" ".join(str(message).split()))
