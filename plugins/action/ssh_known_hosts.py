"""Ansible action: look up which host keys the controller trusts, then have the head know them."""

from __future__ import annotations

import os
import subprocess

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """See plugins/modules/ssh_known_hosts.py."""

    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Replace each worker's name by {host, names, keys}, and run the module on the head."""
        result = super().run(tmp, task_vars)
        wish = dict(self._task.args)
        trusted = os.path.expanduser(wish.get("trusted") or "~/.ssh/known_hosts")
        wish["workers"] = [worker(host, task_vars["hostvars"][host], trusted) for host in wish.get("workers") or []]
        wish["head"] = task_vars.get("inventory_hostname") if not self._task.delegate_to else self._task.delegate_to
        wish.pop("trusted", None)
        return result | self._execute_module(
            module_name="spark.control.ssh_known_hosts", module_args=wish, task_vars=task_vars
        )


def worker(host: str, known: dict, trusted: str) -> dict:
    """{host, names (addresses that the launcher may use), keys ("type base64"), problem}."""
    address = str(known.get("ansible_host") or host)
    names = list(dict.fromkeys([str(known.get("cluster_address") or address), address]))
    keys = lookup(address, int(known.get("ansible_port") or 22), trusted)
    problem = None if keys else f"This machine does not trust a host key of {address} yet; run copy_ssh_key.yml first."
    return {"host": host, "names": names, "keys": keys, "problem": problem}


def lookup(address: str, port: int, trusted: str) -> list[str]:
    """The keys under that address, hashed or not. ssh writes another port than 22 as [address]:port."""
    name = address if port == 22 else f"[{address}]:{port}"
    done = subprocess.run(
        ["ssh-keygen", "-F", name, "-f", trusted], capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    lines = [line.split() for line in done.stdout.decode(errors="replace").splitlines()]
    return [" ".join(fields[1:3]) for fields in lines if len(fields) >= 3 and not fields[0].startswith(("#", "@"))]
