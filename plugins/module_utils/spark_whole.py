"""How whole a snapshot of a model is: by what a download noted of its repo, by indexes, and by the shards' numbers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from .spark_disk import plain, read, read_json
from .spark_model import MOST_FILES

MOST_MISSING = 20
MOST_TREE, MOST_INDEX = 4 << 20, 16 << 20
_PIECE = 1 << 20

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<kind>\.[a-z]+)")
_OLDER_WEIGHTS = (".bin", ".pt", ".pth")
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|rng_state.*)\.(bin|pt|pth)")
_INDEX = (".safetensors.index.json", ".bin.index.json")
_NEEDED = ("config.json", "tokenizer_config.json", "tokenizer.json", "hf_quant_config.json")
_SHARDS_NAMED = re.compile(rb':\s*"([^"\\\x00-\x1f]{1,1024}\.(?:safetensors|bin))"')
_TOTAL_SIZE = re.compile(rb'"total_size"\s*:\s*(\d{1,18})\b')


@dataclass(frozen=True)
class Snapshot:
    """What is there of one revision, or of a folder, and what its repo has.

    files: {name: stat through links, None where a link leads nowhere}. tree: {name: (size, etag)} of the whole repo, of
    which a download may have left formats out on purpose; empty where it is not known. partials: {name or etag:
    (changed, size)} of what is on its way.
    """

    place: str
    files: Mapping[str, os.stat_result | None]
    tree: Mapping[str, tuple[int, str]]
    partials: Mapping[str, tuple[float, int]]

    @cached_property
    def weights(self) -> list[os.stat_result]:
        """The weight files that are there, whole or not."""
        return [seen for name, seen in self.files.items() if seen and is_weights(name)]

    def lacks(self, name: str) -> bool:
        """Whether a file is not there, or not as long as it should be."""
        seen = self.files.get(name)
        if seen is None:
            return True
        if name in self.tree:
            return seen.st_size != self.tree[name][0]
        return not seen.st_size and is_weights(name)

    def whole_repo(self) -> bool:
        """Whether all is there that the repo has."""
        return bool(self.tree and self.weights and not any(map(self.lacks, self.tree)))

    def begun(self) -> set[str]:
        """The files of which anything is there."""
        there = {name for name in (*self.files, *self.partials) if name in self.files or name in self.tree}
        return there | {name for name, (_unused, etag) in self.tree.items() if etag in self.partials}

    def wanted(self, sets: list[set[str]]) -> list[set[str]]:
        """Of several sets of weights in a repo (safetensors, original, each GGUF) those that count.

        They are what was begun, but for an older format beside a whole newer one; of nothing that was begun, the best
        format is the one that is missing.
        """
        begun = self.begun()
        found = [names for names in sets if names & begun]
        whole = {
            os.path.dirname(min(names)) for names in found if any(map(safe, names)) and not any(map(self.lacks, names))
        }
        found = [names for names in found if any(map(safe, names)) or os.path.dirname(min(names)) not in whole]
        if found or self.weights:
            return found
        return sorted(sets, key=lambda names: (not any(map(safe, names)), "/" in min(names), min(names)))[:1]

    def needed(self, wanted: Iterable[set[str]]) -> set[str]:
        """Every file that has to be there: the weights that count, what a server reads, and what is linked to."""
        names = set().union(*wanted) | {name for name in _NEEDED if name in self.tree or name in self.files}
        return names | {name for name, seen in self.files.items() if seen is None}

    def progress(self, needed: set[str], total: int | None) -> dict:
        """How far it is; `total` is what an index told, in bytes."""
        if self.tree and all(name in self.tree for name in needed):
            total = sum(self.tree[name][0] for name in needed | self.files.keys() if name in self.tree)
        done = sum(seen.st_size for name, seen in self.files.items() if seen and (self.tree or is_weights(name)))
        return progress(done + sum(size for _unused, size in self.partials.values()), total)

    def state(self, missing: list[str], busy: bool) -> tuple[str, str]:
        """(state, reason) of one that is not complete."""
        broken = [name for name in missing if name in self.files and self.files[name] is None]
        if busy:
            return "downloading", "it is still being downloaded"
        if broken:
            text = f"{len(broken)} of its files are links that lead nowhere, the first is {plain(broken[0])}"
            return "dangling", text
        if not any(map(is_weights, self.files)):
            return "metadata only", "it has its configuration but no weights"
        return "partial", _lacking(missing, self.files)


def judge(snapshot: Snapshot, busy: bool) -> dict:
    """How whole it is: {state, progress, missing, missing_count, reason, files, weights_bytes, last_used}.

    `busy`: whether a download of it is under way.
    """
    weights = snapshot.weights
    read_last = [seen.st_atime for seen in weights or snapshot.files.values() if seen]
    entry = {"files": len(snapshot.files), "weights_bytes": sum(seen.st_size for seen in weights)}
    entry["last_used"] = max(read_last, default=None)
    sets, total = ([], None) if snapshot.whole_repo() else sets_of_weights(snapshot)
    needed = snapshot.needed(snapshot.wanted(sets))
    missing = sorted(filter(snapshot.lacks, needed))
    entry |= {"missing": [plain(name) for name in missing[:MOST_MISSING]], "missing_count": len(missing)}
    if weights and not missing:
        return entry | {"state": "complete", "progress": None, "reason": ""}
    state, reason = snapshot.state(missing, busy)
    return entry | {"progress": snapshot.progress(needed, total), "state": state, "reason": reason}


def _lacking(missing: list[str], files: dict) -> str:
    """What is missing, in a sentence."""
    cut = [name for name in missing if files.get(name)]
    if len(cut) == len(missing):
        what = "is not as long as it should be" if len(cut) == 1 else "are not as long as they should be"
    else:
        what = "is missing" if len(missing) == 1 else "are missing"
    return f"{len(missing)} of its files {what}, the first is {plain(missing[0])}"


def progress(done: int, total: int | None) -> dict:
    """{done, total, percent}; what is not whole is never at 100 %."""
    percent = min(99.9, round(100 * done / total, 1)) if total else None
    return {"done": done, "total": total, "percent": percent}


def sets_of_weights(snapshot: Snapshot) -> tuple[list[set[str]], int | None]:
    """Which weight files belong together, by the indexes and by their numbers; and the indexes' total_size in bytes."""
    sets: list[set[str]] = []
    total = None
    for name in snapshot.files:
        if name.endswith(_INDEX):
            folder = name.rpartition("/")[0]
            named, size = read_index(os.path.join(snapshot.place, name))
            if named:
                sets.append({f"{folder}/{shard}" if folder else shard for shard in named})
                total = size if len(sets) == 1 else None
    stems: dict[tuple, set[str]] = {}
    for name in (*snapshot.tree, *snapshot.files):
        if not is_weights(name):
            continue
        folder, _unused, base = name.rpartition("/")
        shard = _SHARD.fullmatch(base)
        if shard is None:
            stems.setdefault((name,), set()).add(name)
            continue
        names = stems.setdefault((folder, shard["stem"], shard["count"], shard["kind"]), set())
        if not names:
            start = f"{folder}/{shard['stem']}" if folder else shard["stem"]
            count = min(int(shard["count"]), MOST_FILES // 20)
            names |= {f"{start}-{number:05}-of-{shard['count']}{shard['kind']}" for number in range(1, count + 1)}
    named = set().union(*sets)
    return sets + [names for names in stems.values() if not names & named], total


def is_weights(name: str) -> bool:
    """Whether a file has weights, by its name."""
    return safe(name) or (name.endswith(_OLDER_WEIGHTS) and not _NO_WEIGHTS.fullmatch(name.rpartition("/")[2]))


def safe(name: str) -> bool:
    """Whether that format is what servers take first."""
    return name.endswith((".safetensors", ".gguf"))


def read_index(path: str) -> tuple[set[str], int | None]:
    """The shards that an index names and its total_size. A large one has 50,000 rows, so it is not taken for JSON."""
    text = read(path, MOST_INDEX)
    if not text:
        return set(), None
    named: set[bytes] = set()
    # A piece at a time, so that a hostile one takes no more memory than it has names; a name has at most 1,024 bytes.
    for start in range(0, len(text), _PIECE):
        named.update(_SHARDS_NAMED.findall(text, start, start + _PIECE + 2048))
        if len(named) > MOST_FILES // 20:
            return set(), None
    size = _TOTAL_SIZE.search(text)
    names = {name.decode("utf-8", "replace") for name in named}
    return {name for name in names if inside(name)}, int(size[1]) if size else None


def read_tree(path: str) -> dict[str, tuple[int, str]]:
    """A revision's files, {name: (size, etag)}, as huggingface_hub ≥ 1.26 noted them; empty where it did not."""
    tree = read_json(path, MOST_TREE)
    files = tree.get("files") if isinstance(tree, dict) else None
    if not isinstance(files, dict):
        return {}
    found = {}
    for name, row in files.items():
        if not isinstance(row, dict) or not inside(name):
            return {}
        size = row.get("size") if row.get("lfs_size") is None else row["lfs_size"]
        if not isinstance(size, int) or size < 0:
            return {}
        found[name] = (size, str(row.get("lfs_sha256") or row.get("blob_id")))
    return found


def inside(name: str) -> bool:
    """Whether a name that a file told us stays below its folder."""
    return bool(name) and len(name) < 1024 and name[0] != "/" and ".." not in name.split("/") and "\0" not in name
