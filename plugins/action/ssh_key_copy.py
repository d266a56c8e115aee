"""Ansible action: let the controller's key in to a host, by a password if need be.

It runs on the controller, because there is no connection that a module could use yet.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

ASKPASS = Path(__file__).parents[2] / "roles/ssh_key/files/askpass.sh"

# One line on standard input is the public key. sshd ignores a file that others may write.
ADD_KEY = """
set -e
umask 077
mkdir -p "$HOME/.ssh"
file="$HOME/.ssh/authorized_keys"
touch "$file"
key=$(cat)
if ! grep -qxF -- "$key" "$file"; then
  [ -z "$(tail -c 1 "$file")" ] || echo >>"$file"
  printf "%s\\n" "$key" >>"$file"
fi
chmod go-w "$HOME/.ssh" "$file"
"""


class Refused(Exception):
    """The host did not let us in: (reason, a sentence)."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class ActionModule(ActionBase):
    """See plugins/modules/ssh_key_copy.py."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        """Let the key in, or say why it is not."""
        super().run(tmp, task_vars)
        _unused, wish = self.validate_argument_spec(
            {
                "address": {"type": "str", "required": True},
                "port": {"type": "int", "default": 22},
                "user": {"type": "str"},
                "key_file": {"type": "path", "required": True, "no_log": False},
                "known_hosts": {"type": "path", "default": "~/.ssh/known_hosts"},
                "fingerprint": {"type": "str"},
                # Names of variables: a task's arguments are written down in many places.
                "passwords": {"type": "list", "elements": "str", "default": [], "no_log": False},
            }
        )
        values = (self._templar.template(_reference(name)) for name in wish["passwords"])
        password = next((str(value) for value in values if value), "")
        host = Host(task_vars["inventory_hostname"], wish)
        try:
            with tempfile.TemporaryDirectory(prefix="ssh-key-") as folder:
                return host.let_in(password, Path(folder) / "known_hosts", self._task.check_mode)
        except Refused as refused:
            told = {"changed": False, "ok": False, "reason": refused.reason, "message": str(refused)}
            return told | {"fingerprint": host.fingerprint}


def _reference(name: str) -> str:
    """The variable's value as a template, which ansible-core renders only if its source is trusted."""
    return trust_as_template("{{ " + name + " | default('') }}")


