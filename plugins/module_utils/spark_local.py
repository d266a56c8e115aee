"""Models in folders of their own: local and fine-tuned ones, as a scan tells them."""

from __future__ import annotations

import os
import stat

from . import spark_facts
from .spark_disk import is_model, plain, rows
from .spark_model import (
    FRESH,
    MOST_DEPTH,
    MOST_FILES,
    PARTIAL,
    REPO,
    Disk,
    entry_of,
    expand,
    grown,
    is_folder,
    why_empty,
)
from .spark_whole import Snapshot, judge, read_tree


def local_models(folder: str, now: float) -> tuple[list[dict], str]:
    """The entries of one folder of local models, or of the one model that it is; and why there are none."""
    path = expand(folder)
    if is_model(path):
        return [_local(path, now)], ""
    found = [
        _local(row.path, now) for row in rows(path) if row.name[0] != "." and is_folder(row) and is_model(row.path)
    ]
    return found, "" if found else why_empty(path)


def walk(path: str, disk: Disk) -> tuple[dict, dict]:
    """A plain folder's files, {relative name: stat through links}, and partial files, {name: (changed, size)}.

    Links to folders are not followed. What a download keeps for itself (`.cache/huggingface`) is counted, not listed.
    """
    found: dict[str, os.stat_result | None] = {}
    partials = {}
    todo = [(path, "", 0)]
    while todo and len(found) < MOST_FILES:
        here, prefix, depth = todo.pop()
        for row in rows(here):
            name = prefix + row.name
            try:
                if row.is_dir(follow_symlinks=False):
                    if depth < MOST_DEPTH:
                        todo.append((row.path, f"{name}/", depth + 1))
                    continue
                link, seen = row.is_symlink(), row.stat()
            except OSError:
                if not name.startswith("."):
                    found[name] = None
                continue
            if not stat.S_ISREG(seen.st_mode):
                continue
            (disk.linked if link else disk.own)(seen)
            if name.endswith(PARTIAL):
                partials[name] = (seen.st_mtime, grown(seen))
            elif not name.startswith("."):
                found[name] = seen
    return found, partials


def _local(path: str, now: float) -> dict:
    """The entry of one local model."""
    disk = Disk()
    files, partials = walk(path, disk)
    entry = entry_of(plain(path), "local", None, plain(path))
    entry |= {"snapshot": plain(path), "revisions": 1, "bytes": disk.size, "frees": disk.frees()}
    notes = os.path.join(path, ".cache", "huggingface", "trees")
    trees = sorted(row.name for row in rows(notes) if row.name.endswith(".json"))
    tree = read_tree(os.path.join(notes, trees[0])) if len(trees) == 1 else {}
    busy = any(now - since < FRESH for since, _unused in partials.values())
    entry |= judge(Snapshot(path, files, tree, partials), busy)
    facts = spark_facts.facts(path, files)
    # Of a fine-tuned model this is what it was made from; only one that is called alike is the same.
    origin = spark_facts.origin(path) or ""
    if REPO.fullmatch(origin) and origin.split("/")[1].lower() == os.path.basename(path).lower():
        entry["repo"] = origin
    return entry | {"facts": facts}
