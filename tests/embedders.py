"""Embedding servers and a Qdrant for tests and benchmarks, as processes of their own, and an app in front of them."""

from __future__ import annotations

import contextlib
import subprocess
import sys

from tests.conftest import PROJECT

PROGRAM = PROJECT / "roles/demo_spark/files/lib/sim_embeddings.py"


@contextlib.contextmanager
def serving(*serve: str, **options):
    """[port] of servers like "tei:embed" or "vllm:all". options: the program's: model, dimensions, max_tokens, …"""
    command = [sys.executable, "-SE", str(PROGRAM)]
    for wish in serve:
        command += ["--serve", wish if wish.count(":") == 2 else f"{wish}:0"]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield [int(process.stdout.readline().rsplit(":", 1)[1]) for _ in serve]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def qdrant():
    """The port of a small Qdrant server."""
    command = [sys.executable, str(PROJECT / "tests/qdrant_server.py")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield int(process.stdout.readline().rsplit(":", 1)[1])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def app(folder, **ports: int):
    """An app whose state and inventory are in that folder."""
    from webui.app import create_app

    return create_app({"STATE_DIR": folder / "state", "INVENTORY": str(inventory(folder / "hosts.yml", **ports))})


def inventory(path, **ports: int):
    """Write an inventory with a Spark and these services (embeddings, sparse, rerank, qdrant) on this machine."""
    lines = ["all:", "  children:", "    sparks: {hosts: {spark1: {ansible_host: 127.0.0.1, vllm_port: 9}}}"]
    variables = {"embeddings": "embed_port", "sparse": "sparse_port", "rerank": "rerank_port", "qdrant": "qdrant_port"}
    for group, port in ports.items():
        lines.append(f"    {group}: {{hosts: {{spark1: {{{variables[group]}: {port}}}}}}}")
    path.write_text("\n".join(lines) + "\n")
    return path
