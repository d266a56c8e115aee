"""One revision of a repo on its way into this Spark's cache: its container, its record, what of it is on the disk."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import stat

from . import spark_cache, spark_docker, spark_transfer
from .spark_transfer import Trouble, amount


class Download:
    """`record` is spark_transfer's, and {repo, revision, commit, files}; `files` are the Hub's, see spark_hub."""

    def __init__(self, wish: dict):
        self.repo, self.revision = wish["repo"], wish["revision"]
        self.hf_home, self.state_dir = wish["hf_home"], wish["state_dir"]
        spark_transfer.check_repo(self.repo, self.revision)
        self.id = "download-" + spark_transfer.transfer_id(self.repo, self.revision)
        self.container = f"spark-control-{self.id}"
        self.folder = spark_transfer.repo_folder(self.hf_home, self.repo)
        self.hub_folder = os.path.dirname(self.folder)

    def record(self) -> dict | None:
        """What was written down when it began."""
        return spark_transfer.read_record(self.state_dir, self.id)

    def running(self) -> dict | None:
        """Its record, if it runs."""
        there, record = spark_docker.container(self.container), self.record()
        return record if there and there["running"] else None

    def here(self) -> dict:
        """The model as the scan tells it."""
        return spark_cache.look(self.hf_home, self.repo, self.revision)

    def state(self, record: dict) -> dict:
        """Where it is, by what is on the disk."""
        return {"done": False} | spark_transfer.gauge(record, self.bytes_there(record["files"]))

    def finished(self, listing: dict, changed: bool) -> dict:
        """What is there now."""
        total = sum(file["size"] for file in listing["files"])
        words = "is downloaded" if changed else "is there already"
        weights = {"repo": self.repo, "revision": self.revision, "commit": listing["commit"], "bytes": total}
        weights |= {"files": len(listing["files"]), "path": os.path.join(self.folder, "snapshots", listing["commit"])}
        weights["state"] = self.here()["state"]
        message = f"{self.repo} {words}: {amount(total)} in {len(listing['files'])} files"
        return {"done": True, "changed": changed, "weights": weights, "message": message, "percent": 100}

    def clear(self) -> None:
        """Remove the container, the token, the record, and partial files that nothing would ever take up."""
        if spark_docker.container(self.container):
            spark_docker.docker("rm", "-f", self.container, timeout=60)
            if (left := spark_docker.container(self.container)) and left["running"]:
                raise Trouble("docker", f"docker did not remove the container {self.container}.")
        spark_transfer.forget(self.state_dir, self.id)
        for path in glob.glob(os.path.join(glob.escape(self.folder), "blobs", "*.incomplete")):
            etag, *middle, _unused = os.path.basename(path).split(".")
            # `<etag>.<8 hex>.incomplete` is one process's own and no later one takes it up; what older versions of
            # huggingface_hub call `<etag>.incomplete` they do.
            if middle and self.unlocked(etag):
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def unlocked(self, etag: str) -> bool:
        """Whether nobody else downloads that blob: huggingface_hub holds a lock on it for as long."""
        path = os.path.join(self.hub_folder, ".locks", os.path.basename(self.folder), f"{etag}.lock")
        try:
            with open(path, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    # what is on the disk

    def in_place(self, file: dict, commit: str) -> bool:
        """Whether a file stands in the snapshot in its full size, through its links."""
        return size(os.path.join(self.folder, "snapshots", commit, file["path"])) == file["size"]

    def blob_there(self, file: dict) -> bool:
        """Whether a file's content is there, under whatever name hf would find it."""
        places = [os.path.join(self.folder, "blobs", file["etag"])]
        if file["xet"]:
            places.append(os.path.join(self.hub_folder, "blobs", file["xet"][:2], file["xet"]))
        return any(size(place) == file["size"] for place in places)

    def bytes_there(self, files: list[dict]) -> int:
        """Bytes of these files that are on the disk, whole or in part."""
        partial: dict[str, int] = {}
        with contextlib.suppress(OSError), os.scandir(os.path.join(self.folder, "blobs")) as entries:
            for entry in entries:
                if entry.name.endswith(".incomplete"):
                    with contextlib.suppress(OSError):
                        found = entry.stat(follow_symlinks=False)
                        # A file may be made in its full length at once; what is in it is what takes room.
                        came = min(found.st_size, found.st_blocks * 512)
                        etag = entry.name.split(".", 1)[0]
                        partial[etag] = max(partial.get(etag, 0), came)
        return sum(
            file["size"] if self.blob_there(file) else min(partial.pop(file["etag"], 0), file["size"]) for file in files
        )


def answer(module, phase) -> None:
    """Run one phase and end the module with what it answers; what goes wrong is its `problem`.

    A failed task would be retried by `until`.
    """
    result = {"changed": False, "done": False}
    try:
        result |= phase()
    except Trouble as trouble:
        result |= {"problem": trouble.problem(), "message": str(trouble)}
    except spark_docker.DockerError as error:
        message = f"docker on this Spark does not answer: {error}."
        result |= {"problem": {"code": "docker", "message": message}, "message": message}
    except OSError as error:
        message = f"The cache or the state folder cannot be used: {error.strerror or error} ({error.filename})."
        result |= {"problem": {"code": "not_writable", "message": message}, "message": message}
    module.exit_json(**result)


def size(path: str) -> int | None:
    """A regular file's size through links, or None."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
