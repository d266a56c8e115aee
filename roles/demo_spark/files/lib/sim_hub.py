"""A Hugging Face Hub of one's own: the Hub's HTTP as far as `hf download` and snapshot_download speak it.

    sim_hub.serve(["--root", FOLDER, "--port", "8890", "--rate", "5000000"])

It serves the repos below the folder, `org/name/files…`, and prints its URL as its first line. What changes below the
folder is a new commit of `main`. A repo's `.hub.json` says whether it is gated. With --token, gated repos want that
token (401 without one, 403 for the one that is called `denied`), and another token than these is refused everywhere, as
by the Hub itself; without --token every token will do. --rate is in bytes a second over all connections together.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import sys
import threading
import time
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

NOTES = ".hub.json"  # beside a repo's files: {"gated": true}
DENIED = "denied"  # a token that the Hub knows and that was not let in to any gated repo
LFS_FROM = 10_000  # bytes; what is bigger, or weights, is stored as LFS and answered with a redirect
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")


def lay(root: Path, spec: dict) -> None:
    """Write the spec's repos below `root`; what is there already is written over."""
    for repo, wish in spec.items():
        folder = Path(root) / repo
        for name, content in wish.get("files", {}).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, int):
                path.write_bytes(random.Random(f"{repo}/{name}").randbytes(content))
            else:
                path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2) + "\n")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NOTES).write_text(json.dumps({"gated": bool(wish.get("gated"))}))


class Bucket:
    """So many bytes a second over all connections together; None is as fast as it goes."""

    def __init__(self, rate: float | None):
        self.rate, self.lock, self.due = rate, threading.Lock(), time.monotonic()

    def wait(self, size: int) -> None:
        """Return when `size` bytes may have been sent."""
        if not self.rate:
            return
        with self.lock:
            self.due = max(self.due, time.monotonic()) + size / self.rate
            due = self.due
        time.sleep(max(0.0, due - time.monotonic()))


