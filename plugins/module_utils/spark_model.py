"""What a scan says of one model: its entry, what its files take, and the limits of a look.

An entry is {name, kind: cache|local, repo, path, snapshot, revision, revisions, bytes, frees, weights_bytes, files,
state, progress, missing, missing_count, reason, last_used, facts}; sizes in bytes, times in epoch seconds. `bytes` is
the length of all files, `frees` the room that the file system gave them and would have back. state is complete,
downloading, partial, metadata only, dangling, or missing (a look only). roles/weights/README.md tells each key.
"""

from __future__ import annotations

import os
import re
import stat

# What a model may be called here; the Hub allows no `--` and no `..` in a name.
REPO = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
PARTIAL = ".incomplete"
# Seconds. A partial file that changed no longer ago is still growing. The first is for one whose lock can be seen to be
# free (a downloader on another host of a network file system), the second for one that has no lock.
FRESH_LOCKED, FRESH = 5, 120
MOST_FILES, MOST_DEPTH = 100_000, 16


def entry_of(name: str, kind: str, repo: str | None, path: str | None, reason: str = "") -> dict:
    """An entry with nothing known yet."""
    nothing = {
        "snapshot": None,
        "revision": None,
        "revisions": 0,
        "bytes": 0,
        "frees": 0,
        "weights_bytes": 0,
        "files": 0,
    }
    told = {"state": "missing", "progress": None, "missing": [], "missing_count": 0, "reason": reason}
    return {"name": name, "kind": kind, "repo": repo, "path": path} | nothing | told | {"last_used": None, "facts": {}}


class Disk:
    """What the files of one model take: each once, however many links lead to it."""

    def __init__(self):
        self.size = 0  # bytes, the files' lengths
        self.shared: dict[tuple[int, int], int] = {}  # payload in the shared store → the room it takes
        self._room = 0
        self._seen: set[tuple[int, int]] = set()
        self._hard: dict[tuple[int, int], list[int]] = {}  # a file with several names → [names seen, names, room]

    def own(self, seen: os.stat_result) -> None:
        """Count a file that lies in the model's own folder."""
        key = (seen.st_dev, seen.st_ino)
        if seen.st_nlink > 1:
            row = self._hard.setdefault(key, [0, seen.st_nlink, seen.st_blocks * 512])
            row[0] += 1
            if row[0] > 1:
                return
        else:
            self._room += seen.st_blocks * 512
        self._seen.add(key)
        self.size += seen.st_size

    def linked(self, seen: os.stat_result) -> None:
        """Count a file elsewhere that a link leads to."""
        key = (seen.st_dev, seen.st_ino)
        if key not in self._seen:
            self._seen.add(key)
            self.size += seen.st_size

    def knows(self, seen: os.stat_result) -> bool:
        """Whether that file was counted."""
        return (seen.st_dev, seen.st_ino) in self._seen

    def frees(self) -> int:
        """The room that comes back with the model's own files; a file with a name elsewhere keeps its own."""
        return self._room + sum(room for seen, names, room in self._hard.values() if seen >= names)


def expand(path: str) -> str:
    """A setting's path, absolute; links are kept."""
    return os.path.abspath(os.path.expanduser(path))


def why_empty(path: str) -> str:
    """Why nothing was found in a folder: it is not there, no folder, not readable, or empty."""
    try:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            return "it is not a folder"
        os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return "it is not there"
    except PermissionError:
        return "it may not be read"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return "there is no model in it"


def grown(seen: os.stat_result) -> int:
    """How much of a partial file is there: its length, or the room it takes where it was given its length at once."""
    return min(seen.st_size, seen.st_blocks * 512) if seen.st_blocks else seen.st_size


def is_folder(row: os.DirEntry) -> bool:
    """Whether a row is a folder or a link to one."""
    try:
        return row.is_dir()
    except OSError:
        return False


def changed(path: str) -> float:
    """When a folder changed, in epoch seconds; 0 where it is gone."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0
