"""Copy a model between two Sparks with rsync: what it consists of, what the far end lacks, how it is put in place.

A manifest is {name, kind: cache|local, commit, bytes, refs: {name: commit}, files: [{path, size, sha256, git}],
links: [{path, to}]}; every path is relative to the model's own folder, `links` are links inside it. Blobs of the shared
store are files here: they are sent as what they are, so that the copy is a whole model without the store, and each
once. Files travel into a hidden folder beside the model's, so that half a copy is never taken for a model.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor

from . import spark_cache, spark_model
from .spark_transfer import Trouble

STAGE = ".spark-copy-"
_MOST_FILES = 100_000
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9][A-Za-z0-9._-]{0,99}){0,4}")
# What ssh and rsync say when it fails: (a sign in the log, our code, our words about {far} seen from {near}).
_SAYINGS = (
    (r"No space left on device|Disk quota exceeded", "disk_full", "the disk is full"),
    (r"HOST IDENTIFICATION HAS CHANGED", "host_key_changed",
     "{far} shows another host key than the one that {near} trusts; if it was set up anew, run mesh_ssh_keys"),
    (r"Host key verification failed|No \w+ host key is known", "host_key_unknown",
     "{near} does not know the host key of {far}; run mesh_ssh_keys first"),
    (r"Permission denied \([a-z]|Too many authentication failures", "no_key",
     "{far} does not let {near} in; run mesh_ssh_keys first"),
    (r"rsync: (command )?not found|rsync: No such file|No such file or directory: 'rsync'|failed to exec rsync",
     "rsync_missing", "rsync is not installed on {near} or {far}"),
    (r"file has vanished|link_stat .* failed: No such file|change_dir .* failed: No such file", "source_vanished",
     "files went from {near} or {far} while they were copied"),
    (r"Permission denied \(13\)|Operation not permitted|Read-only file system", "not_writable",
     "a folder on the way may not be read or written"),
    (r"Connection refused|Connection timed out|No route to host|Network is unreachable|Could not resolve"
     r"|Connection reset|Broken pipe|connection unexpectedly closed|timeout (in data|waiting)|Timeout, server"
     r"|Connection closed|lost connection|error in socket IO", "link_down",
     "the connection from {near} to {far} is down"),
)  # fmt: skip


# --- what a model consists of ---------------------------------------------------------------------------------------


def look(hf_home: str, local: list[str], name: str, revision: str | None = None) -> dict:
    """What this Spark has of a model: {root, stage, there, complete, reason, manifest, have: {path: size},
    staged: {path: size}}.

    `root` is where the model's folder is or would be. Raises Trouble for a local folder outside the settings' ones.
    """
    entry = spark_cache.look(hf_home, name, revision, local)
    root = place(hf_home, local, name)
    answer = {"root": root, "stage": stage(root), "there": os.path.isdir(root), "manifest": None}
    answer |= {"complete": entry["state"] == "complete", "reason": entry["reason"] or entry["state"]}
    answer |= {"have": sizes(root), "staged": sizes(answer["stage"])}
    if answer["complete"]:
        answer["manifest"] = (
            of_cache(root, name, entry["revision"]) if entry["kind"] == "cache" else of_local(root, name)
        )
    return answer


def place(hf_home: str, local: list[str], name: str) -> str:
    """A model's own folder on this Spark, there or not; links above it are followed, it is below a folder of ours."""
    if not name.startswith(("/", "~")):
        if not spark_model.REPO.fullmatch(name):
            raise Trouble("bad_repo", f"\u201c{name[:100]}\u201d is neither a repo (org/name) nor an absolute path.")
        return os.path.join(os.path.realpath(os.path.expanduser(hf_home)), "hub", spark_cache.folder_name(name))
    path = os.path.realpath(os.path.expanduser(name))
    homes = [os.path.realpath(os.path.expanduser(folder)) for folder in local]
    if os.path.dirname(path) not in homes or os.path.basename(path).startswith("."):
        raise Trouble("bad_path", f"{name[:200]} is not in a folder of local models (local_model_dirs).")
    return path


def stage(root: str) -> str:
    """Where a model's files wait until all are there: beside its folder, so that they only have to be renamed."""
    return os.path.join(os.path.dirname(root), STAGE + os.path.basename(root))


