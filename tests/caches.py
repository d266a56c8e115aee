"""Hugging Face caches made by hand, for what the real huggingface_hub never leaves, or not at will."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

MARKER = ".huggingface-shared-blobs"
WHOLE = {
    "config.json": '{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}',
    "model-00001-of-00002.safetensors": b"1" * 5000,
    "model-00002-of-00002.safetensors": b"2" * 7000,
}


def repo_folder(hf_home: Path, repo: str, kind: str = "models") -> Path:
    """Where a repo lies in a cache."""
    return Path(hf_home) / "hub" / f"{kind}--{repo.replace('/', '--')}"


def model(hf_home: Path, repo: str, files: dict = WHOLE, shared: bool = False, tree: bool = False, **wish) -> Path:
    """Lay one snapshot as huggingface_hub does, weights in the shared store if wanted; returns the snapshot.

    wish: kind (`models`), ref (`main`; None writes none), revision (a commit), tree_files (what its tree lists).
    """
    folder = repo_folder(hf_home, repo, wish.get("kind", "models"))
    files = {name: content.encode() if isinstance(content, str) else content for name, content in files.items()}
    commit = wish.get("revision") or hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    (folder / "blobs").mkdir(exist_ok=True)
    if wish.get("ref", "main"):
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / wish.get("ref", "main")).write_text(commit)
    for name, content in files.items():
        etag = hashlib.sha256(content).hexdigest()
        blob = folder / "blobs" / etag
        if not os.path.lexists(blob):
            if shared and name.endswith(".safetensors"):
                share_blob(hf_home, blob, content)
            else:
                blob.write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(link):
            link.symlink_to(os.path.relpath(blob, link.parent))
    if tree:
        listed = {name: len(content) for name, content in files.items()} | wish.get("tree_files", {})
        rows = {}
        for name, size in listed.items():
            etag = hashlib.sha256(files.get(name, name.encode())).hexdigest()
            rows[name] = {"size": size, "blob_id": etag[:40], "lfs_sha256": etag, "lfs_size": size}
        (folder / "trees").mkdir(exist_ok=True)
        (folder / "trees" / f"{commit}.json").write_text(json.dumps({"format_version": 1, "files": rows}))
    return snapshot


def share_blob(hf_home: Path, blob: Path, content: bytes) -> Path:
    """Put a payload into the shared store and a link to it at `blob`, with the notes that huggingface_hub keeps."""
    store = Path(hf_home) / "hub" / "blobs"
    digest = hashlib.sha256(b"xet" + content).hexdigest()
    payload = store / digest[:2] / digest
    payload.parent.mkdir(parents=True, exist_ok=True)
    (store / MARKER).write_text("1\n")
    if not payload.exists():
        payload.write_bytes(content)
    with open(f"{payload}.refs", "a") as notes:
        notes.write(f"{blob.relative_to(store.parent)}\n")
    blob.symlink_to(os.path.relpath(payload, blob.parent))
    return payload


def listing(root: Path) -> dict[str, tuple]:
    """Everything below a folder: path → (kind, link's text or content), to compare trees."""
    found = {}
    for place, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            if os.path.islink(path):
                found[path] = ("link", os.readlink(path))
            elif os.path.isfile(path):
                found[path] = ("file", Path(path).read_bytes())
            else:
                found[path] = ("folder", None)
    return found


def room(root: Path) -> int:
    """Bytes that the file system gave to everything below a folder, each file once (as `du` counts)."""
    seen = {}
    for place, folders, files in os.walk(root):
        for path in (place, *(os.path.join(place, name) for name in (*folders, *files))):
            row = os.lstat(path)
            seen[row.st_dev, row.st_ino] = row.st_blocks * 512
    return sum(seen.values())


def let_others_in(folder: Path) -> None:
    """Let other users into a test's folder: pytest keeps what is above it to its owner."""
    while folder not in (Path(tempfile.gettempdir()), Path("/")):
        folder.chmod(folder.stat().st_mode | 0o755)
        folder = folder.parent


def as_nobody(work) -> object:
    """What `work` returns, as JSON, in a process of a user who may not read or write everything."""
    reader, writer = os.pipe()
    if not os.fork():
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            os.write(writer, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.wait()
    with open(reader, "rb") as answer:
        return json.loads(answer.read() or b"null")
