"""The collection as a stranger has it: ansible-core alone in a fresh venv, the artifact installed, no ansible.cfg."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import PROJECT


class Installed:
    """A venv below `folder`, with the collection installed beside it or not; every command runs in `/`."""

    def __init__(self, folder: Path):
        self.folder, self.collections = folder, folder / "collections"
        self.place = self.collections / "ansible_collections/spark/control"
        self.bin = folder / "venv/bin"
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        pip = [self.bin / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "ansible-core==2.19.*"], check=True)

    def build(self, source: Path = PROJECT, version: str = "0") -> Path:
        """The artifact of a checkout."""
        out = self.folder / f"built-{version}"
        self._galaxy("build", source, "--force", "--output-path", out)
        return next(out.glob("*.tar.gz"))

    def install(self, artifact: Path) -> None:
        """Install it, or upgrade to it."""
        self._galaxy("install", artifact, "--force", "--no-deps", "--collections-path", self.collections)

    def run(self, program: str, *words, environment: dict | None = None, found: bool = True):
        """A program of the venv; found: the installed collection is on Ansible's path."""
        env = {
            "PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin",
            "HOME": os.environ.get("HOME", "/"),
            "LC_ALL": "C.UTF-8",
        } | {key: value for key, value in (environment or {}).items() if key.startswith(("ANSIBLE_", "SPARK_DEMO"))}
        env |= {"ANSIBLE_COLLECTIONS_PATH": str(self.collections if found else self.folder / "none")}
        command = [self.bin / program, *words]
        return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, check=False)

    def _galaxy(self, *words) -> None:
        done = self.run("ansible-galaxy", "collection", *words)
        assert done.returncode == 0, done.stdout + done.stderr
