#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: download a model from the Hub into this Spark's cache, in a container that outlives SSH."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_download
short_description: Download a model's weights, one stretch at a time
description:
  - O(state=started) asks the Hub what the repo consists of, compares that with the disk, sees whether it fits, and
    starts C(hf download) in a named container. One that runs already is attached to; weights that are whole are left.
  - O(state=watched) is meant for C(until). One call watches until there is news, at most O(hold_seconds), and at the
    end sees that every file is there in its full size.
  - O(state=absent) stops the download. Files that are whole stay, so that a later download takes it up there.
  - O(state=told) runs on the controller and puts what the tasks before it registered into one result.
  - What goes wrong is answered as RV(problem) rather than as a failed task, because C(until) retries failures.
  - The token goes into a file of mode 0600 for as long as the container is there, and into nothing else. The action
    plugin of the same name reads it on the controller.
attributes:
  check_mode: {support: full, description: Says what would be downloaded or stopped.}
  diff_mode: {support: full, description: Lists the files that come.}
  idempotent: {support: full, description: Weights that are whole are left.}
options:
  state: {type: str, choices: [started, watched, absent, told], default: started, description: What to do.}
  repo: {type: str, required: true, description: "The Hub repo, C(org/name)."}
  revision: {type: str, default: main, description: "A branch, tag or commit."}
  hf_home: {type: path, required: true, description: The Hugging Face cache folder.}
  state_dir: {type: path, required: true, description: "Where the record is and, while it is needed, the token."}
  endpoint: {type: str, default: "https://huggingface.co", description: The Hub.}
  image: {type: str, default: vllm-node, description: An image on this Spark that has C(hf).}
  workers: {type: int, default: 4, description: How many files come at once; a cut costs those that had not come whole.}
  token_file:
    type: str
    description:
      - A file on the controller, of mode 0600, that holds the token. Without one, the Spark's own C(HF_HOME/token).
  token: {type: str, description: The token itself; the action plugin sets it.}
  hold_seconds: {type: float, default: 10, description: The longest that one call watches.}
  host: {type: str, description: For O(state=told) the Spark that it was about.}
  operation: {type: str, default: download_weights, description: For O(state=told) the result's operation.}
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: See what Qwen3.6 takes and start its download
  spark.control.weights_download:
    repo: Qwen/Qwen3.6-35B-A3B-FP8
    hf_home: ~/.cache/huggingface
    state_dir: ~/.spark-control

- name: Download Qwen3.6
  spark.control.weights_download:
    state: watched
    repo: Qwen/Qwen3.6-35B-A3B-FP8
    hf_home: ~/.cache/huggingface
    state_dir: ~/.spark-control
  register: download
  until: download.done or download.problem is defined
  retries: 100000
  delay: 0
"""

RETURN = r"""
done: {description: Whether the weights are whole., returned: always, type: bool}
message: {description: Where it is as a sentence., returned: always, type: str,
          sample: "12 of 61 GB, 84 MB/s, about 10 min left"}
phase: {description: What it does., returned: while it runs, type: str, sample: downloading}
percent: {description: How far it is., returned: while it runs, type: int, sample: 19}
seconds: {description: Seconds since it began., returned: while it runs, type: float}
progress: {description: The figures in bytes., returned: while it runs, type: dict,
           sample: {done: 12884901888, total: 65498251264, percent: 19, speed: 88080384}}
weights: {description: What came of it., returned: when done, type: dict,
          sample: {repo: Qwen/Qwen3.6-35B-A3B-FP8, commit: 0123abcd, bytes: 37000000000, files: 14, path: /home/…,
                   state: complete}}
problem: {description: What went wrong., returned: when something did, type: dict}
log_tail: {description: The last lines of its log., returned: when it ended by itself, type: list}
result: {description: "{operation, ok, changed, outcome, reason, message, weights, problems, …}", returned: when told,
         type: dict}
"""

import contextlib
import fcntl
import glob
import os
import re
import stat
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spark.control.plugins.module_utils import spark_cache, spark_docker, spark_transfer
from ansible_collections.spark.control.plugins.module_utils.spark_hub import Hub
from ansible_collections.spark.control.plugins.module_utils.spark_transfer import Trouble, amount

_LOOK_EVERY = 0.5
_LABEL_REPO = "spark-control.download.repo"
_LABEL_REVISION = "spark-control.download.revision"
# What hf says when it fails: (a sign in its log, our code, our words).
_SAYINGS = (
    (r"No space left on device|Not enough free disk space|Disk quota exceeded", "disk_full", "the disk is full"),
    (r"GatedRepo|gated repo", "gated", "the repo is gated and the token has no access"),
    (r"Invalid credentials|401 (Client Error|Unauthorized)", "token_refused", "the Hub refused the token"),
    (r"RepositoryNotFound|Repository Not Found", "not_found", "the Hub has no such repo any more"),
    (r"RevisionNotFound|Revision Not Found", "no_revision", "the Hub has no such revision any more"),
    (r"Permission ?[Dd]enied", "not_writable", "the cache folder cannot be written"),
    (r"Connect(ion)?Error|Timeout|timed out|LocalEntryNotFound|RemoteProtocol|Name or service", "hub_unreachable",
     "the connection to the Hub broke off"),
    (r'"hf".*(not found|no such file)', "no_hf", "its image has no hf (huggingface_hub)"),
)  # fmt: skip


class Download:
    """One repo's revision on its way into this Spark's cache."""

    def __init__(self, wish: dict):
        self.wish = wish
        self.repo, self.revision = wish["repo"], wish["revision"]
        spark_transfer.check_repo(self.repo, self.revision)
        self.id = "download-" + spark_transfer.transfer_id(self.repo, self.revision)
        self.container = f"spark-control-{self.id}"
        self.folder = spark_transfer.repo_folder(wish["hf_home"], self.repo)
        self.hub_folder = os.path.dirname(self.folder)

    # starting

    def start(self, check: bool) -> dict:
        """See what is missing and start the download of it, unless one runs or nothing is."""
        there = spark_docker.container(self.container)
        record = spark_transfer.read_record(self.wish["state_dir"], self.id)
        if there and there["running"] and record:
            return self.state(record) | {"changed": False, "attached": True}
        try:
            listing = self.listing()
        except Trouble as trouble:
            here = spark_cache.look(self.wish["hf_home"], self.repo, self.revision)
            if trouble.code != "hub_unreachable" or here["state"] != "complete":
                raise
            message = f"{self.repo} is there already; whether the Hub has a newer one could not be asked"
            return {"changed": False, "done": True, "message": message, "percent": 100}
        files, total = listing["files"], sum(file["size"] for file in listing["files"])
        missing = [file for file in files if not self.in_place(file, listing["commit"])]
        if not missing:
            if not check:
                self.clear()
            return self.finished(listing, changed=False)
        self.hub.allowed(self.repo, listing["commit"], max(missing, key=lambda file: file["size"])["path"])
        self.must_write()
        have = self.bytes_there(files)
        self.must_fit(total - have, total)
        if spark_docker.image_id(self.wish["image"]) is None:
            raise Trouble("no_image", f"The image {self.wish['image']}, which has hf, is not on this Spark.")
        # A blob that is there already and only lacks its link is not listed: nothing of it comes.
        coming = [file for file in missing if not self.blob_there(file)]
        diff = {"before": "", "after": "".join(f"{file['path']} ({amount(file['size'])})\n" for file in coming)}
        if check:
            message = f"{amount(total - have)} in {len(coming)} files would be downloaded"
            return {"changed": True, "done": True, "message": message, "diff": diff}
        with spark_transfer.alone(self.wish["state_dir"]):
            there = spark_docker.container(self.container)
            record = spark_transfer.read_record(self.wish["state_dir"], self.id)
            if there and there["running"] and record:  # another run was quicker
                return self.state(record) | {"changed": False, "attached": True}
            self.clear()
            record = {"repo": self.repo, "revision": self.revision, "phase": "downloading", "started": time.time()}
            record |= {"commit": listing["commit"], "files": files, "total": total, "samples": []}
            spark_transfer.write_record(self.wish["state_dir"], self.id, record)
            self.run()
        return self.state(record) | {"changed": True, "attached": False, "diff": diff}

    def listing(self) -> dict:
        """What the Hub says the revision consists of."""
        if not re.match(r"https?://", self.wish["endpoint"]):
            raise Trouble("hub", f"The Hub's address {self.wish['endpoint']} is none of http or https.")
        self.hub = Hub(self.wish["endpoint"], self.wish["token"] or self.own_token())
        return self.hub.listing(self.repo, self.revision)

    def own_token(self) -> str | None:
        """The token that `hf auth login` left on this Spark."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            path = os.path.join(os.path.dirname(self.hub_folder), "token")
            with open(path, encoding="ascii") as text:
                found = text.read(4096).strip()
            return found if re.fullmatch(r"[\x21-\x7e]+", found) else None
        return None

    def must_write(self) -> None:
        """Raise Trouble where hf could not write, of what it writes into."""
        locks = os.path.join(self.hub_folder, ".locks")
        inside = [os.path.join(self.folder, name) for name in ("blobs", "snapshots", "refs")]
        spark_transfer.must_write(
            self.hub_folder, self.folder, *inside, locks, os.path.join(locks, os.path.basename(self.folder))
        )

    def must_fit(self, need: int, total: int) -> None:
        """Raise Trouble where the disk is too small, with both sides."""
        free = spark_transfer.free(self.hub_folder)
        if need > free:
            whole = "" if need == total else f" of its {amount(total)}"
            raise Trouble(
                "disk_full",
                f"{self.repo} needs {amount(need)} more{whole}, and {amount(free)} are free in {self.hub_folder}.",
            )

    def run(self) -> None:
        """Start the container: this user's, with the cache at its own path, so that every link in it means the same."""
        home = os.path.dirname(self.hub_folder)
        for folder in (home, self.hub_folder):
            os.makedirs(folder, exist_ok=True)
        command = ["run", "-d", "--pull", "never", "--name", self.container, "--network", "host"]
        command += ["--user", f"{os.getuid()}:{os.getgid()}"]
        command += ["--label", f"{_LABEL_REPO}={self.repo}", "--label", f"{_LABEL_REVISION}={self.revision}"]
        for folder in dict.fromkeys((home, os.path.realpath(self.hub_folder))):
            command += ["-v", f"{folder}:{folder}"]
        environment = {
            "HF_HOME": home,
            "HF_ENDPOINT": self.wish["endpoint"],
            "HOME": "/tmp",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        }
        if self.wish["token"]:
            token = spark_transfer.record_path(self.wish["state_dir"], self.id, ".token")
            spark_transfer.save(token, self.wish["token"])
            command += ["-v", f"{token}:{token}:ro"]
            environment["HF_TOKEN_PATH"] = token
        command += [word for key, value in environment.items() for word in ("-e", f"{key}={value}")]
        command += ["--entrypoint", "hf", self.wish["image"], "download", self.repo, "--revision", self.revision]
        command += ["--max-workers", str(self.wish["workers"])]
        done = spark_docker.docker(*command, timeout=60)
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())
            self.clear()
            if re.search(r'"hf".*(not found|no such file)', said):
                raise Trouble("no_hf", f"The image {self.wish['image']} has no hf (huggingface_hub).")
            raise Trouble("docker", f"docker did not start it: {said[:500]}.")

    # watching

    def watch(self) -> dict:
        """Watch until there is news, at most hold_seconds."""
        until = time.monotonic() + self.wish["hold_seconds"]
        first = None
        while True:
            record = spark_transfer.read_record(self.wish["state_dir"], self.id)
            there = spark_docker.container(self.container)
            if record is None or there is None:
                return self.gone()
            if not there["running"]:
                return self.ended(record)
            now = self.state(record)
            spark_transfer.write_record(self.wish["state_dir"], self.id, record)
            first = first or now
            if now["percent"] >= first["percent"] + 2 or time.monotonic() >= until:
                return now
            time.sleep(_LOOK_EVERY)

    def gone(self) -> dict:
        """Somebody else saw to its end: another run that watched it too, or one that stopped it."""
        here = spark_cache.look(self.wish["hf_home"], self.repo, self.revision)
        if here["state"] != "complete":
            raise Trouble("gone", f"The download of {self.repo} was stopped by somebody else.")
        message = f"{self.repo} is downloaded: {amount(here['bytes'])} in {here['files']} files"
        return {"done": True, "message": message, "percent": 100}

    def state(self, record: dict) -> dict:
        """Where it is, by what is on the disk."""
        return {"done": False} | spark_transfer.gauge(record, self.bytes_there(record["files"]))

    def ended(self, record: dict) -> dict:
        """hf is done: is everything there?"""
        code = spark_docker.docker("inspect", "--format", "{{.State.ExitCode}}", self.container).stdout.strip()
        log = spark_docker.logs(self.container, tail=200).decode(errors="replace")
        missing = [file for file in record["files"] if not self.in_place(file, record["commit"])]
        self.clear()
        if not missing:
            return self.finished(record, changed=True) | {"seconds": round(time.time() - record["started"], 1)}
        kept = f"{amount(self.bytes_there(record['files']))} of {amount(record['total'])} are there and stay"
        told = next((row[1:] for row in _SAYINGS if re.search(row[0], log)), None)
        if code == b"0":
            told = (
                "incomplete",
                f"hf ended well, but {len(missing)} files are missing, {missing[0]['path']} the first",
            )
        code_word, words = told or ("failed", f"hf failed (exit code {code.decode()[:10]})")
        message = f"The download of {self.repo} stopped: {words}; {kept}."
        problem = {"code": code_word, "message": message}
        return {"done": False, "problem": problem, "message": message, "log_tail": spark_transfer.lines(log)}

    def finished(self, listing: dict, changed: bool) -> dict:
        """What is there now."""
        total = sum(file["size"] for file in listing["files"])
        words = "is downloaded" if changed else "is there already"
        weights = {"repo": self.repo, "revision": self.revision, "commit": listing["commit"], "bytes": total}
        weights |= {"files": len(listing["files"]), "path": os.path.join(self.folder, "snapshots", listing["commit"])}
        weights["state"] = spark_cache.look(self.wish["hf_home"], self.repo, self.revision)["state"]
        message = f"{self.repo} {words}: {amount(total)} in {len(listing['files'])} files"
        return {"done": True, "changed": changed, "weights": weights, "message": message, "percent": 100}

    # stopping

    def stop(self, check: bool) -> dict:
        """Remove the container. What came whole stays."""
        there = spark_docker.container(self.container)
        record = spark_transfer.read_record(self.wish["state_dir"], self.id)
        if not there and not record:
            return {"changed": False, "done": True, "message": f"no download of {self.repo} was running"}
        if not check:
            with spark_transfer.alone(self.wish["state_dir"]):
                self.clear()
        kept = ""
        if record:
            have = amount(self.bytes_there(record["files"]))
            kept = f"; {have} of {amount(record['total'])} are there and stay, and the next download takes it up"
        return {"changed": True, "done": True, "message": f"the download of {self.repo} was stopped{kept}"}

    def clear(self) -> None:
        """Remove the container, the token, the record, and partial files that nothing would ever take up."""
        if spark_docker.container(self.container):
            spark_docker.docker("rm", "-f", self.container, timeout=60)
            if (left := spark_docker.container(self.container)) and left["running"]:
                raise Trouble("docker", f"docker did not remove the container {self.container}.")
        spark_transfer.forget(self.wish["state_dir"], self.id)
        for path in glob.glob(os.path.join(glob.escape(self.folder), "blobs", "*.incomplete")):
            etag, *middle, _ = os.path.basename(path).split(".")
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