def sizes(root: str) -> dict[str, int]:
    """{relative path: size} of the regular files below a folder, through links; no more than the limit of them."""
    found: dict[str, int] = {}
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not os.path.islink(os.path.join(folder, name))]
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError, UnicodeEncodeError):
                seen = os.stat(path)
                relative = os.path.relpath(path, root)
                relative.encode()
                if stat.S_ISREG(seen.st_mode):
                    found[relative] = seen.st_size
        if len(found) > _MOST_FILES:
            break
    return found


def of_cache(root: str, name: str, commit: str) -> dict:
    """The manifest of one revision in the Hugging Face cache."""
    snapshot = os.path.join(root, "snapshots", commit)
    files: dict[str, dict] = {}
    links = []
    for path in sizes(snapshot):
        here = os.path.join(snapshot, path)
        blob = blob_of(root, here)
        if blob:
            links.append({"path": f"snapshots/{commit}/{path}", "to": f"blobs/{blob}"})
            files[f"blobs/{blob}"] = file_row(root, f"blobs/{blob}") | known_hash(blob)
        else:
            files[f"snapshots/{commit}/{path}"] = file_row(root, f"snapshots/{commit}/{path}")
    tree = f"trees/{commit}.json"
    if os.path.isfile(os.path.join(root, tree)):
        files[tree] = file_row(root, tree)
    refs = {
        ref: commit for ref, size in sizes(os.path.join(root, "refs")).items() if size < 100 and _REF.fullmatch(ref)
    }
    refs = {ref: told for ref, told in refs.items() if read(os.path.join(root, "refs", ref)).strip() == told}
    return manifest(name, "cache", files, links) | {"commit": commit, "refs": refs}


def blob_of(root: str, path: str) -> str | None:
    """The name of the repo's own blob that a file of a snapshot is a link to; links may be absolute or relative."""
    try:
        target = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))
    except OSError:
        return None
    folder, name = os.path.split(target)
    inside = os.path.realpath(folder) == os.path.realpath(os.path.join(root, "blobs"))
    return name if inside and re.fullmatch(r"[A-Za-z0-9_-]{1,128}", name) else None


def known_hash(blob: str) -> dict:
    """What a blob's name says of its content: LFS files are named by SHA-256, small ones by git's SHA-1."""
    if re.fullmatch("[0-9a-f]{64}", blob):
        return {"sha256": blob}
    return {"git": blob} if re.fullmatch("[0-9a-f]{40}", blob) else {}


def of_local(root: str, name: str) -> dict:
    """The manifest of a folder: links that stay in it are links, what leads out of it is sent as a file."""
    files, links = {}, []
    for path in sizes(root):
        here = os.path.join(root, path)
        inner = os.path.relpath(os.path.realpath(here), root)
        if os.path.islink(here) and not inner.startswith(".."):
            links.append({"path": path, "to": inner})
        else:
            files[path] = file_row(root, path)
    for folder, folders, _unused in os.walk(root):
        for inner in folders:
            if os.path.islink(os.path.join(folder, inner)):
                raise Trouble("odd", f"{os.path.join(folder, inner)} is a link to a folder, which is not copied.")
    return manifest(name, "local", files, links) | {"commit": None, "refs": {}}


def file_row(root: str, path: str) -> dict:
    """One file of a manifest."""
    return {"path": path, "size": os.stat(os.path.join(root, path)).st_size, "sha256": None, "git": None}


def manifest(name: str, kind: str, files: dict, links: list) -> dict:
    """A manifest's common part."""
    rows = [files[path] for path in sorted(files)]
    return {"name": name, "kind": kind, "bytes": sum(row["size"] for row in rows), "files": rows, "links": links}


def checked(found: dict) -> dict:
    """The manifest, if none of its paths leads out of a model's folder: it came from another host."""
    paths = [row["path"] for row in found["files"]]
    paths += [link[key] for link in found["links"] for key in ("path", "to")] + [f"refs/{ref}" for ref in found["refs"]]
    for path in paths:
        parts = path.split("/")
        known = found["kind"] == "local" or parts[0] in ("blobs", "snapshots", "trees", "refs")
        if not known or {"", ".", ".."} & set(parts) or "\0" in path or len(path) > 4000:
            raise Trouble("odd", f"The other Spark names a file that cannot be one: {path[:100]!r}.")
    return found


# --- what is missing, and getting it --------------------------------------------------------------------------------


