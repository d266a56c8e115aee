"""Hybrid search over 20,000 chunks of 1,024 dimensions: the embedded store beside qdrant-client's local mode on disk.

    .venv/bin/python tests/bench/bench_search.py [POINTS]

Bar: hybrid p95 in the embedded store at most 50 ms. The same vectors and queries go to both: dense and sparse rankings
of 50, fused by RRF, the best 10 with their texts. Then the whole road: JSON lines put in over HTTP, searches over HTTP
with the query's vector from a simulated embedding server.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
import warnings
from pathlib import Path

import numpy as np  # comes with qdrant-client

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.embedders import inventory, serving
from webui.gateway import fusion, store

SIZE, QUERIES, PEER_QUERIES = 1024, 300, 12
BAR = 50.0
SETTINGS = {
    "dimensions": SIZE,
    "distance": "cosine",
    "sparse": "model",
    "language": "english",
    "model": "bench",
    "shortened": False,
    "identity": "one",
}
ONE = SETTINGS["identity"]
WORDS = [
    f"{a}{b}{c}" for a in "bcdfgklmnprst" for b in "aeiou" for c in ("nd", "rt", "lk", "m", "sh", "ve", "x", "ting")
]


def points(count):
    """[(id, dense, sparse, payload)] in 200 clusters; 60 sparse entries each of 30,000, as frequent as words are."""
    rng = np.random.default_rng(1)
    centers = rng.normal(size=(200, SIZE))
    for number in range(count):
        vector = (centers[rng.integers(200)] + 0.8 * rng.normal(size=SIZE)).astype("f4")
        indices = sorted({int(i) for i in rng.zipf(1.3, size=60) % 30_000})
        values = [float(v) for v in rng.uniform(0.2, 3, size=len(indices))]
        payload = {"document": f"d{number // 5}", "chunk": number % 5, "text": "word " * 200, "stamp": "x"}
        payload["metadata"] = {"lang": "en" if number % 3 else "de"}
        yield str(uuid.UUID(int=number)), vector.tolist(), (indices, values), payload


def queries(count):
    rng = np.random.default_rng(2)
    for _ in range(count):
        indices = sorted({int(i) for i in rng.zipf(1.3, size=10) % 30_000})
        yield rng.normal(size=SIZE).astype("f4").tolist(), (indices, [1.0] * len(indices))


def timed(call, items):
    """Sorted milliseconds of each call."""
    found = []
    for item in items:
        began = time.perf_counter()
        call(*item)
        found.append(1000 * (time.perf_counter() - began))
    return sorted(found)


def row(name, times, more=""):
    p50, p95 = statistics.median(times), times[min(len(times) - 1, int(0.95 * len(times)))]
    print(f"{name:<44} {p50:9.1f} {p95:9.1f} {times[-1]:9.1f}   {more}", flush=True)
    return p95


def memory(pid):
    """Resident memory, MB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) >> 10


