"""A job's extra variables on their way to its playbook: in memory, and nowhere on a disk.

Some are passwords, and a file of them would outlive whoever is killed. So they go from the one who asks to the
supervisor in memory without a name (memfd_create(2)), and from there to ansible-playbook through a named pipe, which it
reads as the file that it takes for one; once, as ansible.utils.vars.load_extra_vars does.
"""

import contextlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path


def keep(variables: Mapping[str, object]) -> int:
    """The variables in memory; returns its descriptor, which no program that is started inherits unless it is given."""
    handle = os.memfd_create("variables", os.MFD_CLOEXEC)
    with open(handle, "w", encoding="ascii", closefd=False) as file:
        json.dump(variables, file)
    return handle


def take(handle: int) -> dict:
    """The variables behind a descriptor, which is closed. Raises OSError and ValueError where there are none."""
    with open(handle, "rb") as file:
        file.seek(0)
        return json.load(file)


class Pipe:
    """`path`, from which one program can read the variables once, for as long as the block lasts."""

    def __init__(self, path: Path, variables: Mapping[str, object]):
        self.path, self.text = path, json.dumps(unsafe(variables)).encode()

    def __enter__(self) -> "Pipe":
        self.path.unlink(missing_ok=True)
        os.mkfifo(self.path, 0o600)
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()
        return self

    def __exit__(self, *_unused) -> None:
        """Take it away, and let the writer go that nobody came to read."""
        self.text = b""
        with contextlib.suppress(FileNotFoundError):
            reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
            self.path.unlink(missing_ok=True)
            self._writer.join(0.5)
            os.close(reader)

    def _write(self) -> None:
        with contextlib.suppress(OSError), open(self.path, "wb", buffering=0) as pipe:
            # The name has done its part: whoever has it open reads on.
            self.path.unlink(missing_ok=True)
            left = memoryview(self.text)
            while left:
                left = left[pipe.write(left) :]


def unsafe(value: object) -> object:
    """Extra variables that Ansible does not template: a caller's `{{ … }}` stays these characters."""
    if isinstance(value, str):
        return {"__ansible_unsafe": value}
    if isinstance(value, Mapping):
        return {key: unsafe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [unsafe(item) for item in value]
    return value
