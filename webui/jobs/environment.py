"""What ansible-playbook gets from us: its environment, and the line a person would type instead.

The environment is made from nothing. Passed on when set: PATH (with the virtual environment's bin in front),
HOME, USER, LOGNAME, TZ, TMPDIR, SSH_AUTH_SOCK, and everything that begins with ANSIBLE_ or SPARK_. Always
set: LANG and LC_ALL (C.UTF-8: Ansible wants UTF-8 and its messages are parsed), ANSIBLE_CONFIG,
SPARK_CONTROL_JOB, SPARK_CONTROL_STATE. Nothing else: no proxy, no token, no Python path of whoever started
the web server.
"""

import configparser
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

KEPT = ("PATH", "HOME", "USER", "LOGNAME", "TZ", "TMPDIR", "SSH_AUTH_SOCK")
KEPT_PREFIXES = ("ANSIBLE_", "SPARK_")
MASK = "********"


def environment(project: Path, state: Path, job: str, base: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a job's processes, from `base` (usually os.environ)."""
    env = {k: v for k, v in base.items() if k in KEPT or k.startswith(KEPT_PREFIXES)}
    bin_folder = os.path.dirname(sys.executable)
    paths = [bin_folder, *env.get("PATH", os.defpath).split(os.pathsep)]
    env["PATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    env |= {
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "SPARK_CONTROL_JOB": job,
        "SPARK_CONTROL_STATE": str(state),
    }
    env.setdefault("ANSIBLE_CONFIG", str(project / "ansible.cfg"))
    if inventory := env.get("ANSIBLE_INVENTORY"):
        env["ANSIBLE_INVENTORY"] = ",".join(_absolute(part, project) for part in inventory.split(",") if part)
    return env


def with_runner(env: dict[str, str], artifacts: Path, callbacks: str) -> dict[str, str]:
    """`env` plus what ansible-runner's event callback needs, which wraps the project's own stdout callback.

    Runner replaces the callback path and the stdout callback through the environment, which beats
    ansible.cfg; so what ansible.cfg says about both is carried over by hand.
    """
    defaults = _cfg_defaults(Path(env["ANSIBLE_CONFIG"]))
    folder = Path(env["ANSIBLE_CONFIG"]).parent
    plugins = env.get("ANSIBLE_CALLBACK_PLUGINS") or ":".join(
        os.path.normpath(folder / os.path.expanduser(part))
        for part in defaults.get("callback_plugins", "").split(":")
        if part.strip()
    )
    shown = env.get("ANSIBLE_STDOUT_CALLBACK") or defaults.get("stdout_callback", "")
    env = {
        **env,
        "ANSIBLE_STDOUT_CALLBACK": "awx_display",
        "ANSIBLE_CALLBACK_PLUGINS": ":".join(filter(None, [plugins, callbacks])),
        "ANSIBLE_RETRY_FILES_ENABLED": "False",
        "AWX_ISOLATED_DATA_DIR": str(artifacts),
    }
    if shown:
        env["ORIGINAL_STDOUT_CALLBACK"] = shown
    return env


def program(name: str = "ansible-playbook") -> str:
    """The program of the same virtual environment as this Python, activated or not."""
    return os.path.join(os.path.dirname(sys.executable), name)


def shown_command(operation: str, variables: Mapping[str, object], *, check: bool = False, diff: bool = False) -> str:
    """The line that does the same from a shell in the project's folder; `variables` already masked."""
    words = ["ansible-playbook"]
    if inventory := os.environ.get("ANSIBLE_INVENTORY"):
        words += ["-i", inventory]
    words.append(f"playbooks/{operation}.yml")
    for name, value in variables.items():
        # A plain word survives Ansible's own splitting of key=value; anything else travels as JSON.
        plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9._/:@%+,*-]+", value)
        words += ["-e", f"{name}={value}" if plain else json.dumps({name: value}, ensure_ascii=False)]
    words += ["--check"] * check + ["--diff"] * diff
    return shlex.join(words)


def _absolute(part: str, project: Path) -> str:
    """An inventory path as seen from anywhere: the caller's folder first, then the project's."""
    for folder in (Path.cwd(), project):
        if part and (folder / part).exists():
            return str(folder / part)
    return part


def _cfg_defaults(path: Path) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False, inline_comment_prefixes=(";",))
    try:
        parser.read(path, encoding="utf-8")
        return dict(parser["defaults"])
    except (configparser.Error, KeyError, UnicodeError):
        return {}