class Host:
    """One host, and how it is reached."""

    def __init__(self, name: str, wish: dict):
        self.name, self.wish = name, wish
        self.key = Path(os.path.expanduser(wish["key_file"]))
        self.trusted = Path(os.path.expanduser(wish["known_hosts"]))
        self.known: Path | None = None
        self.fingerprint = ""

    def let_in(self, password: str, known: Path, check: bool) -> dict:
        """Try the key, then the password; `known` is a copy of the trusted host keys to work on. Raises Refused."""
        before = self.trusted.read_text() if self.trusted.exists() else ""
        known.write_text(before)
        self.known = known
        there = self.try_key(first=True)
        new = [line for line in known.read_text().splitlines() if line not in before.splitlines()]
        self.fingerprint = self.look_up()
        self.compare()
        if not there:
            if check:
                return self.answer(True, new, f"This machine's key would be copied to {self.name}.")
            if not self.key.exists():
                raise Refused("no_key", f"There is no key {self.key} to copy to {self.name}.")
            if not password:
                raise Refused(
                    "password_needed", f"{self.name} does not know this machine's key; its user's password is needed."
                )
            self.add_key(password)
            if not self.try_key():
                raise Refused("not_taken", f"{self.name} has this machine's key now and still does not let it in.")
        if new and not check:
            self.trust(new)
        if not there:
            told = f"This machine's key is on {self.name} now."
        else:
            told = f"{self.name} lets this machine in already."
        if new:
            told += f" Its host key {self.fingerprint} {'would be' if check else 'is'} trusted from now on."
        return self.answer(not there, new, told)

    def answer(self, copied: bool, new: list[str], message: str) -> dict:
        """What the task returns."""
        lines = ([self.public()] if copied and self.key.exists() else []) + new
        diff = {"before": "", "after": "".join(f"{line}\n" for line in lines)}
        told = {"ok": True, "reason": "", "fingerprint": self.fingerprint, "message": message}
        return {"changed": bool(copied or new), **told, "diff": diff}

    def public(self) -> str:
        """The public half, one line."""
        return Path(f"{self.key}.pub").read_text().strip()

    def try_key(self, first: bool = False) -> bool:
        """Whether the key is let in. Raises Refused where the host is not to be had, or not the one that we trust."""
        checking = "accept-new" if first else "yes"
        # ssh would try other keys than one that is not there.
        key = ["-i", str(self.key)] if self.key.exists() else ["-o", "PubkeyAuthentication=no"]
        options = [*key, "-o", "BatchMode=yes", "-o", f"StrictHostKeyChecking={checking}"]
        return self.ssh(options, "true").returncode == 0

    def add_key(self, password: str) -> None:
        """Log in by password and add the public key. Raises Refused."""
        methods = "PreferredAuthentications=password,keyboard-interactive"
        options = ["-o", "PubkeyAuthentication=no", "-o", methods, "-o", "NumberOfPasswordPrompts=1"]
        options += ["-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=no"]
        asking = {"SSH_ASKPASS": str(ASKPASS), "SSH_ASKPASS_REQUIRE": "force", "SPARK_SSH_PASSWORD": password}
        # OpenSSH before 8.4 asks the program only where there is a display and no terminal.
        asking["DISPLAY"] = os.environ.get("DISPLAY") or ":0"
        command = f"exec sh -c {shlex.quote(ADD_KEY)}"
        done = self.ssh(options, command, asking, f"{self.public()}\n")
        if done.returncode == 255:
            raise Refused("password_refused", f"{self.name} did not accept the password of {self.user()}.")
        if done.returncode:
            raise Refused("not_taken", f"{self.name} did not take the key: {_last(done.stderr)}")

    def ssh(self, options: list[str], command: str, environment: dict | None = None, text: str | None = None):
        """Run ssh; answers a refused log-in, and raises Refused for everything that no key or password would help."""
        # A master connection of somebody's configuration would let us in without asking.
        common = ["-o", "ControlPath=none", "-o", "ConnectTimeout=10", "-o", "IdentitiesOnly=yes"]
        common += ["-o", f"UserKnownHostsFile={self.known}", "-o", "UpdateHostKeys=no", "-p", str(self.wish["port"])]
        target = [*(["-l", self.wish["user"]] if self.wish["user"] else []), "--", self.wish["address"]]
        given = {"input": text} if text is not None else {"stdin": subprocess.DEVNULL}
        try:
            done = subprocess.run(
                ["ssh", *options, *common, *target, command],
                env=os.environ | {"LC_ALL": "C"} | (environment or {}),
                capture_output=True,
                text=True,
                timeout=60,
                start_new_session=True,
                check=False,
                **given,
            )
        except FileNotFoundError:
            raise Refused("unreachable", "ssh is not installed on this machine.") from None
        except subprocess.TimeoutExpired:
            raise Refused("unreachable", f"{self.name} did not answer within 60 s.") from None
        if done.returncode == 255:
            self.sort(done.stderr)
        return done

    def sort(self, said: str) -> None:
        """Raise Refused for what ssh said, unless it is that it was not let in."""
        if "HOST IDENTIFICATION HAS CHANGED" in said or "Host key verification failed" in said:
            forget = f"ssh-keygen -R {shlex.quote(self.known_name())} -f {shlex.quote(str(self.trusted))}"
            raise Refused(
                "host_key",
                f"{self.name} shows another host key than the one that is trusted, so it may be another machine. "
                f"If it was installed anew, forget the old key with `{forget}` and copy the key again.",
            )
        if "Permission denied" not in said and "Too many authentication failures" not in said:
            raise Refused("unreachable", f"{self.name} does not answer: {_last(said)}")

    def compare(self) -> None:
        """Hold the host's key against the fingerprint that was given. Raises Refused."""
        wanted = (self.wish["fingerprint"] or "").strip()
        if wanted and wanted.removeprefix("SHA256:").rstrip("=") != self.fingerprint.removeprefix("SHA256:"):
            raise Refused(
                "host_key",
                f"{self.name} shows the host key {self.fingerprint}, and {wanted} was expected. "
                "Nothing was sent to it.",
            )

    def look_up(self) -> str:
        """The fingerprint of the key that we know the host by."""
        done = subprocess.run(
            ["ssh-keygen", "-l", "-F", self.known_name(), "-f", str(self.known)],
            capture_output=True,
            text=True,
            check=False,
        )
        return next((word for word in done.stdout.split() if word.startswith("SHA256:")), "")

    def known_name(self) -> str:
        """What ssh calls the host in known_hosts."""
        address, port = self.wish["address"], self.wish["port"]
        return address if port == 22 else f"[{address}]:{port}"

    def user(self) -> str:
        """The user's name, for a person."""
        return self.wish["user"] or os.environ.get("USER", "this user")

    def trust(self, lines: list[str]) -> None:
        """Add host keys to the trusted ones, in one write: the hosts of a play do this at the same time."""
        self.trusted.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(self.trusted, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w") as file:
            file.write("".join(f"{line}\n" for line in lines))


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
