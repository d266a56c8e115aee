"""`ssh` and `scp` between simulated Sparks: by address, as passwordless SSH inside the cluster is.

A host that isn't in the demo refuses the connection; faults/ssh-down on the host that is called refuses the key.
"""

import os
import shutil
import subprocess
import sys

from sim_host import ENV_HOST, ENV_ROOT, Host, hosts_of

WITH_VALUE = set("bcDEeFIiJLlmOopPQRSWw")


def main(host_folder, program, arguments):
    here = Host(host_folder)
    rest = without_options(arguments)
    if program == "scp":
        return copy(here, rest)
    if len(rest) < 2:
        print("usage: ssh [-o option] destination command", file=sys.stderr)
        return 255
    there = reach(here, rest[0])
    if there is None:
        return 255
    quiet = any(word in ("-n", "-f") for word in arguments[: len(arguments) - len(rest)])
    stdin = subprocess.DEVNULL if quiet else None
    return subprocess.run(
        ["bash", "-c", " ".join(rest[1:])], env=environment(there), cwd=there.path("home"), stdin=stdin, check=False
    ).returncode


def without_options(arguments):
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if len(word) == 2 and word[1] in WITH_VALUE:
            rest.pop(0)
    return rest


def reach(here, destination):
    """The host with that address or name; None (and ssh's own message) when it can't be reached."""
    user, _unused, address = destination.rpartition("@")
    for host in hosts_of(here.root):
        if address in (host.address, host.name):
            if host.off:
                break
            if host.fault("ssh-down") is not None:
                print(f"{user or 'spark'}@{address}: Permission denied (publickey,password).", file=sys.stderr)
                return None
            return host
    print(f"ssh: connect to host {address} port 22: Connection refused", file=sys.stderr)
    return None


def environment(host):
    """What a non-interactive shell over SSH has: no .bashrc, nothing of the caller's."""
    return {
        "PATH": f"{host.path('bin')}:/usr/local/bin:/usr/bin:/bin",
        "HOME": host.path("home"),
        "USER": os.environ.get("USER", "spark"),
        "LANG": "C.UTF-8",
        ENV_HOST: host.folder,
        ENV_ROOT: host.root,
    }


def copy(here, paths):
    """scp SOURCE… TARGET, each `path` or `host:path`. Both ends are on this machine, so it is a copy."""
    resolved = []
    for path in paths:
        name, colon, remote = path.partition(":")
        if not colon or "/" in name:
            resolved.append(path)
            continue
        host = reach(here, name)
        if host is None:
            print("scp: Connection closed", file=sys.stderr)
            return 255
        resolved.append(os.path.join(host.path("home"), remote))
    *sources, target = resolved
    for source in sources:
        goal = os.path.join(target, os.path.basename(source)) if os.path.isdir(target) else target
        try:
            if os.path.isdir(source):
                shutil.copytree(source, goal, dirs_exist_ok=True)
            elif os.path.realpath(source) != os.path.realpath(goal):
                shutil.copy2(source, goal)
        except OSError as error:
            print(f"scp: {source}: {error.strerror}", file=sys.stderr)
            return 1
    return 0
