"""What the launcher would say to a plan, asked before anything is stopped.

Most launchers have `--check-config`, which looks at the mods, the settings and the SSH to the workers and starts
nothing. For one that has not, the same is looked at here. Runs on the head: Python standard library only.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from typing import NamedTuple

from .spark_launcher import CannotCarry, shape_of

PATIENCE = 30.0  # seconds; the launcher gives each worker five
_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "StrictHostKeyChecking=no")


class Trouble(NamedTuple):
    """Why the launcher would give up: a code of docs/swap.md, and a sentence for a person."""

    code: str
    message: str


def rehearse(found: Mapping, plan: Mapping, container: str, environment: Mapping[str, str]) -> list[Trouble]:
    """What stands in the way of this plan's launch; `found` is what spark_launcher.look found."""
    if not found["present"]:
        return []
    here = plan["nodes"][0]["host"]
    told = settings_trouble(found, plan, here, container)
    if told:
        return told
    with tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "launch.sh")
        try:
            call = shape_of(found).call(
                plan, container=container, environment=environment, script_path=path, ring=found["dot_env"]["ring"]
            )
        except CannotCarry as error:
            return [Trouble("launcher_refuses", f"The launcher on {here} cannot carry it: {error}.")]
        if not found["checks"]:
            return by_hand(plan, os.path.dirname(found["path"]), here)
        if call.script is not None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(call.script)
        try:
            done = subprocess.run(
                [found["path"], "--check-config", *call.argv],
                env={**environment, **call.environment},
                cwd=os.path.dirname(found["path"]),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [Trouble("launcher_refuses", f"The launcher's own check on {here} took over {PATIENCE:.0f} s.")]
        except OSError as error:
            return [Trouble("launcher_refuses", f"The launcher on {here} cannot be run: {error.strerror}.")]
    return explain(done.stdout.decode(errors="replace"), plan, here) if done.returncode else []


def settings_trouble(found: Mapping, plan: Mapping, here: str, container: str) -> list[Trouble]:
    """What the launcher's own settings say against the plan, beside what it finds itself."""
    settings = found.get("dot_env") or {}
    file = f"{os.path.join(os.path.dirname(found['path']), '.env')} on {here}"
    if settings.get("broken"):
        text = f"The launcher cannot read {file}: {settings['broken']}. Mend that line, or take it out."
        return [Trouble("launcher_settings", text)]
    told, named, address = [], settings.get("container"), settings.get("local_ip")
    if named and named != container:
        text = f"CONTAINER_NAME={named} in {file} wins over vllm_container, which is {container}: take that line out, "
        told.append(f"{text}or set vllm_container to {named}.")
    for name in settings.get("spaced") or []:
        told.append(f"{name} in {file} has a space in its value, which the launcher splits.")
    if address and (plan["mode"] == "cluster" or shape_of(found).heeds_local_ip_alone):
        known = plan["nodes"][0]["address"]
        if plan["mode"] == "cluster" and address != known:
            text = f"LOCAL_IP={address} in {file} is not {known}, by which the other Sparks know it"
            told.append(f"{text}: set it to {known}, or take that line out.")
        elif not is_own(address):
            text = f"LOCAL_IP={address} in {file} is no address of {here}: set it to {known}, or take that line out."
            told.append(text)
    return [Trouble("launcher_settings", text) for text in told]


def is_own(address: str) -> bool:
    """Whether this host has the address."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def by_hand(plan: Mapping, folder: str, here: str) -> list[Trouble]:
    """The launcher's check, for one that has none: each mod there, with its run.sh; each worker lets the head in."""
    for mod in plan.get("mods") or []:
        path = os.path.join(folder, mod)
        if not os.path.exists(path):
            return [missing_mod(mod, here, "is not there")]
        if os.path.isdir(path) and not os.path.isfile(os.path.join(path, "run.sh")):
            return [missing_mod(mod, here, "has no run.sh")]
    workers = plan["nodes"][1:] if plan["mode"] == "cluster" else []
    tries = [
        (worker, subprocess.Popen([*_SSH, worker["address"], "true"], stdin=subprocess.DEVNULL, **_QUIET))
        for worker in workers
    ]
    return [kept_out(worker["host"], here) for worker, one in tries if _ended(one) != 0]


_QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def _ended(process: subprocess.Popen) -> int:
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def explain(said: str, plan: Mapping, here: str) -> list[Trouble]:
    """The launcher's words as troubles that name the Spark and the remedy."""
    hosts = {node["address"]: node["host"] for node in plan["nodes"]}
    found = []
    for text in re.findall(r"^Error: (.+)$", said, re.M):
        if match := re.search(r"Passwordless SSH to (\S+) failed", text):
            found.append(kept_out(hosts.get(match[1], match[1]), here))
        elif match := re.search(r"Mod (?:path|directory|zip file) '([^']+)' (does not exist)?", text):
            found.append(missing_mod(match[1], here, "is not there" if match[2] else "has no run.sh"))
        else:
            found.append(Trouble("launcher_refuses", f"The launcher on {here} refuses it: {text.rstrip('.')}."))
    if not found:
        last = said.strip().splitlines()[-1:] or ["it did not say why"]
        found.append(Trouble("launcher_refuses", f"The launcher on {here} refuses it: {last[0].rstrip('.')}."))
    return list(dict.fromkeys(found))


def kept_out(worker: str, here: str) -> Trouble:
    """The head's SSH does not get in to a worker."""
    text = f"{here} does not get in to {worker} over SSH, as the launcher has to; run mesh_ssh_keys.yml."
    return Trouble("head_kept_out", text)


def missing_mod(mod: str, here: str, why: str) -> Trouble:
    """A mod of the recipe is not in the launcher's folder."""
    return Trouble("mod_missing", f"The recipe's mod {mod} {why} in the launcher's folder on {here}.")