def embedded(folder, rows):
    """(p95 plain, p95 filtered) of the embedded store."""
    shelf = store.EdgeStore(folder / "edge")
    shelf.create("bench", SETTINGS)
    began = time.perf_counter()
    for start in range(0, len(rows), 64):
        shelf.upsert("bench", ONE, rows[start : start + 64])
    shelf.tidy("bench", ONE)
    written = time.perf_counter() - began

    def hybrid(dense, sparse, condition=None):
        rankings = shelf.search("bench", ONE, [("dense", dense), ("sparse", sparse)], 50, condition)
        best = fusion.best(fusion.rrf(rankings), 10)
        return shelf.fetch("bench", ONE, [point for point, _ in best])

    hybrid(*next(iter(queries(1))))
    more = f"{written:.1f} s to write, {memory(shelf._process.pid)} MB"
    plain = row("embedded (Qdrant Edge in its own process)", timed(hybrid, queries(QUERIES)), more)
    german = {"must": [{"key": "metadata.lang", "match": {"value": "de"}}]}
    filtered = row("  with a filter", timed(lambda d, s: hybrid(d, s, german), queries(QUERIES // 3)))
    shelf.close()
    return plain, filtered


def local_mode(folder, rows):
    """p95 of qdrant-client's local mode on disk."""
    from qdrant_client import QdrantClient, models

    warnings.simplefilter("ignore")
    client = QdrantClient(path=str(folder / "local"))
    peer = store.ServerStore(client=client)
    peer.create("bench", SETTINGS)
    began = time.perf_counter()
    for start in range(0, len(rows), 256):
        peer.upsert("bench", ONE, rows[start : start + 256])
    written = time.perf_counter() - began

    def hybrid(dense, sparse):
        given = models.SparseVector(indices=sparse[0], values=sparse[1])
        asked = [
            models.Prefetch(query=dense, using="dense", limit=50),
            models.Prefetch(query=given, using="sparse", limit=50),
        ]
        return client.query_points("bench", prefetch=asked, query=models.FusionQuery(fusion="rrf"), limit=10)

    times = timed(hybrid, queries(PEER_QUERIES))
    p95 = row("qdrant-client's local mode on disk", times, f"{written:.1f} s to write, {memory(os.getpid())} MB")
    client.close()
    return p95


def whole_road(folder, count):
    """p95 over HTTP, with embeddings of a simulated server; puts in `count` documents first."""
    with serving("tei:embed", dimensions=SIZE) as [port]:
        environment = os.environ | {
            "ANSIBLE_INVENTORY": str(inventory(folder / "hosts.yml", embeddings=port)),
            "SPARK_CONTROL_STATE": str(folder / "state"),
        }
        command = [Path(sys.executable).parent / "spark-control", "serve", "--host", "127.0.0.1", "--port", "10977"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen(command, env=environment, **quiet)
        try:
            return _over_http("http://127.0.0.1:10977", count)
        finally:
            server.terminate()
            server.wait()


def _over_http(url, count):
    def ask(method, path, data=None, kind="application/json"):
        data = json.dumps(data).encode() if data is not None and not isinstance(data, bytes) else data
        request = urllib.request.Request(url + path, data, {"Content-Type": kind}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    deadline = time.monotonic() + 30
    while True:
        try:
            ask("GET", "/healthz")
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    ask("PUT", "/api/collections/bench", {})
    chance = random.Random(3)
    lines = (json.dumps({"id": f"d{n}", "text": " ".join(chance.choices(WORDS, k=60))}) for n in range(count))
    began = time.perf_counter()
    note = ask("PUT", "/api/collections/bench/documents", "\n".join(lines).encode(), "application/x-ndjson")
    while (note := ask("GET", note["url"]))["state"] in ("waiting", "running"):
        time.sleep(0.5)
    assert note["added"] == count, note
    seconds = time.perf_counter() - began
    asked = [(" ".join(chance.choices(WORDS, k=6)),) for _ in range(QUERIES)]
    times = timed(lambda text: ask("POST", "/api/collections/bench/search", {"query": text}), asked)
    return row("over HTTP, query embedded by a simulated TEI", times, f"ingest {count / seconds:.0f} documents/s")


def main(count):
    folder = Path(tempfile.mkdtemp(prefix="bench-search-"))
    try:
        rows = list(points(count))
        print(f"{count:,} points x {SIZE:,} dimensions, hybrid, best 10\n")
        print(f"{'milliseconds':<44} {'p50':>9} {'p95':>9} {'worst':>9}")
        plain, filtered = embedded(folder, rows)
        peer = local_mode(folder, rows)
        del rows
        whole_road(folder, count)
        print(f"\nlocal mode / embedded, p95: {peer / plain:.0f} x")
        print(f"bar {BAR:.0f} ms: {'met' if max(plain, filtered) <= BAR else 'MISSED'}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
