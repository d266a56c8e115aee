"""How quick the scan of a cache is, beside huggingface_hub's own on the same tree, and whether they agree."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
MODELS, FILES, RUNS = 500, 200, 5
LAYERS = 8  # weights of an index per shard

OURS = """
import sys, time, json, resource
sys.path.insert(0, sys.argv[2])
import tests.conftest
from ansible_collections.spark.control.plugins.module_utils import spark_cache
began = time.perf_counter()
found = spark_cache.scan(sys.argv[1])
took = time.perf_counter() - began
told = {row["name"]: [row["bytes"], row["revisions"], row["files"], row["state"]] for row in found["models"]}
"""
THEIRS = """
import sys, time, json, resource
from huggingface_hub import scan_cache_dir
began = time.perf_counter()
found = scan_cache_dir(sys.argv[1] + "/hub")
took = time.perf_counter() - began
assert not found.warnings, found.warnings[:3]
told = {repo.repo_id: [repo.size_on_disk, len(repo.revisions), next(len(revision.files) for revision in repo.revisions),
    "complete"] for repo in found.repos}
"""
SAY = """
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"took": took, "peak": peak, "told": told}))
"""


def lay(hub: Path) -> None:
    """500 models of 200 files each, as huggingface_hub ≥ 1.32 leaves them; every fifth has its payloads in the shared
    store, every second no tree, so that its index is read."""
    store = hub / "blobs"
    store.mkdir(parents=True)
    (store / ".huggingface-shared-blobs").write_text("1\n")
    for number in range(MODELS):
        commit = hashlib.sha1(str(number).encode()).hexdigest()
        folder = hub / f"models--org--model-{number}"
        blobs, snapshot = folder / "blobs", folder / "snapshots" / commit
        for part in (blobs, snapshot, folder / "refs", folder / "trees"):
            part.mkdir(parents=True)
        (folder / "refs" / "main").write_text(commit)
        shards = [f"model-{shard:05}-of-{FILES - 5:05}.safetensors" for shard in range(1, FILES - 4)]
        weights = {f"layers.{n}.{m}.weight": name for n, name in enumerate(shards) for m in range(LAYERS)}
        texts = {
            "config.json": {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 128},
            "tokenizer_config.json": {"chat_template": "{{ '<tool_call>' }}" * 100},
            "tokenizer.json": {"version": "1.0"},
            "README.md": {"license": "mit"},
            "model.safetensors.index.json": {"metadata": {"total_size": 1000}, "weight_map": weights},
        }
        tree = {}
        for name in [*texts, *shards]:
            data = json.dumps(texts[name]).encode() if name in texts else f"{number}{name}".encode()
            etag = hashlib.sha256(data).hexdigest()
            tree[name] = {"size": len(data), "blob_id": etag[:40], "lfs_sha256": etag, "lfs_size": len(data)}
            if number % 5 == 0 and name in shards:
                (store / etag[:2]).mkdir(exist_ok=True)
                (store / etag[:2] / etag).write_bytes(data)
                (blobs / etag).symlink_to(f"../../blobs/{etag[:2]}/{etag}")
            elif not (blobs / etag).exists():
                (blobs / etag).write_bytes(data)
            (snapshot / name).symlink_to(f"../../blobs/{etag}")
        if number % 2:
            (folder / "trees" / f"{commit}.json").write_text(json.dumps({"format_version": 1, "files": tree}))


def run(code: str, hf_home: str) -> dict:
    """One scan in a process of its own."""
    environment = {"PATH": os.environ["PATH"], "HOME": hf_home, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code + SAY, hf_home, str(PROJECT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Lay, measure, print."""
    with tempfile.TemporaryDirectory() as folder:
        lay(Path(folder) / "hub")
        ours, theirs = [], []
        for _ in range(RUNS):
            ours.append(run(OURS, folder))
            theirs.append(run(THEIRS, folder))
    quick, slow = (statistics.median(row["took"] for row in rows) for rows in (ours, theirs))
    peaks = [max(row["peak"] for row in rows) / 1024 for rows in (ours, theirs)]
    agree = ours[0]["told"] == theirs[0]["told"]
    print(f"scan of {MODELS} models of {FILES} files, median of {RUNS} runs in turn (target: 2 s, 100 MB, 3 x as fast)")
    print(f"{'':34}{'seconds':>9}{'peak MB':>9}{'ratio':>8}")
    print(f"{'ours, with state and facts':34}{quick:9.2f}{peaks[0]:9.0f}{slow / quick:7.1f}x")
    print(f"{'huggingface_hub.scan_cache_dir':34}{slow:9.2f}{peaks[1]:9.0f}")
    print(f"sizes, revisions and files of every model agree: {'yes' if agree else 'NO'}")
    cores = os.cpu_count()
    print(f"({cores} cores, Python {sys.version.split()[0]}, files in the page cache)")
    if not agree:
        first = next(name for name in theirs[0]["told"] if ours[0]["told"].get(name) != theirs[0]["told"][name])
        print(first, ours[0]["told"].get(first), theirs[0]["told"][first])
        sys.exit(1)


if __name__ == "__main__":
    main()
