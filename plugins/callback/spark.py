# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible's default output, with a model's load as one plain line instead of «FAILED - RETRYING»."""

from __future__ import annotations

DOCUMENTATION = r"""
name: spark
type: stdout
short_description: The default output, with progress said as progress
description: A task that is retried because it waits says how far it is, in its own words.
extends_documentation_fragment: [default_callback, result_format_callback]
"""

from ansible.plugins.callback.default import CallbackModule as Default


class CallbackModule(Default):
    """The default callback, except for a wait that has something to tell."""

    CALLBACK_NAME = "spark"

    def v2_runner_retry(self, result):
        """One stretch of a wait is over: say its message where it has one."""
        res, host = result.result, result.host
        if "phase" in res and "message" in res:
            self._display.display(f"  {host.get_name()}: {res['message']}", color="bright blue")
        else:
            super().v2_runner_retry(result)
