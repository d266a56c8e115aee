"""Writing a file so that whoever reads it meanwhile, or after a cut, sees the old one or the new one."""

from __future__ import annotations

import contextlib
import json
import os


def write_json(path: str, value: object) -> None:
    """A file of its owner's own with a value as JSON."""
    write_text(path, json.dumps(value))


def write_text(path: str, text: str) -> None:
    """A file that only its owner can read, from its first moment; its folder is made, as private."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    fresh = f"{path}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(fresh, path)