def lacking(found: dict, have: dict[str, int]) -> list[dict]:
    """The files of a manifest that are not there in their full size."""
    return [row for row in found["files"] if have.get(row["path"]) != row["size"]]


def whole(found: dict, seen: dict) -> bool:
    """Whether a look at the far end shows the whole of the manifest: its files, and every link leading to its file."""
    size = {row["path"]: row["size"] for row in found["files"]}
    linked = all(seen["have"].get(link["path"]) == size.get(link["to"], seen["have"].get(link["to"]))
                 for link in found["links"])  # fmt: skip
    return not lacking(found, seen["have"]) and linked and seen["complete"]


def ssh_command(key: str) -> list[str]:
    """ssh as it has to be where nobody can answer: a named key, pinned host keys, and an end to silence."""
    key = os.path.expanduser(key)
    named = ["-i", key] if os.path.exists(key) else []
    options = ["BatchMode=yes", "ConnectTimeout=10", "StrictHostKeyChecking=yes", "UpdateHostKeys=no"]
    options += ["ServerAliveInterval=5", "ServerAliveCountMax=4"]
    return ["ssh", *named, *(word for option in options for word in ("-o", option))]


def reaches(key: str, peers: list[dict]) -> dict[str, dict | None]:
    """Which peers let us in by ssh: {host: None, or why not as {code, words}}. Peers are {host, address, user}."""

    def tried(peer: dict) -> dict | None:
        try:
            done = subprocess.run(
                [*ssh_command(key), destination(peer), "exit 0"],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=20,
                check=False,
            )
        except FileNotFoundError:
            return {"code": "no_ssh", "words": "ssh is not installed on {near}"}
        except subprocess.TimeoutExpired:
            return {"code": "link_down", "words": "the connection from {near} to {far} is down"}
        return fault(done.returncode, done.stderr.decode(errors="replace")) if done.returncode else None

    with ThreadPoolExecutor(max(1, min(16, len(peers)))) as pool:
        return dict(zip([peer["host"] for peer in peers], pool.map(tried, peers), strict=True))


def destination(peer: dict) -> str:
    """`user@address`, as ssh and rsync take it. Raises Trouble for what they would read as an option."""
    address, user = str(peer["address"]), str(peer.get("user") or "")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*|[0-9A-Fa-f:]+", address) or not re.fullmatch(r"[\w.-]*", user):
        raise Trouble("bad_address", f"{address[:100]} is not an address.")
    return f"{user}@{address}" if user else address


def rsync_command(copy: dict, key: str, listed: str) -> list[str]:
    """rsync for one copy {direction: push|pull, kind, peer, root, stage}; `listed` has the names, 0-terminated.

    A blob's name tells its content, so what came of it is gone on with and then compared (--append-verify). A local
    file may have changed since: there what came is only what the rest is reckoned from (--inplace). -L: what is a link
    out of the folder has to arrive as a file.
    """
    user, at, address = destination(copy["peer"]).rpartition("@")
    far = f"{user}{at}[{address}]" if ":" in address else f"{user}{at}{address}"
    push = copy["direction"] == "push"
    source, target = copy["root"] + "/", copy["stage"] + "/"
    shell = " ".join(f"'{word}'" if " " in word else word for word in ssh_command(key))
    resumed = ["--append-verify"] if copy["kind"] == "cache" else ["--inplace", "--no-whole-file", "--ignore-times"]
    options = ["-s", "-t", "-L", *resumed, "--mkpath", "--timeout=60", "--no-inc-recursive", "--no-h"]
    options += ["--info=progress2", "--outbuf=L", "--from0", f"--files-from={listed}", "-e", shell]
    return ["rsync", *options, source if push else f"{far}:{source}", f"{far}:{target}" if push else target]


def sent(log: str) -> int:
    """Bytes that rsync has got through, by the last line of its progress."""
    found = re.findall(r"(?:^|[\r\n])\s*(\d+)\s+\d+%\s", log)
    return int(found[-1]) if found else 0


