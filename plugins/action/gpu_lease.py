"""Ansible action: take or give back the lease, and know a run of this machine that ended with it in its hands."""

from __future__ import annotations

from ansible.plugins.action import ActionBase
from ansible_collections.spark.control.plugins.module_utils import spark_run


class ActionModule(ActionBase):
    """See plugins/modules/gpu_lease.py, which does it, on the head."""

    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Ask the head; where an ended run of this machine holds the lease, ask once more, past that one."""
        super().run(tmp, task_vars)
        wish = dict(self._task.args)
        result = self._execute_module(module_args=wish, task_vars=task_vars)
        held = result.get("lease") or {}
        # Only here, where the run was started, can anybody know that it is over.
        takes = wish.get("state", "present") == "present"
        if takes and result.get("reason") == "leased" and spark_run.is_over(held.get("run")):
            wish["supersedes"] = [*(wish.get("supersedes") or []), held["id"]]
            result = self._execute_module(module_args=wish, task_vars=task_vars)
        return result