def size(path: str) -> int | None:
    """A regular file's size through links, or None."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def main() -> None:
    """Start, watch one stretch, or stop."""
    module = AnsibleModule(
        {
            "state": {"type": "str", "choices": ["started", "watched", "absent"], "default": "started"},
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "default": "main"},
            "hf_home": {"type": "path", "required": True},
            "state_dir": {"type": "path", "required": True},
            "endpoint": {"type": "str", "default": "https://huggingface.co"},
            "image": {"type": "str", "default": "vllm-node"},
            "workers": {"type": "int", "default": 4},
            "token_file": {"type": "str", "no_log": False},
            "token": {"type": "str", "no_log": True},
            "hold_seconds": {"type": "float", "default": 10},
        },
        supports_check_mode=True,
    )
    result = {"changed": False, "done": False}
    try:
        download = Download(module.params)
        if module.params["state"] == "started":
            result |= download.start(module.check_mode)
        elif module.params["state"] == "absent":
            result |= download.stop(module.check_mode)
        else:
            result |= download.watch()
    except Trouble as trouble:
        result |= {"problem": trouble.problem(), "message": str(trouble)}
    except spark_docker.DockerError as error:
        message = f"docker on this Spark does not answer: {error}."
        result |= {"problem": {"code": "docker", "message": message}, "message": message}
    except OSError as error:
        message = f"The cache or the state folder cannot be used: {error.strerror or error} ({error.filename})."
        result |= {"problem": {"code": "not_writable", "message": message}, "message": message}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
