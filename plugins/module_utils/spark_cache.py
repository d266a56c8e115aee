"""Which models are on this host's disk, how whole each is, and what deleting it would free.

`scan` looks at everything, `look` at one model. Both read the Hugging Face cache `<hf_home>/hub` in its two layouts —
payloads in each repo's own `blobs`, or (huggingface_hub ≥ 1.32) in the shared store `hub/blobs/<xx>/<hash>` that the
repos' blobs then link to — and folders of local models. Nothing on a disk makes them raise: what cannot be read counts
as not there. Only regular files are ever opened, and never more than a bounded part.

An entry is {name, kind: cache|local, repo, path, snapshot, revision, revisions, bytes, frees, weights_bytes, files,
state, progress, missing, missing_count, reason, last_used, facts}; sizes in bytes, times in epoch seconds. `bytes` is
the length of all files, `frees` the room that the file system gave them and would have back. state is complete,
downloading, partial, metadata only, dangling, or missing (a look only). roles/weights/README.md tells each key.
"""

from __future__ import annotations

import os
import re
import stat
import time

from . import spark_facts
from .spark_disk import is_model, plain, read, read_json, rows

# What a model may be called here; the Hub allows no `--` and no `..` in a name.
REPO = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
STORE = "blobs"  # the shared store's folder in hub
TRASH = ".spark-trash-"  # a folder whose delete has begun; its old name and a random word follow
PARTIAL = ".incomplete"
# Seconds. A partial file that changed no longer ago is still growing. The first is for one whose lock can be seen to be
# free (a downloader on another host of a network file system), the second for one that has no lock.
FRESH_LOCKED, FRESH = 5, 120
MOST_FILES, MOST_DEPTH = 100_000, 16
MOST_MISSING = 20
MOST_TREE, MOST_INDEX = 4 << 20, 16 << 20
_PIECE = 1 << 20

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<kind>\.[a-z]+)")
_OLDER_WEIGHTS = (".bin", ".pt", ".pth")
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|rng_state.*)\.(bin|pt|pth)")
_INDEX = (".safetensors.index.json", ".bin.index.json")
_NEEDED = ("config.json", "tokenizer_config.json", "tokenizer.json", "hf_quant_config.json")
_TO_STORE = f"../../{STORE}/"
_SHARDS_NAMED = re.compile(rb':\s*"([^"\\\x00-\x1f]{1,1024}\.(?:safetensors|bin))"')
_TOTAL_SIZE = re.compile(rb'"total_size"\s*:\s*(\d{1,18})\b')


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
        return _entry(plain(path), "local", None, plain(path), reason=f"{plain(path)} is in no folder of local models")
    if not REPO.fullmatch(repo):
        return _entry(plain(repo), "cache", None, None, reason=f"«{plain(repo)}» is not a repo name (org/name)")
    hub = Hub(hf_home)
    entry = hub.model(folder_name(repo), revision)
    if entry is None:
        return _entry(repo, "cache", repo, None, reason=f"{repo} is not in {plain(hub.path)}")
    return hub.settle([entry])[0]


def folder_name(repo: str) -> str:
    """The cache's folder for a repo."""
    return "models--" + repo.replace("/", "--")


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
        entry = _entry(plain(repo), "cache", plain(repo), plain(path))
        entry |= {"revisions": len(snapshots), "bytes": disk.size, "frees": disk.frees()}
        entry |= {"shared": disk.shared, "folder": folder}
        busy = self.downloading(folder, partials)
        if chosen is None:
            done = sum(size for _, size in partials.values())
            there = "downloading" if busy else "partial"
            return entry | {
                "state": there,
                "reason": told,
                "progress": {"done": done, "total": None, "percent": None} if busy else None,
            }
        place = snapshots[chosen]
        tree = read_tree(os.path.join(path, "trees", f"{chosen}.json"))
        entry |= {"snapshot": plain(place), "revision": plain(chosen)}
        entry |= judge(place, files, tree, partials, busy)
        entry |= {"facts": spark_facts.facts(place, files)}
        return entry

    def downloading(self, folder: str, partials: dict | None = None, at: str | None = None) -> bool:
        """Whether a download into that repo's folder is under way: a partial file's lock is held, or it just grew.

        `at` is where the folder is now, if it has another name.
        """
        if partials is None:
            partials = self._blobs(at or os.path.join(self.path, folder), folder, Disk())[1]
        for etag, (changed, _) in partials.items():
            age = self.now - changed
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


