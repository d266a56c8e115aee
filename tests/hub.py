"""A Hugging Face Hub of one's own: the Hub's HTTP as far as `hf download` and snapshot_download speak it.

`python -m tests.hub --root FOLDER [--port 0] [--spec FILE] [--rate BYTES_PER_S] [--token T]` prints its URL as its
first line and serves the repos below FOLDER, `org/name/files…`, until it is ended. In a test:

    with Hub(tmp_path / "hub", {"org/name": {"files": {"config.json": {}, "model.safetensors": 4096}}}) as hub:
        hub.download("org/name", tmp_path / "hf")          # the real `hf download` into that HF_HOME

A spec is {repo: {"files": {name: content}, "gated": bool}}; content is a number of bytes (noise, the same every time),
a text, or anything else as JSON. What changes below the folder is a new commit of `main`. With a token, gated repos
want it (401 without one, 403 for the one that is called `denied`), and another token than these is refused everywhere,
as by the Hub itself.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
# The demo's hub and the tests' are one; the simulated Sparks' programs lie on no path.
sys.path.insert(0, str(PROJECT / "roles/demo_spark/files/lib"))

import sim_hub
from sim_hub import DENIED, lay

__all__ = ["DENIED", "Hub", "lay", "share"]


class Hub:
    """A hub as a process of its own, for the length of a `with`; `url` is its address, `host` where it listens."""

    def __init__(
        self,
        root: Path,
        spec: dict | None = None,
        rate: float | None = None,
        token: str | None = None,
        host: str = "127.0.0.1",
    ):
        self.root, self.rate, self.token, self.host = Path(root), rate, token, host
        self.url = ""
        lay(self.root, spec or {})

    def __enter__(self) -> Hub:
        command = [sys.executable, "-m", "tests.hub", "--host", self.host, "--root", str(self.root)]
        command += ["--rate", str(self.rate)] if self.rate else []
        command += ["--token", self.token] if self.token else []
        self.process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http"), "the hub did not start"
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.wait(10)
        self.process.stdout.close()

    def environment(self, hf_home: Path, token: str | None = None) -> dict[str, str]:
        """What huggingface_hub runs with, to use this hub and that cache and nothing of the caller's."""
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(hf_home),
            "LC_ALL": "C.UTF-8",
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(hf_home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        }
        return environment | ({"HF_TOKEN": token} if token else {})

    def start(self, repo: str, hf_home: Path, *arguments: str, token: str | None = None) -> subprocess.Popen:
        """Start the real `hf download`."""
        command = [str(Path(sys.executable).parent / "hf"), "download", repo, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=self.environment(hf_home, token), **pipes)

    def download(self, repo: str, hf_home: Path, *arguments: str, token: str | None = None) -> str:
        """Run the real `hf download` to its end; returns what it printed. AssertionError where it fails."""
        process = self.start(repo, hf_home, *arguments, token=token)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        return output


def share(hf_home: Path, *repos: str) -> None:
    """Move these repos' LFS payloads into the cache's shared store, by huggingface_hub's own road.

    It does so itself only after a download over Xet, whose servers are not simulated here.
    """
    from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store

    hub = Path(hf_home) / "hub"
    for repo in repos:
        for blob in sorted((hub / f"models--{repo.replace('/', '--')}" / "blobs").iterdir()):
            if len(blob.name) == 64 and not blob.is_symlink():
                size = blob.stat().st_size
                done = publish_blob_to_shared_store(
                    blob_path=str(blob), xet_hash=blob.name, cache_dir=hub, expected_size=size
                )
                assert done, blob


if __name__ == "__main__":
    sim_hub.serve(sys.argv[1:])
