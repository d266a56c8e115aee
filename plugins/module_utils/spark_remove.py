"""Delete one model from this host's disk: what may be deleted, and how, so that a cut leaves nothing that looks whole.

The model's folder first gets a hidden name beside its old one (one rename, so it is there or it is not), then what only
it linked to in the shared store goes, then the folder itself. A delete that is cut short is finished by the next one.
Every step goes through handles of the folders that were checked, so that a link put in their place leads nowhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import time

from . import spark_cache, spark_docker, spark_local, spark_model
from .spark_disk import is_model, plain, read, rows

SETTLE = 5.0  # seconds that a file system may take to count what was freed (XFS and btrfs free later) …
SOON = 64 << 20  # … for so many bytes or more; few are lost among what else is written meanwhile
PATIENCE = 10.0  # seconds to wait for another delete in the same folder
STAGE = ".spark-copy-"  # where a copy waits until it is whole; the model's folder's name follows
_PAYLOAD = re.compile(r"[0-9a-f]{2}/[A-Za-z0-9_-]{8,128}")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Refused(Exception):
    """It may not be deleted: a code and a sentence for a person."""

    def __init__(self, reason: str, problem: str):
        self.reason, self.problem = reason, problem
        super().__init__(problem)


class Target:
    """What is to go: `name` in the folder `home`, and the folder of the cache if it is a repo's."""

    def __init__(self, home: str, name: str, title: str, hub: str | None = None):
        self.home, self.name, self.title, self.hub = home, name, title, hub

    @property
    def path(self) -> str:
        """The model's folder."""
        return os.path.join(self.home, self.name)


def target(hf_home: str, repo: str | None, path: str | None, local: list[str]) -> Target:
    """Where the model is, all links resolved. Raises Refused for a name or a place that is not allowed."""
    hub = os.path.realpath(os.path.join(spark_model.expand(hf_home), "hub"))
    if repo is not None:
        if not spark_model.REPO.fullmatch(repo):
            raise Refused("repo", f"«{plain(repo)[:200]}» is not a repo name (org/name).")
        return Target(hub, spark_cache.folder_name(repo), repo, hub)
    shown = plain(path)[:300]
    wanted = os.path.expanduser(path)
    if not wanted.startswith("/") or ".." in wanted.split("/") or plain(wanted) != wanted:
        raise Refused("path", f"«{shown}» is not the absolute path of a local model.")
    wanted = os.path.normpath("/" + wanted.lstrip("/"))
    real = os.path.join(os.path.realpath(os.path.dirname(wanted)), os.path.basename(wanted))
    allowed = [os.path.realpath(spark_model.expand(folder)) for folder in local]
    itself = real in allowed and is_model(real)
    inside = any(os.path.dirname(real) == folder and not is_model(folder) for folder in allowed)
    if not (itself or inside) or os.path.basename(real).startswith(".") or real == "/":
        raise Refused("path", f"{shown} is in no folder of local models, so it is left alone.")
    others = [hub, *(folder for folder in allowed if folder != real)]
    if real == hub or any(within(real, other) for other in others) or within(hub, real):
        raise Refused("path", f"{shown} has other models in it, or is the Hugging Face cache's; it is left alone.")
    return Target(os.path.dirname(real), os.path.basename(real), real)


def within(folder: str, path: str) -> bool:
    """Whether a path is below a folder, by their names."""
    return path.startswith(folder.rstrip("/") + "/")


