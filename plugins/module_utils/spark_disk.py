"""Reading a disk that may hold anything: nothing here raises, blocks, or opens what is not a regular file."""

from __future__ import annotations

import json
import os
import stat

_SIGNS = ("config.json", "adapter_config.json", "params.json")
_WEIGHTS = (".safetensors", ".gguf", "pytorch_model.bin", ".safetensors.index.json", ".bin.index.json")


def rows(folder: str) -> list[os.DirEntry]:
    """What is in a folder; nothing where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (OSError, ValueError):
        return []


def read(path: str, most: int, start: bool = False) -> bytes | None:
    """A regular file's bytes; None where there is none or it has more than `most` of them.

    With `start` the first `most` will do; so are the kernel's own files read, whose length is told as 0.
    """
    try:
        seen = os.stat(path)
        if not stat.S_ISREG(seen.st_mode) or (seen.st_size > most and not start):
            return None
        # Something else may have taken the file's place meanwhile; to open a FIFO would wait for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(handle, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            parts, left = [], most if start else min(most, seen.st_size)
            while left > 0 and (part := file.read(left)):
                parts.append(part)
                left -= len(part)
        return b"".join(parts)
    except (OSError, ValueError):
        return None


def read_json(path: str, most: int) -> object:
    """A JSON file's value; None where there is none, or none that can be taken."""
    text = read(path, most)
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError, MemoryError):
        return None


def plain(text: str) -> str:
    """A name from a disk as text that can be shown and sent: no control characters, no bytes that are no UTF-8."""
    shown = text if text.isascii() else text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return shown if shown.isprintable() else "".join(char if char.isprintable() else "\ufffd" for char in shown)


def is_model(path: str) -> bool:
    """Whether a folder is a model, by the names at its top."""
    return any(row.name in _SIGNS or row.name.endswith(_WEIGHTS) for row in rows(path))