def fault(code: int, log: str) -> dict:
    """Why ssh or rsync failed: {code, words}; the words have {near} and {far} in them."""
    for sign, name, words in _SAYINGS:
        if re.search(sign, log):
            return {"code": name, "words": words}
    if code == 127:
        return {"code": "rsync_missing", "words": "rsync is not installed on {near} or {far}"}
    if code in (10, 12, 30, 35, 255):
        return {"code": "link_down", "words": "the connection from {near} to {far} is down"}
    last = next((line for line in reversed(log.splitlines()) if line.strip() and "%" not in line), "")
    said = last.strip()[:200].replace("{", "(").replace("}", ")")
    return {"code": "rsync", "words": f"rsync failed (exit code {code}){f': {said}' if said else ''}"}


# --- at the far end -------------------------------------------------------------------------------------------------


def settle(root: str, found: dict, by_hash: bool) -> bool:
    """Put what came in its place and see that all is there. Returns whether anything changed; raises Trouble.

    Blobs first, then the links that make a model of them, then the refs: what is cut in between is no whole model.
    """
    checked(found)
    waiting, have = sizes(stage(root)), sizes(root)
    moves = []
    for row in found["files"]:
        if have.get(row["path"]) == row["size"]:
            continue
        came = waiting.get(row["path"])
        if came != row["size"]:
            told = "is missing" if came is None else f"has {came:,} bytes"
            if came is not None and came > row["size"]:
                os.unlink(os.path.join(stage(root), row["path"]))
            raise Trouble(
                "size_mismatch", f"{row['path']} {told} after the copy and should have {row['size']:,} bytes."
            )
        moves.append(row["path"])
    if by_hash:
        check_hashes(root, found, set(moves))
    changed = bool(moves)
    if found["kind"] == "local" and not os.path.exists(root):
        for path in waiting.keys() - set(moves):
            os.unlink(os.path.join(stage(root), path))  # of a copy that was cut, before the model changed
        for link in found["links"]:
            make_link(stage(root), link)
        os.rename(stage(root), root)
        return True
    for path in moves:
        target = os.path.join(root, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(os.path.join(stage(root), path), target)
    for link in found["links"]:
        changed |= make_link(root, link)
    for ref, commit in found["refs"].items():
        path = os.path.join(root, "refs", ref)
        if read(path).strip() != commit:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path + ".new", "w", encoding="ascii") as text:
                text.write(commit)
            os.replace(path + ".new", path)
            changed = True
    # Only what is left of this copy: rsync's own folders, empty by now.
    shutil.rmtree(stage(root), ignore_errors=True)
    return changed


def make_link(root: str, link: dict) -> bool:
    """A relative link inside the model's folder; whether it had to be made."""
    path = os.path.join(root, link["path"])
    to = os.path.relpath(link["to"], os.path.dirname(link["path"]))
    if os.path.islink(path) and os.readlink(path) == to:
        return False
    if (
        os.path.isfile(path)
        and os.path.exists(os.path.join(root, link["to"]))
        and os.path.samefile(path, os.path.join(root, link["to"]))
    ):
        return False
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + ".new")
    os.symlink(to, path + ".new")
    os.replace(path + ".new", path)
    return True


def check_hashes(root: str, found: dict, staged: set[str]) -> None:
    """Compare every file's content with what it has to be; what differs is removed, so that the next copy brings it."""
    rows = [row for row in found["files"] if row["sha256"] or row["git"]]
    places = [os.path.join(stage(root) if row["path"] in staged else root, row["path"]) for row in rows]
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(digest, places, rows))
    wrong = [(row, path) for row, path, told in zip(rows, places, digests, strict=True)
             if told != (row["sha256"] or row["git"])]  # fmt: skip
    for _unused, path in wrong:
        os.unlink(path)
    if wrong:
        raise Trouble(
            "hash_mismatch",
            f"{len(wrong)} of {len(rows)} files differ from what they should be, {wrong[0][0]['path']} the first. They "
            "were removed; copy again, and if it comes again, the original is damaged.",
        )


def digest(path: str, row: dict) -> str:
    """A file's SHA-256, or git's SHA-1 of it where that is what is known. The interpreter's lock is free meanwhile."""
    told = hashlib.sha256() if row["sha256"] or not row["git"] else hashlib.sha1(f"blob {row['size']}\0".encode())
    with open(path, "rb") as file:
        while data := file.read(4 << 20):
            told.update(data)
    return told.hexdigest()


def read(path: str) -> str:
    """A small file's text, or nothing."""
    try:
        with open(path, encoding="ascii", errors="replace") as text:
            return text.read(256)
    except OSError:
        return ""