class Refusal(Exception):
    """An HTTP error as the Hub says it: status, X-Error-Code, X-Error-Message."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    root: Path
    bucket: Bucket
    token: str | None
    storage_port: int

    def do_GET(self) -> None:
        """Answer, or refuse as the Hub does."""
        try:
            self.answer(unquote(urlsplit(self.path).path).strip("/"))
        except Refusal as refusal:
            status, code, message = refusal.args
            headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
            self.send(status, json.dumps({"error": message}).encode(), headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_HEAD = do_GET

    def answer(self, path: str) -> None:
        """Find what the path means."""
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if self.token and given and given not in (self.token, DENIED):
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        parts = path.split("/")
        if ".." in parts or NOTES in parts:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        if path == "api/whoami-v2":
            if not given:
                raise Refusal(401, None, "Invalid username or password.")
            self.send_json({"type": "user", "name": "tester", "auth": {"type": "access_token"}})
        elif parts[:2] == ["api", "models"] and len(parts) >= 4:
            repo, what = "/".join(parts[2:4]), (parts[4:] or ["revision"])
            commit, files = self.revision(repo, unquote(what[1]) if len(what) > 1 else "main")
            if what[0] == "tree":
                self.allow(repo, given)
                self.send_tree(commit, files, "/".join(what[2:]))
            else:
                self.send_info(repo, commit, files)
        elif len(parts) >= 5 and parts[2] == "resolve":
            repo, name = "/".join(parts[:2]), "/".join(parts[4:])
            commit, files = self.revision(repo, unquote(parts[3]))
            self.allow(repo, given)
            if name not in files:
                raise Refusal(404, "EntryNotFound", "Entry not found")
            self.send_entry(repo, commit, name, files[name])
        elif len(parts) >= 4 and parts[0] == "cdn":
            self.send_file(self.root / "/".join(parts[1:3]) / "/".join(parts[3:]), {})
        else:
            raise Refusal(404, None, "Sorry, we can't find the page you are looking for.")

    def revision(self, repo: str, revision: str) -> tuple[str, dict]:
        """The commit that a branch or commit names, and its files."""
        folder = self.root / repo
        if not folder.is_dir():
            raise Refusal(404 if self.headers.get("Authorization") else 401, "RepoNotFound", "Repository not found")
        commit, files = listing(folder)
        if revision not in ("main", "HEAD", commit):
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, files

    def allow(self, repo: str, given: str) -> None:
        """Refuse a gated repo's files to whom they are not for."""
        if not gated(self.root / repo):
            return
        if not given:
            message = f"Access to model {repo} is restricted. You must have access to it and be authenticated."
            raise Refusal(401, "GatedRepo", message)
        if given == DENIED:
            message = f"Access to model {repo} is restricted and you are not in the authorized list."
            raise Refusal(403, "GatedRepo", message)

    def send_info(self, repo: str, commit: str, files: dict) -> None:
        """GET /api/models/<repo>/revision/<revision>"""
        siblings = [{"rfilename": name} for name in files]
        about = {"_id": commit[:24], "id": repo, "modelId": repo, "sha": commit, "private": False, "siblings": siblings}
        self.send_json(about | {"gated": "manual" if gated(self.root / repo) else False, "disabled": False, "tags": []})

    def send_tree(self, commit: str, files: dict, below: str) -> None:
        """GET /api/models/<repo>/tree/<revision>[/<folder>]?recursive=…"""
        deep = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
        rows, folders = [], set()
        for name, entry in files.items():
            if below and not name.startswith(below + "/"):
                continue
            parents = [str(parent) for parent in Path(name).parents if str(parent) not in (".", below)]
            folders |= {parent for parent in parents if not below or parent.startswith(below + "/")}
            if deep or len(Path(name).parts) == len(Path(below).parts) + 1:
                row = {"type": "file", "oid": entry["oid"], "size": entry["size"], "path": name}
                lfs = {"oid": entry["sha256"], "size": entry["size"], "pointerSize": 134} if entry["lfs"] else None
                rows.append(row | ({"lfs": lfs} if lfs else {}))
        shown = sorted(folder for folder in folders if deep or len(Path(folder).parts) == len(Path(below).parts) + 1)
        self.send_json([{"type": "directory", "oid": commit, "size": 0, "path": folder} for folder in shown] + rows)

    def send_entry(self, repo: str, commit: str, name: str, entry: dict) -> None:
        """HEAD or GET /<repo>/resolve/<revision>/<file>: the file, or for LFS where it is."""
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes", "ETag": f'"{entry["oid"]}"'}
        if not entry["lfs"]:
            self.send_file(self.root / repo / name, headers)
            return
        # Another port is another host to the client, as the Hub's storage is: it sends no token there.
        host = f"{self.headers.get('Host', '127.0.0.1').split(':')[0]}:{self.storage_port}"
        headers |= {"X-Linked-Size": str(entry["size"]), "X-Linked-Etag": f'"{entry["sha256"]}"'}
        place = f"http://{host}/cdn/{quote(repo)}/{quote(name)}"
        self.send(302, b"Found. Redirecting.", headers | {"Location": place, "ETag": f'"{entry["sha256"]}"'})

    def send_file(self, path: Path, headers: dict) -> None:
        """A file or one range of it, no faster than the rate."""
        try:
            size = path.stat().st_size
        except OSError:
            raise Refusal(404, "EntryNotFound", "Entry not found") from None
        wanted = self.headers.get("Range", "").removeprefix("bytes=").split("-")
        start, end, status = 0, size, 200
        if len(wanted) == 2 and wanted[0].isdigit():
            start, end, status = int(wanted[0]), min(size, int(wanted[1]) + 1 if wanted[1].isdigit() else size), 206
            if start >= size:
                self.send(416, b"", {"Content-Range": f"bytes */{size}"})
                return
            headers = headers | {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
        self.send(status, None, headers, end - start)
        if self.command == "HEAD":
            return
        piece = max(1, min(1 << 20, int((self.bucket.rate or 1 << 30) / 20)))
        with open(path, "rb") as file:
            file.seek(start)
            while start < end and (data := file.read(min(piece, end - start))):
                self.bucket.wait(len(data))
                self.wfile.write(data)
                start += len(data)

    def send_json(self, value: object) -> None:
        """One JSON answer."""
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8"})

    def send(self, status: int, body: bytes | None, headers: dict, size: int = 0) -> None:
        """Head and, if given, body."""
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(size if body is None else len(body)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_unused) -> None:
        """Nothing: a test prints what it needs."""


def gated(folder: Path) -> bool:
    """Whether the repo's notes say so."""
    try:
        return bool(json.loads((folder / NOTES).read_text())["gated"])
    except (OSError, ValueError, KeyError):
        return False


def listing(folder: Path) -> tuple[str, dict]:
    """(commit, {name: {oid, sha256, size, lfs}}) of what is in a repo's folder now."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != NOTES:
            stat = path.stat()
            files[path.relative_to(folder).as_posix()] = entry(str(path), stat.st_size, stat.st_mtime_ns)
    return hashlib.sha1(json.dumps(files).encode()).hexdigest(), files


@lru_cache(100_000)
def entry(path: str, size: int, _changed: int) -> dict:
    """A file's ids: git's SHA-1 and, for LFS, SHA-256."""
    oid, sha256 = hashlib.sha1(f"blob {size}\0".encode()), hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            oid.update(data)
            sha256.update(data)
    lfs = size >= LFS_FROM or path.endswith(WEIGHTS)
    return {"oid": oid.hexdigest(), "sha256": sha256.hexdigest(), "size": size, "lfs": lfs}


def main(_host_folder, _program, arguments):
    """As a program of a simulated Spark."""
    serve(arguments)


def serve(arguments: list[str]) -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(prog="hub")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--spec", type=Path)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--token")
    wish = parser.parse_args(arguments)
    wish.root.mkdir(parents=True, exist_ok=True)
    if wish.spec:
        lay(wish.root, json.loads(wish.spec.read_text()))
    settings = {"root": wish.root, "bucket": Bucket(wish.rate), "token": wish.token}
    handler = type("Here", (Handler,), settings)
    server, storage = ThreadingHTTPServer((wish.host, wish.port), handler), ThreadingHTTPServer((wish.host, 0), handler)
    handler.storage_port = storage.server_address[1]
    server.daemon_threads = storage.daemon_threads = True
    threading.Thread(target=storage.serve_forever, daemon=True).start()
    print(f"http://{wish.host}:{server.server_address[1]}", flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads the pipe any more
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
