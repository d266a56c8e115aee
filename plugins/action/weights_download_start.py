"""Ansible action: hand the module the Hub's token, which lies on the controller, over its standard input."""

from __future__ import annotations

import os
import re
import stat

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """See plugins/modules/weights_download_start.py."""

    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Run the module, with the token where a file of one is named."""
        super().run(tmp, task_vars)
        arguments = {key: value for key, value in self._task.args.items() if key != "token"}
        path = arguments.get("token_file")
        if path:
            try:
                arguments["token"] = read_token(str(path))
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                message = f"The token file {path} on this machine cannot be used: {reason}."
                problem = {"code": "token_file", "message": message}
                return {"changed": False, "done": False, "problem": problem, "message": message}
        return self._execute_module(module_args=arguments, task_vars=task_vars)


def read_token(path: str) -> str:
    """The one line in the file. Raises ValueError for a file that others can read, or that holds something else."""
    with open(os.path.expanduser(path), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no file")
        if found.st_mode & 0o077:
            raise ValueError(f"others can read it (its mode is {found.st_mode & 0o777:04o}); chmod 600 it")
        token = file.read(4096).decode("ascii", "replace").strip()
    # The Hub's tokens are hf_…; what else this machine keeps secret, a private key say, is not sent anywhere.
    if not re.fullmatch(r"[A-Za-z0-9_.-]{6,2048}", token):
        raise ValueError("it does not hold a token, alone and on one line")
    return token