# --- local models -----------------------------------------------------------------------------------------------------


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
    entry = _entry(plain(path), "local", None, plain(path))
    entry |= {"snapshot": plain(path), "revisions": 1, "bytes": disk.size, "frees": disk.frees()}
    notes = os.path.join(path, ".cache", "huggingface", "trees")
    trees = sorted(row.name for row in rows(notes) if row.name.endswith(".json"))
    tree = read_tree(os.path.join(notes, trees[0])) if len(trees) == 1 else {}
    busy = any(now - since < FRESH for since, _ in partials.values())
    entry |= judge(path, files, tree, partials, busy)
    facts = spark_facts.facts(path, files)
    # Of a fine-tuned model this is what it was made from; only one that is called alike is the same.
    origin = spark_facts.origin(path) or ""
    if REPO.fullmatch(origin) and origin.split("/")[1].lower() == os.path.basename(path).lower():
        entry["repo"] = origin
    return entry | {"facts": facts}


# --- is it whole ------------------------------------------------------------------------------------------------------


def judge(place: str, files: dict, tree: dict, partials: dict, busy: bool) -> dict:
    """How whole a snapshot is: {state, progress, missing, missing_count, reason, files, weights_bytes, last_used}.

    `tree` is {name: (size, etag)} of the whole repo, of which a download may have left formats out on purpose: of
    several sets of weights in a repo (safetensors, original, each GGUF) those count of which anything is there.
    """
    weights = [seen for name, seen in files.items() if seen and is_weights(name)]
    entry = {"files": len(files), "weights_bytes": sum(seen.st_size for seen in weights)}
    entry["last_used"] = max((seen.st_atime for seen in weights or files.values() if seen), default=None)

    def lacks(name: str) -> bool:
        seen = files.get(name)
        size = tree[name][0] if name in tree else None
        return seen is None or (seen.st_size != size if size is not None else not seen.st_size and is_weights(name))

    total = None
    if tree and weights and not any(map(lacks, tree)):
        sets: list[set[str]] = []
    else:
        sets, total = sets_of_weights(place, files, tree)
    begun = {name for name in (*files, *partials) if name in files or name in tree}
    begun |= {name for name, (_, etag) in tree.items() if etag in partials}
    wanted = [names for names in sets if names & begun]
    whole = {os.path.dirname(min(names)) for names in wanted if any(map(safe, names)) and not any(map(lacks, names))}
    wanted = [names for names in wanted if any(map(safe, names)) or os.path.dirname(min(names)) not in whole]
    if not wanted and not weights:
        # Of nothing that was begun, the best format is the one that is missing.
        wanted = sorted(sets, key=lambda names: (not any(map(safe, names)), "/" in min(names), min(names)))[:1]
    needed = set().union(*wanted) | {name for name in _NEEDED if name in tree or name in files}
    needed |= {name for name, seen in files.items() if seen is None}
    missing = sorted(filter(lacks, needed))
    entry |= {"missing": [plain(name) for name in missing[:MOST_MISSING]], "missing_count": len(missing)}
    if weights and not missing:
        return entry | {"state": "complete", "progress": None, "reason": ""}
    there = needed | files.keys()
    if tree and all(name in tree for name in needed):
        total = sum(tree[name][0] for name in there if name in tree)
    done = sum(seen.st_size for name, seen in files.items() if seen and (tree or is_weights(name)))
    done += sum(size for _, size in partials.values())
    entry["progress"] = progress(done, total)
    broken = [name for name in missing if name in files and files[name] is None]
    if busy:
        return entry | {"state": "downloading", "reason": "it is still being downloaded"}
    if broken:
        text = f"{len(broken)} of its files are links that lead nowhere, the first is {plain(broken[0])}"
        return entry | {"state": "dangling", "reason": text}
    if not weights and not any(is_weights(name) for name in files):
        return entry | {"state": "metadata only", "reason": "it has its configuration but no weights"}
    return entry | {"state": "partial", "reason": _lacking(missing, files)}


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


def sets_of_weights(place: str, files: dict, tree: dict) -> tuple[list[set[str]], int | None]:
    """Which weight files belong together, by the indexes and by their numbers; and the indexes' total_size in bytes."""
    sets: list[set[str]] = []
    total = None
    for name in files:
        if name.endswith(_INDEX):
            folder = name.rpartition("/")[0]
            named, size = read_index(os.path.join(place, name))
            if named:
                sets.append({f"{folder}/{shard}" if folder else shard for shard in named})
                total = size if len(sets) == 1 else None
    stems: dict[tuple, set[str]] = {}
    for name in (*tree, *files):
        if not is_weights(name):
            continue
        folder, _, base = name.rpartition("/")
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


# --- small things -----------------------------------------------------------------------------------------------------


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


def _entry(name: str, kind: str, repo: str | None, path: str | None, reason: str = "") -> dict:
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
