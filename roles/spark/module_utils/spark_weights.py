"""Is a model's snapshot in the Hugging Face cache whole? Best source first: tree, index, shard numbers."""

from __future__ import annotations

import json
import os
import re

_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.(safetensors|bin)$")
_REPO = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$")


def weights(hf_home: str, repo: str, revision: str | None = None) -> dict:
    """The state of REPO (`org/name`) on this host: {repo, state, bytes, reason, path}.

    state is complete, downloading, partial, metadata only or missing; bytes are the weight files' sizes, read
    through the links, so that blobs in a shared store count too. The cache's layout is facts.md's: `hub/models--
    org--name/{refs,snapshots,blobs}`.
    """
    answer = {"repo": repo, "state": "missing", "bytes": 0, "reason": "", "path": None}
    if not _REPO.match(repo) or ".." in repo:
        return answer | {"reason": f"«{repo}» is not a repo name (org/name)"}
    home = os.path.join(os.path.expanduser(hf_home), "hub", "models--" + repo.replace("/", "--"))
    if not os.path.isdir(home):
        return answer | {"reason": f"{repo} is not in {hf_home}"}
    snapshot = _snapshot(home, revision)
    if snapshot is None:
        return answer | {"state": "partial", "reason": f"{repo} has no snapshot of {revision or 'main'}"}
    answer["path"] = snapshot
    files = _files(snapshot)
    shards = {name: size for name, size in files.items() if name.endswith((".safetensors", ".bin", ".gguf"))}
    answer["bytes"] = sum(size for size in shards.values() if size)
    absent = sorted(_expected(home, snapshot, files) - {name for name, size in files.items() if size})
    if absent:
        loading = any(name.endswith(".incomplete") for name in _names(os.path.join(home, "blobs")))
        return answer | {
            "state": "downloading" if loading else ("partial" if shards else "metadata only"),
            "reason": f"{len(absent)} of its files are missing, the first is {absent[0]}",
        }
    if not shards:
        return answer | {"state": "metadata only", "reason": "it has its configuration but no weights"}
    return answer | {"state": "complete"}


def _snapshot(home: str, revision: str | None) -> str | None:
    """The folder of the revision: a commit, a named ref, or, without refs, the only snapshot there is."""
    snapshots = os.path.join(home, "snapshots")
    wanted = revision or "main"
    if "/" in wanted or wanted.startswith("."):
        return None
    try:
        with open(os.path.join(home, "refs", wanted), encoding="ascii") as ref:
            wanted = ref.read(64).strip()
    except (OSError, UnicodeDecodeError):
        kept = _names(snapshots)
        if revision is None and len(kept) == 1:
            wanted = kept[0]
    path = os.path.join(snapshots, wanted)
    return path if os.path.isdir(path) else None


def _files(snapshot: str) -> dict[str, int]:
    """Relative name → size through the links, 0 where a link dangles."""
    found = {}
    for folder, _folders, names in os.walk(snapshot):
        for name in names:
            path = os.path.join(folder, name)
            try:
                size = os.stat(path).st_size
            except OSError:
                size = 0
            found[os.path.relpath(path, snapshot)] = size
    return found


def _expected(home: str, snapshot: str, files: dict[str, int]) -> set[str]:
    """The names that a whole snapshot has, as far as any source tells."""
    tree = _json(os.path.join(home, "trees", os.path.basename(snapshot) + ".json"))
    rows = tree.get("files", tree.get("siblings", [])) if isinstance(tree, dict) else tree
    if isinstance(rows, list) and rows:
        named = {row.get("path") or row.get("rfilename") for row in rows if isinstance(row, dict)}
        return {name for name in named if isinstance(name, str)}
    expected = {"config.json"} if "config.json" in files else set()
    for name in files:
        if name.endswith((".safetensors.index.json", ".bin.index.json")):
            index = _json(os.path.join(snapshot, name))
            mapped = index.get("weight_map") if isinstance(index, dict) else None
            if isinstance(mapped, dict):
                folder = os.path.dirname(name)
                expected |= {os.path.join(folder, shard) for shard in mapped.values() if isinstance(shard, str)}
        shard = _SHARD.match(os.path.basename(name))
        if shard:
            stem, kind = os.path.join(os.path.dirname(name), shard["stem"]), name.rsplit(".", 1)[1]
            count = int(shard["count"])
            expected |= {f"{stem}-{number:05}-of-{count:05}.{kind}" for number in range(1, count + 1)}
    return expected


def _json(path: str) -> object:
    try:
        with open(path, encoding="utf-8") as text:
            return json.load(text)
    except (OSError, ValueError):
        return {}


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
