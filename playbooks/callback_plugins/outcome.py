# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What came of a playbook, in one sentence: the last line on the terminal. Beside playbooks it loads unconfigured."""

from __future__ import annotations

import os
import re

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: outcome
type: aggregate
short_description: What came of the playbook, in one sentence
description:
  - Shows the C(message) of the C(result) that a playbook of this collection sets, after everything else.
  - Where the playbook failed before it set one, it says what failed. Where no host was there for it, it says that and
    ends with 2.
  - In a job it shows nothing, because whoever runs the job says it.
"""


class CallbackModule(CallbackBase):
    """One line, at the end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "outcome"

    def __init__(self):
        super().__init__()
        self.operation = "The playbook"
        self.failures: list[tuple[str, str]] = []  # (host, sentence)
        self.hostless = False

    def v2_playbook_on_start(self, playbook):
        """Its file's name is the operation's."""
        self.operation = os.path.splitext(os.path.basename(playbook._file_name))[0]

    def v2_playbook_on_no_hosts_matched(self):
        """A play found no host; Ansible calls that a success."""
        self.hostless = True

    def v2_runner_on_failed(self, result, ignore_errors=False):
        """A task failed on a host."""
        res, host, task = result.result, result.host.get_name(), result.task.get_name()
        if "argument_errors" in res:
            self._note(host, f"{self.operation} did not start: {'; '.join(map(str, res['argument_errors']))}")
        elif not ignore_errors:
            self._note(host, f"\u201c{task}\u201d failed on {host}: {_text(res)}")

    def v2_runner_on_unreachable(self, result):
        """A host does not answer."""
        host = result.host.get_name()
        self._note(host, f"{host} does not answer: {_text(result.result)}")

    def v2_playbook_on_stats(self, stats):
        """The playbook is over: say what came of it."""
        if "SPARK_CONTROL_JOB" in os.environ:
            return
        result = stats.custom.get("_run", {}).get("result")
        message, ok = (result.get("message"), result.get("ok")) if isinstance(result, dict) else (None, None)
        failed = stats.failures.keys() | stats.dark.keys()
        if failed and (ok or not message):  # whatever it said before it failed
            said = dict.fromkeys(sentence for host, sentence in self.failures if host in failed)
            message = " ".join(said)[:2000] or f"{self.operation} failed."
        elif self.hostless and not message and not stats.processed:
            message = f"{self.operation} could not run: the inventory names no host for it."
        if message:
            self._display.display(" ".join(str(message).split()))
        if self.hostless and not stats.processed:
            # Ansible calls it a success; who schedules a swap would never learn that there was none.
            raise SystemExit(2)

    def _note(self, host, sentence):
        sentence = " ".join(sentence.split())
        self.failures.append((host, sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."))


def _text(res):
    text = str(res.get("msg") or res.get("censored") or "it gave no reason")
    return re.sub(r"^(Task failed: )?(Failed to connect to the host via ssh: )?", "", text)