class Delete:
    """One delete. `preview` says what it would do and changes nothing; `run` does it."""

    def __init__(self, what: Target, hf_home: str, local: list[str]):
        self.what, self.hf_home, self.local = what, hf_home, local
        self.home: int | None = None
        self.room = 0  # bytes that the file system gave to what goes
        self.payloads: dict[str, tuple[int, int, int]] = {}  # name in the store → (device, inode, room)
        self.kept: list[str] = []  # payloads that somebody else links to

    def __enter__(self) -> Delete:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self.home = os.open(self.what.home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_) -> None:
        if self.home is not None:
            os.close(self.home)

    def look(self) -> list[str]:
        """The folders that would go, the model's and what a cut delete or copy left. May refuse."""
        if self.home is None:
            return []
        found = []
        seen = self._stat(self.what.name)
        if seen is not None:
            self._check(seen)
            found.append(self.what.name)
        found += [row.name for row in rows(self.what.home) if self._is_left(row.name)]
        links: set[str] = set()
        for name in found:
            self._tally(name, links)
        if links:
            self._choose(links, found)
        if self.what.hub and found:
            locks = os.path.join(self.what.home, ".locks", self.what.name)
            self.room += room(locks) + sum(room(row.path) for row in rows(locks))
        return found

    def preview(self) -> dict:
        """What `run` would answer, with nothing freed."""
        return self._told(self.look(), 0)

    def run(self) -> dict:
        """Delete; {removed: [path], bytes, freed}. Raises Refused, and OSError where it did not work out."""
        if self.home is None:
            return self._told([], 0)
        self._alone()
        found = self.look()
        if not found:
            return self._told([], 0)
        before = self._free()
        trash = [self._hide(name) if name == self.what.name else name for name in found]
        if self.what.hub:
            self._drop_payloads(trash)
        for name in trash:
            shutil.rmtree(name, dir_fd=self.home)
        if self.what.hub:
            self._drop_locks()
        left = [name for name in (self.what.name, *trash) if self._stat(name) is not None]
        if left:
            raise OSError(f"{os.path.join(self.what.home, left[0])} is still there")
        return self._told(found, self._settled(before))

    def _told(self, found: list[str], freed: int) -> dict:
        """An answer: the paths, their room, what came back."""
        payloads = [os.path.join(spark_cache.STORE, name) for name in sorted(self.payloads)]
        paths = [os.path.join(self.what.home, name) for name in (*found, *payloads)]
        return {"removed": [plain(path) for path in paths], "bytes": self.room, "freed": freed}

    # --- may it go ----------------------------------------------------------------------------------------------------

    def _check(self, seen: os.stat_result) -> None:
        """Refuse a link, a mount, a download, a model in use."""
        title, path = self.what.title, self.what.path
        if stat.S_ISLNK(seen.st_mode):
            raise Refused("link", f"{title} is a link to another place here ({plain(path)}), so it is left alone.")
        if not stat.S_ISDIR(seen.st_mode):
            raise Refused("path", f"{plain(path)} is not a folder.")
        if seen.st_dev != os.fstat(self.home).st_dev or mounted(path):
            raise Refused("mount", f"{plain(path)} is, or holds, a mount of another disk, so it is left alone.")
        if self._downloading(self.what.name):
            raise Refused("downloading", f"{title} is still being downloaded.")
        if self.what.hub is None:
            if not is_model(path):
                raise Refused("path", f"{plain(path)} has neither a configuration nor weights, so it is left alone.")
            user = mounted_by(path)
            if user:
                raise Refused("serving", f"{title} is in use by the container {plain(user)}.")

    def _downloading(self, name: str) -> bool:
        if self.what.hub:
            return spark_cache.Hub(self.hf_home).downloading(self.what.name, at=os.path.join(self.what.home, name))
        _unused, partials = spark_local.walk(os.path.join(self.what.home, name), spark_model.Disk())
        return any(time.time() - changed < spark_model.FRESH for changed, _unused in partials.values())

    def _tally(self, top: str, links: set[str]) -> None:
        """Count what a folder takes, refuse it if this user may not delete it, collect its links into the store."""
        hard: dict[tuple[int, int], list[int]] = {}
        troubles: list[OSError] = []
        for place, folders, files, handle in os.fwalk(top, dir_fd=self.home, onerror=troubles.append):
            here = os.path.join(self.what.home, place)
            if not os.access(".", os.R_OK | os.W_OK | os.X_OK, dir_fd=handle):
                self._may_not(here)
            self.room += os.fstat(handle).st_blocks * 512
            for name in (*files, *folders):
                try:
                    seen = os.stat(name, dir_fd=handle, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(seen.st_mode):
                    continue
                if stat.S_ISLNK(seen.st_mode) and self.what.hub:
                    links |= self._in_store(here, os.readlink(name, dir_fd=handle))
                if seen.st_nlink > 1:
                    hard.setdefault((seen.st_dev, seen.st_ino), [seen.st_nlink, seen.st_blocks * 512, 0])[2] += 1
                else:
                    self.room += seen.st_blocks * 512
        self.room += sum(size for names, size, found in hard.values() if found >= names)
        denied = [error for error in troubles if isinstance(error, PermissionError)]
        if denied:
            self._may_not(os.path.join(self.what.home, top, os.path.basename(str(denied[0].filename or ""))))
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=self.home):
            self._may_not(self.what.home)

    def _may_not(self, place: str) -> None:
        raise Refused("permission", f"This user may not delete {self.what.title}: {plain(place)} belongs to another.")

    def _in_store(self, here: str, text: str) -> set[str]:
        """The name in the shared store, `xx/hash`, that a link's text leads to, if it does."""
        place = os.path.join(here, text)
        place = os.path.join(os.path.realpath(os.path.dirname(place)), os.path.basename(place))
        name = os.path.relpath(place, os.path.join(self.what.hub, spark_cache.STORE))
        return {name} if _PAYLOAD.fullmatch(name) else set()

    # --- the shared store ---------------------------------------------------------------------------------------------

    def _choose(self, links: set[str], ours: list[str]) -> None:
        """Which of the payloads nobody else links to, by every other link in the cache and the local folders."""
        ids = {}
        for name in links:
            with contextlib.suppress(OSError):
                seen = os.lstat(os.path.join(self.what.hub, spark_cache.STORE, name))
                if stat.S_ISREG(seen.st_mode):
                    alone = seen.st_blocks * 512 if seen.st_nlink == 1 else 0
                    notes = os.path.join(self.what.hub, spark_cache.STORE, f"{name}.refs")
                    ids[name] = (seen.st_dev, seen.st_ino, alone + room(notes))
        others = {row.name for row in rows(self.what.home)} - set(ours) - {spark_cache.STORE, ".locks"}
        places = [os.path.join(self.what.home, name) for name in others if not name.startswith(spark_cache.TRASH)]
        taken = linked_from([*places, *map(spark_model.expand, self.local)])
        self.payloads = {name: row for name, row in ids.items() if row[:2] not in taken}
        self.kept = sorted(ids.keys() - self.payloads.keys())
        self.room += sum(size for _unused, _unused, size in self.payloads.values())
        for name in self.payloads:
            place = os.path.join(self.what.hub, spark_cache.STORE, name[:2])
            if not os.access(place, os.W_OK | os.X_OK):
                self._may_not(place)

    def _drop_payloads(self, trash: list[str]) -> None:
        """Delete them, each under the lock that huggingface_hub takes to make a link to it."""
        with contextlib.ExitStack() as stack:
            try:
                store = opened(stack, spark_cache.STORE, self.home)
            except FileNotFoundError:
                return
            for name, (device, inode, size) in list(self.payloads.items()):
                folder, base = name.split("/")
                try:
                    prefix = opened(stack, folder, store)
                    lock = os.open(
                        f"{base}.lock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=prefix
                    )
                    with os.fdopen(lock, "w"):
                        fcntl.flock(lock, fcntl.LOCK_EX)
                        seen = os.stat(base, dir_fd=prefix, follow_symlinks=False)
                        if (seen.st_dev, seen.st_ino) != (device, inode) or self._claimed(name, seen, trash):
                            self.room -= size
                            self.kept.append(name)
                            del self.payloads[name]
                            continue
                        os.unlink(base, dir_fd=prefix)
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(f"{base}.refs", dir_fd=prefix)
                except FileNotFoundError:
                    continue

    def _claimed(self, name: str, seen: os.stat_result, trash: list[str]) -> bool:
        """Whether a link to the payload was made since the others were counted: makers note it in `<hash>.refs`."""
        text = read(os.path.join(self.what.hub, spark_cache.STORE, f"{name}.refs"), 1 << 20) or b""
        for line in text.decode("utf-8", "replace").splitlines():
            top = line.split("/")[0]
            if not line or line[0] == "/" or ".." in line.split("/") or top in (self.what.name, *trash) or "\0" in line:
                continue
            with contextlib.suppress(OSError):
                found = os.stat(os.path.join(self.what.hub, line))
                if (found.st_dev, found.st_ino) == (seen.st_dev, seen.st_ino):
                    return True
        return False

    def _drop_locks(self) -> None:
        """The repo's own lock files go with it."""
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            locks = opened(stack, ".locks", self.home)
            shutil.rmtree(self.what.name, dir_fd=locks)

    # --- steps ------------------------------------------------------------------------------------------------------

    def _alone(self) -> None:
        """Wait for another delete in this folder to end. The lock is on the folder and ends with this process."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(self.home, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Refused(
                        "busy", "Another delete is under way on this Spark; try again when it is done."
                    ) from None
                time.sleep(0.1)
            except OSError:
                return  # a file system without such locks

    def _hide(self, name: str) -> str:
        """Give the model's folder its hidden name; back again if a download has begun meanwhile."""
        seen = self._stat(name)
        hidden = f"{spark_cache.TRASH}{name}.{secrets.token_hex(4)}"
        os.rename(name, hidden, src_dir_fd=self.home, dst_dir_fd=self.home)
        there = self._stat(hidden)
        same = seen is not None and there is not None and (seen.st_dev, seen.st_ino) == (there.st_dev, there.st_ino)
        if not same or not stat.S_ISDIR(there.st_mode) or self._downloading(hidden):
            os.rename(hidden, name, src_dir_fd=self.home, dst_dir_fd=self.home)
            raise Refused("downloading", f"{self.what.title} changed while it was being deleted; nothing was deleted.")
        return hidden

    def _is_left(self, name: str) -> bool:
        """Whether a folder is what a delete or a copy of this model left when it was cut short."""
        if name == f"{STAGE}{self.what.name}":
            files, _unused = spark_local.walk(os.path.join(self.what.home, name), spark_model.Disk())
            youngest = max((seen.st_mtime for seen in files.values() if seen), default=0)
            if time.time() - youngest < spark_model.FRESH:
                raise Refused("downloading", f"{self.what.title} is being copied to this Spark.")
            return True
        start = f"{spark_cache.TRASH}{self.what.name}."
        return name.startswith(start) and re.fullmatch(r"[0-9a-f]{8}", name[len(start) :]) is not None

    def _stat(self, name: str) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self.home, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _free(self) -> int:
        told = os.fstatvfs(self.home)
        return told.f_bfree * told.f_frsize

    def _settled(self, before: int) -> int:
        """What the file system has more than before, once it has counted."""
        deadline = time.monotonic() + min(SETTLE, SETTLE * self.room / SOON)
        while (more := self._free() - before) < self.room * 0.95 and time.monotonic() < deadline:
            time.sleep(0.1)
        return max(0, more)


