"""The lab's two images, made without a registry and kept by what went into them.

`spark-lab-host:<tag>` is Debian with sshd, dockerd and a user `spark`, by debootstrap. `spark-lab-vllm:<tag>` is what
the Sparks run as `vllm-node`: bash, coreutils and Python out of the same tree, the simulated model server, and the real
`hf` as it is installed for these tests.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import io
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import PROJECT
from tests.lab.engine import docker, install, words

HERE = Path(__file__).parent
SIMULATION = PROJECT / "roles/demo_spark/files"
RELEASE = "bookworm"
USER = "spark"
PACKAGES = ["python3", "openssh-server", "docker.io", "rsync", "iproute2", "iptables", "procps", "systemd", "dbus"]
# What the model server's image takes out of the tree; their libraries come along by name below.
SLIM = ["base-files", "bash", "coreutils", "dash", "sed", "grep", "findutils", "hostname", "procps", "libc-bin", "mawk"]
SLIM_LIBRARIES = r"(lib(c6|python3\S*|tinfo6|selinux1|pcre2-8-0|acl1|attr1|gmp10|ssl3|ffi8|expat1|lzma5|bz2-1\.0"
SLIM_LIBRARIES += r"|crypt1|uuid1|readline8|sqlite3-0|proc2-0|systemd0|lz4-1|zstd1|cap2|gcrypt20|gpg-error0|nsl2"
SLIM_LIBRARIES += r"|tirpc3|gssapi-krb5-2|com-err2|k5crypto3|keyutils1|krb5-3|krb5support0|stdc\+\+6)|zlib1g"
SLIM_LIBRARIES += r"|python3\S*|media-types|gcc-12-base)"
SERVER = [f"lib/sim_{name}.py" for name in ("vllm", "openai", "model", "responses", "loading", "host")]
HF = """import sys

sys.path.insert(0, "/opt/hf")

from huggingface_hub.cli.hf import main

sys.exit(main())
"""
LABEL = "spark-lab.image"


def host_image() -> str:
    """The name of the image that plays a Spark; built if it is not there (about a minute and a half)."""
    return _built()[0]


def vllm_image() -> str:
    """The name of the image that stands in for vLLM's."""
    slim = _built()[1]
    files = {Path(path).name: (SIMULATION / path).read_bytes() for path in SERVER}
    files |= {path.name: path.read_bytes() for path in sorted((HERE / "image").glob("*.py"))}
    tools = {path.name: path.read_bytes() for path in sorted((SIMULATION / "container-bin").iterdir())}
    client = hub_client()
    name = f"spark-lab-vllm:{tag(slim, files, tools, HF, [found.read_text('RECORD') for found in client])}"
    if words("image", "ls", "--quiet", name):
        return name
    laid = {f"opt/vllm/{path}": (text, 0o644) for path, text in files.items()}
    laid |= {f"usr/local/bin/{path}": (text, 0o755) for path, text in tools.items()}
    laid["workspace/run-cluster-node.sh"] = laid["usr/local/bin/run-cluster-node.sh"]
    laid["usr/local/bin/vllm"] = (b'#!/bin/sh\nexec python3 -SE /opt/vllm/lab_vllm.py "$@"\n', 0o755)
    laid |= {f"opt/hf/{path}": (path.locate().read_bytes(), 0o644) for found in client for path in pure(found)}
    laid |= {"opt/hf/hf.py": (HF.encode(), 0o644)}
    # Xet's servers are not simulated; their client is no Python.
    laid["usr/local/bin/hf"] = (b'#!/bin/sh\nHF_HUB_DISABLE_XET=1 exec python3 -sB /opt/hf/hf.py "$@"\n', 0o755)
    holder = docker("create", "--label", f"{LABEL}=building", slim, "true").stdout.decode().strip()
    try:
        docker("cp", "-", f"{holder}:/", input=archive(laid))
        docker("commit", "-c", "WORKDIR /workspace", "-c", f"LABEL {LABEL}=vllm", holder, name)
    finally:
        docker("rm", "-f", holder)
    return name


def hub_client() -> list[importlib.metadata.Distribution]:
    """huggingface_hub and what it needs, as installed here; what is no Python is left out (hf_xet)."""
    found, wanted = {}, ["huggingface_hub"]
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in found or name == "hf-xet":
            continue
        found[name] = importlib.metadata.distribution(name)
        needs = [Requirement(text) for text in found[name].requires or []]
        wanted += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return [found[name] for name in sorted(found)]


