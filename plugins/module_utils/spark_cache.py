"""Which models are on this host's disk, how whole each is, and what deleting it would free.

`scan` looks at everything, `look` at one model. Both read the Hugging Face cache `<hf_home>/hub` in its two layouts —
payloads in each repo's own `blobs`, or (huggingface_hub ≥ 1.32) in the shared store `hub/blobs/<xx>/<hash>` that the
repos' blobs then link to — and folders of local models (spark_local). Nothing on a disk makes them raise: what cannot
be read counts as not there. Only regular files are ever opened, and never more than a bounded part. What an entry is
stands in spark_model.
"""

from __future__ import annotations

import os
import re
import stat
import time

from . import spark_facts
from .spark_disk import plain, read, rows
from .spark_local import local_models
from .spark_model import (
    FRESH,
    FRESH_LOCKED,
    MOST_DEPTH,
    MOST_FILES,
    PARTIAL,
    REPO,
    Disk,
    changed,
    entry_of,
    expand,
    grown,
    is_folder,
    why_empty,
)
from .spark_whole import MOST_TREE, Snapshot, judge, read_tree

STORE = "blobs"  # the shared store's folder in hub
TRASH = ".spark-trash-"  # a folder whose delete has begun; its old name and a random word follow
_TO_STORE = f"../../{STORE}/"


def scan(hf_home: str, local: tuple[str, ...] | list[str] = ()) -> dict:
    """Everything: {at, folders: [{path, kind, models, reason}], models: [entry]}, the models by name."""
    hub = Hub(hf_home)
    models, told = hub.models()
    found = [{"path": plain(hub.path), "kind": "cache", "models": len(models), "reason": told}]
    seen = set()
    for folder in local:
        here, told = local_models(folder, hub.now)
        # Two settings may lead to one folder.
        here = [entry for entry in here if entry["path"] not in seen]
        seen |= {entry["path"] for entry in here}
        models += here
        found.append({"path": plain(expand(folder)), "kind": "local", "models": len(here), "reason": told})
    return {"at": hub.now, "folders": found, "models": sorted(models, key=lambda entry: entry["name"])}


def look(hf_home: str, repo: str, revision: str | None = None, local: tuple[str, ...] | list[str] = ()) -> dict:
    """One model: `repo` is `org/name`, or the absolute path of a local one. Its entry, with state missing if absent."""
    if repo.startswith(("/", "~")):
        path = expand(repo)
        for folder in local:
            for entry in local_models(folder, time.time())[0]:
                if entry["path"] in (path, os.path.realpath(path)):
                    return entry
        return entry_of(
            plain(path), "local", None, plain(path), reason=f"{plain(path)} is in no folder of local models"
        )
    if not REPO.fullmatch(repo):
        return entry_of(plain(repo), "cache", None, None, reason=f"«{plain(repo)}» is not a repo name (org/name)")
    hub = Hub(hf_home)
    entry = hub.model(folder_name(repo), revision)
    if entry is None:
        return entry_of(repo, "cache", repo, None, reason=f"{repo} is not in {plain(hub.path)}")
    return hub.settle([entry])[0]


def folder_name(repo: str) -> str:
    """The cache's folder for a repo."""
    return "models--" + repo.replace("/", "--")