def opened(stack: contextlib.ExitStack, name: str, parent: int) -> int:
    """A folder's handle below another's, never through a link; closed with the stack."""
    handle = os.open(name, _FOLDER, dir_fd=parent)
    stack.callback(os.close, handle)
    return handle


def room(path: str) -> int:
    """Bytes that the file system gave to one file or folder; 0 where there is none."""
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0


def linked_from(places: list[str]) -> set[tuple[int, int]]:
    """(device, inode) of everything that the links below these folders lead to."""
    taken = set()
    todo = list(places)
    while todo:
        for row in rows(todo.pop()):
            try:
                if row.is_symlink():
                    seen = os.stat(row.path)
                    taken.add((seen.st_dev, seen.st_ino))
                elif row.is_dir(follow_symlinks=False):
                    todo.append(row.path)
            except OSError:
                continue
    return taken


def mounted(path: str) -> bool:
    """Whether something is mounted on a folder or below it, by the kernel's own list."""
    text = read("/proc/self/mountinfo", 4 << 20, start=True) or b""
    for line in text.splitlines():
        words = line.split(b" ")
        if len(words) > 4:
            place = os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8) & 255]), words[4]))
            if place == path or within(path, place):
                return True
    return False


def mounted_by(path: str) -> str | None:
    """The running container that has a folder, or a part of it, as a bind mount. Refused if docker cannot tell."""
    try:
        ids = spark_docker.docker("ps", "-q", "--no-trunc").stdout.decode().split()
        told = spark_docker.docker("inspect", "--type", "container", *ids).stdout if ids else b"[]"
        for row in json.loads(told or b"[]"):
            for mount in row.get("Mounts") or []:
                source = os.path.realpath(str(mount.get("Source") or "/"))
                if source == path or within(path, source):
                    return str(row.get("Name", "")).lstrip("/")
    except (spark_docker.DockerError, ValueError, AttributeError) as error:
        if shutil.which("docker") is None:
            return None  # without docker there are no containers
        raise Refused("docker", f"docker does not say which containers use {plain(path)}: {error}.") from None
    return None