def pure(distribution: importlib.metadata.Distribution) -> list[importlib.metadata.PackagePath]:
    """The files of a distribution that any Python 3 on any machine can use."""
    return [
        path
        for path in distribution.files or []
        if ".." not in path.parts and path.suffix not in (".pyc", ".so") and path.locate().is_file()
    ]


def archive(files: dict[str, tuple[bytes, int]]) -> bytes:
    """A tar of {path: (content, mode)}, owned by root."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, (content, mode) in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def tag(*parts: object) -> str:
    """A short name for content."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _built() -> tuple[str, str]:
    made = tag(RELEASE, PACKAGES, SLIM, SLIM_LIBRARIES, USER, *map(inspect.getsource, (_debootstrap, _pack_slim)))
    host, slim = f"spark-lab-host:{made}", f"spark-lab-slim:{made}"
    if words("image", "ls", "--quiet", slim) and words("image", "ls", "--quiet", host):
        return host, slim
    install("debootstrap")
    print("Building the lab's base image; it is kept for the next time …", flush=True)
    with tempfile.TemporaryDirectory(prefix="spark-lab-") as folder:
        root = Path(folder) / "root"
        _debootstrap(root)
        _import(_pack_slim(root), slim)
        _import(["tar", "--directory", str(root), "--create", "."], host)
    return host, slim


def _debootstrap(root: Path) -> None:
    include = ",".join(PACKAGES)
    command = ["debootstrap", "--variant=minbase", f"--include={include}", RELEASE, str(root), *_mirror()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = (root / "debootstrap/debootstrap.log").read_text()[-2000:] if root.exists() else done.stderr
        raise RuntimeError(f"debootstrap failed:\n{done.stdout[-500:]}\n{tail}")
    account = ["useradd", "--create-home", "--shell", "/bin/bash", "--groups", "docker", USER]
    subprocess.run(["chroot", str(root), *account], check=True)
    for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(root / waste, ignore_errors=True)
        (root / waste).mkdir(parents=True)
    for key in root.glob("etc/ssh/ssh_host_*"):
        key.unlink()  # each host makes its own


def _mirror() -> list[str]:
    """The mirror that this machine's own apt uses for that release, so that the lab needs no other."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {RELEASE}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return [found[0]] if found else []


def _import(source: list[str], name: str) -> None:
    with subprocess.Popen(source, stdout=subprocess.PIPE) as stream:
        docker("import", "-c", f"LABEL {LABEL}=base", "-", name, stdin=stream.stdout, timeout=600)
    if stream.returncode:
        raise RuntimeError(f"{source[0]} ended with {stream.returncode}")


def _pack_slim(root: Path) -> list[str]:
    """The command that writes the small tree as a tar: the files of a few packages, and what a user lookup needs."""
    info = root / "var/lib/dpkg/info"
    packages = [
        path
        for path in sorted(info.glob("*.list"))
        if path.stem.split(":")[0] in SLIM or re.fullmatch(SLIM_LIBRARIES, path.stem.split(":")[0])
    ]
    wanted = {"etc/passwd", "etc/group", "etc/nsswitch.conf", "etc/ld.so.cache", "bin", "sbin", "lib", "lib64"}
    for package in packages:
        for line in package.read_text().splitlines():
            # Debian merged /bin and friends into /usr; the lists still say where a file was packed.
            path = re.sub(r"^/(bin|sbin|lib|lib64)/", r"/usr/\1/", line).lstrip("/.")
            kept = root / path
            if path and not path.startswith("usr/share/doc") and (kept.is_symlink() or kept.is_file()):
                wanted.add(path)
    # Links that alternatives and ldconfig made are in no package's list.
    wanted |= {str(path.relative_to(root)) for path in root.glob("usr/lib/*-linux-gnu/*.so.*") if path.is_symlink()}
    wanted |= {"usr/bin/python3", "usr/bin/awk", "etc/alternatives/awk", "tmp", "root", "var/tmp", "proc", "sys", "dev"}
    names = root.parent / "slim.txt"
    names.write_text(
        "".join(f"{path}\n" for path in sorted(wanted) if (root / path).is_symlink() or (root / path).exists())
    )
    return ["tar", "--directory", str(root), "--create", "--no-recursion", "--files-from", str(names)]