class Hub:
    """One cache folder, and what is shared in it. `path` is `<hf_home>/hub`."""

    def __init__(self, hf_home: str):
        self.path = os.path.join(expand(hf_home), "hub")
        self.store = os.path.join(self.path, STORE) + os.sep
        self.now = time.time()
        self._held: set[int] | None = None
        self._owners: dict[tuple[int, int], set[str]] = {}  # shared payload → the folders that link to it
        self._all_counted = False

    def models(self) -> tuple[list[dict], str]:
        """All models of the cache, and why there are none."""
        names = [row.name for row in rows(self.path)]
        found = [entry for name in names if name.startswith("models--") and (entry := self.model(name))]
        for name in names:
            if name.startswith(("datasets--", "spaces--", "kernels--")):
                self._count(name)
        self._all_counted = True
        there = set(names)
        found += [entry for name in names if (entry := self._cut_short(name, there))]
        return self.settle(found), "" if found else why_empty(self.path)

    def settle(self, entries: list[dict]) -> list[dict]:
        """Finish `frees`: a shared payload comes back only with the last folder that links to it."""
        if any(entry["shared"] for entry in entries) and not self._all_counted:
            for row in rows(self.path):
                if "--" in row.name and not row.name.startswith("."):
                    self._count(row.name)
        for entry in entries:
            shared, folder = entry.pop("shared"), entry.pop("folder")
            entry["frees"] += sum(room for key, room in shared.items() if self._owners.get(key, set()) <= {folder})
        return entries

    def model(self, folder: str, revision: str | None = None) -> dict | None:
        """The entry of one repo's folder (`models--org--name`), still to be settled; None where there is none."""
        path = os.path.join(self.path, folder)
        try:
            if not stat.S_ISDIR(os.stat(path).st_mode):
                return None
        except OSError:
            return None
        repo = folder.removeprefix("models--").replace("--", "/")
        disk = Disk()
        blobs, partials = self._blobs(path, folder, disk)
        snapshots = {row.name: row.path for row in rows(os.path.join(path, "snapshots")) if is_folder(row)}
        chosen, told = self._revision(path, snapshots, revision)
        files: dict[str, os.stat_result | None] = {}
        for name, place in snapshots.items():
            found = self._snapshot(place, blobs, folder, disk)
            if name == chosen:
                files = found
        entry = entry_of(plain(repo), "cache", plain(repo), plain(path))
        entry |= {"revisions": len(snapshots), "bytes": disk.size, "frees": disk.frees()}
        entry |= {"shared": disk.shared, "folder": folder}
        busy = self.downloading(folder, partials)
        if chosen is None:
            done = sum(size for _unused, size in partials.values())
            there = "downloading" if busy else "partial"
            return entry | {
                "state": there,
                "reason": told,
                "progress": {"done": done, "total": None, "percent": None} if busy else None,
            }
        place = snapshots[chosen]
        tree = read_tree(os.path.join(path, "trees", f"{chosen}.json"))
        entry |= {"snapshot": plain(place), "revision": plain(chosen)}
        entry |= judge(Snapshot(place, files, tree, partials), busy)
        entry |= {"facts": spark_facts.facts(place, files)}
        return entry

    def downloading(self, folder: str, partials: dict | None = None, at: str | None = None) -> bool:
        """Whether a download into that repo's folder is under way: a partial file's lock is held, or it just grew.

        `at` is where the folder is now, if it has another name.
        """
        if partials is None:
            partials = self._blobs(at or os.path.join(self.path, folder), folder, Disk())[1]
        for etag, (since, _unused) in partials.items():
            age = self.now - since
            try:
                lock = os.stat(os.path.join(self.path, ".locks", folder, f"{etag}.lock")).st_ino
            except OSError:
                lock = None
            held = self._locks()
            if lock is None or held is None:
                if age < FRESH:
                    return True
            elif lock in held or age < FRESH_LOCKED:
                return True
        return False

    def _locks(self) -> set[int] | None:
        """The inodes of all files that are locked, by the kernel's own list; None where it cannot be read."""
        if self._held is None:
            text = read("/proc/locks", MOST_TREE, start=True)
            if text is None:
                return None
            self._held = {int(found) for found in re.findall(rb"[0-9a-f]+:[0-9a-f]+:(\d+) ", text)}
        return self._held

    def _blobs(self, path: str, folder: str, disk: Disk) -> tuple[dict, dict]:
        """What a repo's `blobs` holds: {name: stat through the link}, and {etag: (changed, size)} of partial files."""
        found, partials = {}, {}
        place = os.path.join(path, "blobs")
        for row in rows(place):
            try:
                link = row.is_symlink()
                seen = row.stat()
            except OSError:
                continue
            if not stat.S_ISREG(seen.st_mode):
                continue
            name = row.name
            if link:
                self._share(row.path, folder, seen, disk)
            else:
                disk.own(seen)
            if name.endswith(PARTIAL):
                etag = name.removesuffix(PARTIAL).split(".", 1)[0]
                before = partials.get(etag, (0.0, 0))
                partials[etag] = (max(before[0], seen.st_mtime), max(before[1], grown(seen)))
            else:
                found[name] = seen
        return found, partials

    def _share(self, path: str, folder: str, seen: os.stat_result, disk: Disk) -> None:
        """Note a link that leads out of its repo: into the shared store, or to somewhere that is not ours."""
        disk.linked(seen)
        key = (seen.st_dev, seen.st_ino)
        if key in disk.shared:
            return
        try:
            target = os.readlink(path)
        except OSError:
            return
        # As huggingface_hub writes it; anything else takes six times as long to resolve.
        plainly = target.startswith(_TO_STORE) and "/.." not in target[len(_TO_STORE) - 1 :]
        where = path.rpartition("/")[0]
        if plainly and where.endswith(f"/{folder}/blobs"):
            ours = True
        else:
            ours = os.path.normpath(os.path.join(where, target)).startswith(self.store)
        if ours:
            disk.shared[key] = seen.st_blocks * 512 if seen.st_nlink == 1 else 0
            self._owners.setdefault(key, set()).add(folder)

    def _count(self, folder: str) -> None:
        """Note which shared payloads a folder links to, and nothing else of it."""
        self._blobs(os.path.join(self.path, folder), folder, Disk())

    def _snapshot(self, place: str, blobs: dict, folder: str, disk: Disk) -> dict:
        """{relative name: stat through the links, None where it leads nowhere} of one snapshot."""
        found: dict[str, os.stat_result | None] = {}
        todo = [(place, "", 0)]
        while todo and len(found) < MOST_FILES:
            here, prefix, depth = todo.pop()
            ours = "../" * (depth + 2) + "blobs/"
            for row in rows(here):
                name = prefix + row.name
                try:
                    if not row.is_symlink():
                        if row.is_dir(follow_symlinks=False):
                            if depth < MOST_DEPTH:
                                todo.append((row.path, f"{name}/", depth + 1))
                            continue
                        seen = row.stat(follow_symlinks=False)
                        if stat.S_ISREG(seen.st_mode):
                            disk.own(seen)
                            found[name] = seen
                        continue
                    target = os.readlink(row.path)
                    if target.startswith(ours) and (known := blobs.get(target[len(ours) :])):
                        found[name] = known
                        continue
                    seen = os.stat(row.path)
                except OSError:
                    found[name] = None
                    continue
                if stat.S_ISREG(seen.st_mode):
                    found[name] = seen
                    if not disk.knows(seen):
                        self._share(row.path, folder, seen, disk)
        return found

    def _revision(self, path: str, snapshots: dict[str, str], revision: str | None) -> tuple[str | None, str]:
        """Which snapshot would be served: a commit, what a ref names, or, without refs, the youngest there is."""
        wanted = revision or "main"
        if wanted in snapshots:
            return wanted, ""
        if wanted.startswith(("/", ".", "-")) or ".." in wanted or "\0" in wanted:
            return None, f"«{plain(wanted)}» is no revision"
        text = read(os.path.join(path, "refs", wanted), 256)
        commit = text.decode("ascii", "replace").strip() if text else None
        if commit in snapshots:
            return commit, ""
        if revision is None and text is None and snapshots:
            return max(snapshots, key=lambda name: changed(snapshots[name])), ""
        return None, f"it has no snapshot of {plain(wanted)}"

    def _cut_short(self, folder: str, there: set[str]) -> dict | None:
        """The entry of a model whose delete was cut short; None for any other folder."""
        if not folder.startswith(f"{TRASH}models--"):
            return None
        name = folder.removeprefix(TRASH).rsplit(".", 1)[0]
        if name in there:
            return None
        entry = self.model(folder)
        repo = plain(name.removeprefix("models--").replace("--", "/"))
        if entry is None:
            return None
        entry |= {"name": repo, "repo": repo, "state": "partial", "progress": None, "facts": {}, "snapshot": None}
        return entry | {"reason": "its delete was cut short; delete it again to finish", "revision": None}
