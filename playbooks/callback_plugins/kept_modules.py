# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run starts and ends sooner: what Ansible builds of our modules is kept. Beside playbooks it loads unconfigured."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import gc
import hashlib
import importlib.util
import io
import marshal
import os
import pickle
import shutil
import stat
import sys
import zipfile
from pathlib import Path

import ansible
from ansible import constants
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: kept_modules
type: aggregate
short_description: Keep what Ansible builds of this collection's modules
description:
  - Before a module goes to a host Ansible looks for everything that it imports and packs that, 0.2 s a module, in
    every run anew; and the host's Python compiles all of it, 0.15 s a task. This keeps the packs, with the compiled
    files beside the sources, in C(~/.cache/spark-control/modules) and lays them where Ansible looks for its own.
  - They are kept by what they were made of, so that a changed file, another Ansible or another Python has others. A
    host with another Python passes the compiled files over.
  - Where Ansible keeps them elsewhere, or the folder cannot be used, it builds them as ever.
  - What is loaded when the playbook begins is out of the garbage collector's sight from then on, as Python's
    documentation of C(gc.freeze) has it for a program that forks, and at the end all of it is. A short run takes a
    twelfth less.
"""

OURS = "ansible_collections.spark.control."
GENERATIONS = 4  # of packs, the newest, are left


class CallbackModule(CallbackBase):
    """Lay the kept packs at the start, keep the new ones at the end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "kept_modules"

    def v2_playbook_on_start(self, playbook):
        """Lay what is kept; a link each, since most runs want few of them."""
        gc.freeze()
        self.built = Path(constants.DEFAULT_LOCAL_TMP, "ansiballz_cache")
        self.kept = None
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home folder
            self.kept = folder(Path("~/.cache/spark-control/modules").expanduser() / generation())
            self.built.mkdir(exist_ok=True)
            for pack in self.kept.iterdir():
                if pack.name.startswith(OURS) and is_whole(pack):
                    (self.built / pack.name).symlink_to(pack)

    def v2_playbook_on_stats(self, stats):
        """Keep what was built, each in one move, and only the newest generations."""
        gc.freeze()  # else Python looks through everything once more before it ends
        if not self.kept:
            return
        with contextlib.suppress(OSError):
            for pack in self.built.iterdir():
                if pack.name.startswith(OURS) and not pack.is_symlink() and not pack.name.endswith((".lock", "-part")):
                    fresh = self.kept / f".{pack.name}.{os.getpid()}"
                    fresh.write_bytes(compiled(pack.read_bytes()))
                    fresh.rename(self.kept / pack.name)
            os.utime(self.kept)
            others = sorted(self.kept.parent.iterdir(), key=lambda path: path.stat().st_mtime)
            for old in others[:-GENERATIONS]:
                shutil.rmtree(old, ignore_errors=True)


def compiled(pack: bytes) -> bytes:
    """A pack whose zip has each source's code beside it, as this Python compiles it (PEP 552, unchecked).

    zipimport takes that first where it is its own Python's, else the source. A pack of another shape stays as it is.
    """
    try:
        built = pickle.loads(pack)
        sources = zipfile.ZipFile(io.BytesIO(base64.b64decode(built.zip_data)))
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as both:
            for name in sources.namelist():
                source = sources.read(name)
                both.writestr(name, source)
                if name.endswith(".py"):
                    code = marshal.dumps(compile(source, name, "exec", dont_inherit=True))
                    both.writestr(f"{name}c", importlib.util.MAGIC_NUMBER + b"\1" + b"\0" * 11 + code)
        return pickle.dumps(dataclasses.replace(built, zip_data=base64.b64encode(packed.getvalue())))
    except (AttributeError, TypeError, ValueError, SyntaxError, zipfile.BadZipFile, pickle.PickleError):
        return pack


def is_whole(pack: Path) -> bool:
    """Whether a pack ends as a pickle does; after a power cut a file may end in nothing, or in zeros."""
    with open(pack, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 1))
        return file.read() == pickle.STOP


def generation() -> str:
    """What tells these packs from others: Ansible's version, and the time and size of every file that may be in one."""
    told = hashlib.sha256(f"{ansible.__version__} {sys.version}".encode())
    plugins = Path(__file__).resolve().parents[2] / "plugins"
    for top in (plugins / "module_utils", plugins / "modules", Path(ansible.__file__).parent / "module_utils"):
        for place, _folders, names in os.walk(top):
            for name in sorted(names):
                if name.endswith(".py"):
                    found = os.stat(os.path.join(place, name))
                    told.update(f"{place}/{name} {found.st_mtime_ns} {found.st_size}\n".encode())
    return told.hexdigest()[:32]


def folder(path: Path) -> Path:
    """A folder that only this user can write, made if it is not there. Raises OSError for any other."""
    path.mkdir(parents=True, mode=0o700, exist_ok=True)
    found = os.lstat(path)
    # A pack is a program, and is loaded as one.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{path} is not this user's own")
    return path
