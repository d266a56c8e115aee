#!/usr/bin/python
# Copyright: (c) 2026, Spark Control
# GNU General Public License v3.0 or later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible module: see what is missing of a model and start its download, in a container that outlives SSH."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: weights_download_start
short_description: Start to download a model's weights
description:
  - Asks the Hub what the repo consists of, compares that with the disk, sees whether it fits, and starts
    C(hf download) in a named container. One that runs already is attached to; weights that are whole are left.
  - What goes wrong is answered as RV(problem) rather than as a failed task.
  - The token goes into a file of mode 0600 for as long as the container is there, and into nothing else. The action
    plugin of the same name reads it on the controller.
attributes:
  check_mode: {support: full, description: Says what would be downloaded.}
  diff_mode: {support: full, description: Lists the files that come.}
  idempotent: {support: full, description: Weights that are whole are left.}
options:
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
author: [Spark Control (!UNKNOWN)]
"""

EXAMPLES = r"""
- name: See what Qwen3.6 takes and start its download
  spark.control.weights_download_start:
    repo: Qwen/Qwen3.6-35B-A3B-FP8
    hf_home: ~/.cache/huggingface
    state_dir: ~/.spark-control
  register: started
"""

RETURN = r"""
done: {description: Whether the weights are whole., returned: always, type: bool}
message: {description: Where it is as a sentence., returned: always, type: str,
          sample: "12 of 61 GB, 84 MB/s, about 10 min left"}
phase: {description: What it does., returned: while it runs, type: str, sample: downloading}
percent: {description: How far it is., returned: unless it went wrong, type: int, sample: 19}
seconds: {description: Seconds since it began., returned: while it runs, type: float}
progress: {description: The figures in bytes., returned: while it runs, type: dict,
           sample: {done: 12884901888, total: 65498251264, percent: 19, speed: 88080384}}
weights: {description: What came of it., returned: when the weights are whole and the Hub was asked, type: dict,
          sample: {repo: Qwen/Qwen3.6-35B-A3B-FP8, revision: main, commit: 0123abcd, bytes: 37000000000, files: 14,
                   path: /home/…, state: complete}}
attached: {description: Whether it ran already., returned: when it runs, type: bool}
problem: {description: What went wrong., returned: when something did, type: dict,
          sample: {code: disk_full, message: "org/name needs 61 GB more, and 12 GB are free in /home/x."}}
"""

import contextlib
import os
import re
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.spark.control.plugins.module_utils import spark_docker, spark_download, spark_transfer
from ansible_collections.spark.control.plugins.module_utils.spark_hub import Hub
from ansible_collections.spark.control.plugins.module_utils.spark_transfer import Trouble, amount
from ansible_collections.spark.control.plugins.module_utils.spark_write import write_text

_LABEL_REPO = "spark-control.download.repo"
_LABEL_REVISION = "spark-control.download.revision"


class Start(spark_download.Download):
    """A download that is to begin."""

    def __init__(self, wish: dict):
        super().__init__(wish)
        self.wish = wish

    def start(self, check: bool) -> dict:
        """See what is missing and start the download of it, unless one runs or nothing is."""
        record = self.running()
        if record:
            return self.state(record) | {"changed": False, "attached": True}
        try:
            listing = self.listing()
        except Trouble as trouble:
            here = self.here()
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
        if spark_docker.image(self.wish["image"]) is None:
            raise Trouble("no_image", f"The image {self.wish['image']}, which has hf, is not on this Spark.")
        # A blob that is there already and only lacks its link is not listed: nothing of it comes.
        coming = [file for file in missing if not self.blob_there(file)]
        diff = {"before": "", "after": "".join(f"{file['path']} ({amount(file['size'])})\n" for file in coming)}
        if check:
            message = f"{amount(total - have)} in {len(coming)} files would be downloaded"
            return {"changed": True, "done": True, "message": message, "diff": diff}
        with spark_transfer.alone(self.state_dir):
            record = self.running()
            if record:  # another run was quicker
                return self.state(record) | {"changed": False, "attached": True}
            self.clear()
            record = {"repo": self.repo, "revision": self.revision, "phase": "downloading", "started": time.time()}
            record |= {"commit": listing["commit"], "files": files, "total": total, "samples": []}
            spark_transfer.write_record(self.state_dir, self.id, record)
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
            token = spark_transfer.record_path(self.state_dir, self.id, ".token")
            write_text(token, self.wish["token"])
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


def main() -> None:
    """Start, and answer."""
    module = AnsibleModule(
        {
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "default": "main"},
            "hf_home": {"type": "path", "required": True},
            "state_dir": {"type": "path", "required": True},
            "endpoint": {"type": "str", "default": "https://huggingface.co"},
            "image": {"type": "str", "default": "vllm-node"},
            "workers": {"type": "int", "default": 4},
            "token_file": {"type": "str", "no_log": False},
            "token": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    spark_download.answer(module, lambda: Start(module.params).start(module.check_mode))


if __name__ == "__main__":
    main()
