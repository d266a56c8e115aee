"""Ansible action: give the module the addresses of the play's other Sparks, which only the inventory knows."""

from __future__ import annotations

from ansible.plugins.action import ActionBase
from ansible_collections.spark.control.plugins.module_utils import spark_report


class ActionModule(ActionBase):
    """See plugins/modules/weights_copy_look.py."""

    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Run the module with them."""
        super().run(tmp, task_vars)
        here = task_vars["inventory_hostname"]
        peers = [peer for host, peer in spark_report.peers(task_vars).items() if host != here]
        return self._execute_module(module_args=self._task.args | {"peers": peers}, task_vars=task_vars)
