"""Bring lab Sparks up and down: containers on a network of their own, found again by their labels."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import PROJECT
from tests.lab import engine, images
from tests.lab.engine import LabError, docker, wait, words

HERE = Path(__file__).parent
LABEL = "spark-lab"
# Of the user on every host, for the first contact. It has what a shell trips over.
PASSWORD = 'the lab\'s "first" $HOME \\word'
# A nested dockerd needs its capabilities and the control groups; --privileged asks for more than every machine has.
RIGHTS = ["--cap-add=ALL", "--cap-drop=SYS_RESOURCE", "--security-opt=seccomp=unconfined"]
RIGHTS += ["--security-opt=apparmor=unconfined", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw"]

MODELS = [
    {"repo": "demo/second", "bytes": 4_000_000_000},
    {"repo": "demo/pair", "bytes": 24_000_000_000, "shards": 6},
    {"repo": "demo/crashes-half-way", "bytes": 9_000_000_000, "shards": 4, "behaviour": "crash"},
    {"repo": "demo/never-answers", "bytes": 4_000_000_000, "behaviour": "mute"},
    {"repo": "demo/leaks-memory", "bytes": 4_000_000_000, "behaviour": "leak"},
    {"repo": "demo/loads-slowly", "bytes": 9_000_000_000, "shards": 8, "behaviour": "slow"},
    {"repo": "demo/too-big", "bytes": 200_000_000_000, "shards": 40},
    # Real bytes, so that they can be copied and give room back; no recipe has it.
    {"repo": "org/real", "bytes": 12 << 20, "shards": 3, "real": True, "only": "spark1"},
]


SHAPES = ("october", "september", "january")
# As root: nothing of an earlier test is left on a host, and the models are as they were laid.
FRESH = """
pkill -CONT dockerd; pkill -KILL -x rsync; rm -f /usr/local/bin/rsync
for folder in /home/spark/.spark-control /home/spark/.cache/huggingface; do
  mountpoint -q $folder && umount -l $folder
done
/usr/bin/docker ps -aq | xargs -r /usr/bin/docker rm -f
rm -f /usr/lib/python3/dist-packages/skew.*; loginctl enable-linger spark
cd /home/spark && rm -rf .spark-control .cache .triton .tilelang models /run/spark-gpu/faults/*
python3 /opt/lab/spark_host.py models
"""


@dataclass
class Lab:
    """`sparks` hosts named spark1…, at `network`.11…; `state` holds the inventory, keys and known hosts."""

    name: str = "lab"
    sparks: int = 2
    network: str = "172.31.77"
    state: Path = PROJECT / "var/lab"
    launcher: str = "september"
    load_seconds: float = 2.0
    _pinning: threading.Lock = field(default_factory=threading.Lock, repr=False)

    # --- up and down ----------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Have every host up and answering; one that is well is left alone. Raises LabError."""
        self.state.mkdir(parents=True, exist_ok=True)
        engine.need()
        engine.install("openssh-client")
        with engine.turn("images"):
            host, vllm = images.host_image(), images.vllm_image()
        self._make_network()
        for container in words("ps", "--all", "--quiet", "--filter", f"label={LABEL}={self.name}"):
            if not self._fits(container, host, vllm):
                self._remove(container)
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            list(pool.map(lambda number: self._have(number, host, vllm), range(len(self.hosts))))
        self._write_inventory(len(self.hosts))

    def down(self) -> None:
        """Leave no container, network, volume or process behind; the images stay. No lab is no error."""
        self.close_connections()
        if engine.answers():
            mine = ("--quiet", "--filter", f"label={LABEL}={self.name}")
            for container in words("ps", "--all", *mine):
                self._remove(container)
            for volume in words("volume", "ls", *mine):
                docker("volume", "rm", volume)
            for network in words("network", "ls", *mine):
                docker("network", "rm", network)
            engine.release()
        shutil.rmtree(self.state, ignore_errors=True)

    @contextmanager
    def held(self):
        """Hold the lab of this name, so that two runs on one machine take turns."""
        with engine.turn(f"lab-{self.name}"):
            yield self

    def connect(self) -> None:
        """Have the project's own playbooks install the keys that lack: controller to hosts, head to workers."""
        if self.is_connected():
            return
        for playbook in ("copy_ssh_key", "mesh_ssh_keys"):
            done = subprocess.run(
                self.ansible(playbook), env=self.environment, cwd=PROJECT, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise LabError(f"playbooks/{playbook}.yml failed:\n{done.stdout}{done.stderr}")

    def is_connected(self) -> bool:
        """Whether the controller gets in to every host by its key, and the head to every worker."""
        strict = ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=5"]
        mine = ["-o", f"UserKnownHostsFile={self._known_hosts}", "-o", "IdentitiesOnly=yes"]
        mine += ["-i", self.state / "id_ed25519"]
        as_user = ["docker", "exec", "--user", images.USER, "--env", f"HOME=/home/{images.USER}"]
        head, *workers = self.hosts.items()
        ways = [[*strict, *mine, f"{images.USER}@{address}", "true"] for address in self.hosts.values()]
        ways += [[*as_user, self.container(head[0]), *strict, address, "true"] for _, address in workers]
        return all(subprocess.run(way, capture_output=True, check=False).returncode == 0 for way in ways)

    def disconnect(self) -> None:
        """Have hosts that know nobody, and nobody here who knows them."""
        self.close_connections()
        for path in (*self.state.glob("id_ed25519*"), self._known_hosts):
            path.unlink(missing_ok=True)
        self.on_every_host(lambda host: self.root(host, "rm", "-rf", f"/home/{images.USER}/.ssh"))

    # --- what there is --------------------------------------------------------------------------------------------

    @property
    def hosts(self) -> dict[str, str]:
        """{name: address}, the head first."""
        return {f"spark{number}": f"{self.network}.{10 + number}" for number in range(1, self.sparks + 1)}

    @property
    def head(self) -> str:
        """The head's address."""
        return next(iter(self.hosts.values()))

    @property
    def inventory(self) -> Path:
        """The inventory's folder."""
        return self.state / "inventory"

    @property
    def environment(self) -> dict[str, str]:
        """What ansible-playbook and the server run with: nothing of the caller's but PATH and HOME."""
        kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        state = {"ANSIBLE_INVENTORY": str(self.inventory), "SPARK_CONTROL_STATE": str(self.state / "control")}
        return kept | state | {"LC_ALL": "C.UTF-8"}

    def ansible(self, playbook: str, *arguments: str, **variables) -> list[str]:
        """The command that runs a playbook against the lab."""
        program = shutil.which("ansible-playbook", path=f"{PROJECT}/.venv/bin:{os.environ.get('PATH', '')}")
        extra = ["-e", json.dumps(variables)] if variables else []
        return [program or "ansible-playbook", str(PROJECT / "playbooks" / f"{playbook}.yml"), *arguments, *extra]

    def container(self, host: str) -> str:
        """The name of the container that plays that host."""
        return f"spark-{self.name}-{host}"

    def root(self, host: str, *command: str, check: bool = True, **options) -> str:
        """Run a program on a host as its root, round ssh; what it printed."""
        inside = ["exec", *(["-i"] if "input" in options else []), self.container(host), *command]
        return docker(*inside, check=check, **options).stdout.decode()

    def user(self, host: str, command: str) -> str:
        """Run a shell command on a host as the user `spark`, round ssh; what it printed, both streams."""
        login = ["runuser", "-u", images.USER, "--", "env", f"HOME=/home/{images.USER}", "sh", "-c", f"{command} 2>&1"]
        return self.root(host, *login, check=False)

    def use(self, count: int) -> None:
        """Have the inventory name the first `count` hosts only."""
        self._write_inventory(count)

    def launcher_files(self, wanted: str | None = None) -> dict[str, tuple[bytes, int]]:
        """What is laid as the launcher's folder, {path: (content, mode)}: the one place that decides it.

        LAUNCHER_DIR's folder where that is given, whatever is wanted; else one of SHAPES or a folder of the real
        project, the lab's own without `wanted`. Raises LabError.
        """
        wanted = os.environ.get("LAUNCHER_DIR") or wanted or self.launcher
        if wanted in SHAPES:
            names = {"launch-cluster.sh": f"launch-cluster-{wanted}.sh", "launcher-parts.sh": "launcher-parts.sh"}
            return {name: ((images.SIMULATION / source).read_bytes(), 0o755) for name, source in names.items()}
        folder = Path(wanted)
        if not (folder / "launch-cluster.sh").exists():
            raise LabError(f"{wanted} is none of {', '.join(SHAPES)}, and no folder with launch-cluster.sh")
        sources = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
        return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mode & 0o777) for path in sources}

    def on_every_host(self, work) -> None:
        """Call work(host) for every host, side by side."""
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            list(pool.map(work, self.hosts))

    def put_launcher(self, wanted: str | None = None) -> None:
        """Give every host the folder of `launcher_files`."""
        files = self.launcher_files(wanted)
        self.on_every_host(lambda host: self._lay_launcher(host, files))

    def freshen(self) -> None:
        """Put every host back to what it was laid as; SSH keys stay installed."""
        files = self.launcher_files()

        def one(host: str) -> None:
            self.root(host, "sh", "-c", FRESH, check=False)
            self._lay_launcher(host, files)

        self.on_every_host(one)

    def status(self) -> list[dict]:
        """One row a host: {host, address, container, ssh, docker}."""
        rows = []
        for host, address in self.hosts.items():
            there = engine.answers() and docker("inspect", self.container(host), check=False).returncode == 0
            well = there and docker("exec", self.container(host), "docker", "version", check=False).returncode == 0
            ssh = _banner(address) if there else False
            rows.append({"host": host, "address": address, "container": bool(there), "ssh": ssh, "docker": bool(well)})
        return rows

    # --- one host -------------------------------------------------------------------------------------------------

    def close_connections(self) -> None:
        """End the ssh masters that Ansible keeps: what answers at an address next is another host."""
        for master in self._sockets.glob("*"):
            subprocess.run(["ssh", "-O", "exit", "-S", str(master), "lab"], capture_output=True, check=False)
            master.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            self._sockets.rmdir()

    @property
    def _sockets(self) -> Path:
        # Not below the state folder: a socket's path has to be shorter than 108 bytes.
        return Path(f"/tmp/spark-lab-{self.name}-{os.getuid()}")

    def _make_network(self) -> None:
        name = f"spark-{self.name}"
        subnet = f"{self.network}.0/24"
        found = docker("network", "inspect", "--format", "{{(index .IPAM.Config 0).Subnet}}", name, check=False)
        if found.stdout.decode().strip() == subnet:
            return
        if found.returncode == 0:
            for container in words("ps", "--all", "--quiet", "--filter", f"network={name}"):
                self._remove(container)
            docker("network", "rm", name)
        docker("network", "create", "--internal", "--subnet", subnet, "--label", f"{LABEL}={self.name}", name)

    def _spec(self, number: int, host: str, vllm: str) -> str:
        mine = [(path.name, path.read_bytes()) for path in sorted([*HERE.glob("host/*"), *HERE.glob("image/*.py")])]
        return images.tag(host, vllm, number, self.network, self.load_seconds, RIGHTS, MODELS, mine)

    def _fits(self, container: str, host: str, vllm: str) -> bool:
        wanted = '{{.Name}} {{.State.Running}} {{index .Config.Labels "spark-lab.spec"}}'
        name, running, spec = words("inspect", "--format", wanted, container)
        for number, ours in enumerate(self.hosts):
            if name == f"/{self.container(ours)}" and running == "true" and spec == self._spec(number, host, vllm):
                attached = words(
                    "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", container
                )
                return attached == [self.hosts[ours]]
        return False

    def _have(self, number: int, host_image: str, vllm: str) -> None:
        host, address = list(self.hosts.items())[number]
        name = self.container(host)
        if docker("inspect", name, check=False).returncode:
            self._forget(address)
            volume = f"{name}-docker"
            label = f"--label={LABEL}={self.name}"
            docker("volume", "create", label, volume)
            spec = f"--label=spark-lab.spec={self._spec(number, host_image, vllm)}"
            place = [f"--network=spark-{self.name}", f"--ip={address}", f"--hostname={host}", f"--name={name}"]
            volumes = [f"--volume={volume}:/var/lib/docker", "--tmpfs=/run"]
            docker("create", label, spec, *place, *RIGHTS, *volumes, host_image, "python3", "/opt/lab/spark_host.py")
            docker("cp", "-", f"{name}:/", input=images.archive(self._files(host, address)))
            docker("start", name)
        wait(lambda: _banner(address), f"{host} does not answer on port 22; `docker logs {name}` says why")
        inside = ("exec", name, "/usr/bin/docker")
        wait(lambda: docker(*inside, "version", check=False).returncode == 0, f"dockerd on {host} does not start")
        if not words(*inside, "image", "ls", "--quiet", "vllm-node:latest"):
            with subprocess.Popen(["docker", "save", vllm], stdout=subprocess.PIPE) as saved:
                docker("exec", "-i", name, "/usr/bin/docker", "load", "--quiet", stdin=saved.stdout)
            docker(*inside, "tag", vllm, "vllm-node:latest")
        self._lay_launcher(host, self.launcher_files())

    def _forget(self, address: str) -> None:
        """Trust no host key at that address any more: who answers there next is another host."""
        with self._pinning:
            forget = ["ssh-keygen", "-R", address, "-f", str(self._known_hosts)]
            subprocess.run(forget, capture_output=True, check=False)  # without a file there is nothing to forget

    def _files(self, host: str, address: str) -> dict[str, tuple[bytes, int]]:
        """What a host has besides its image, as a tar's entries."""
        facts = {"name": host, "password": PASSWORD, "load_seconds": self.load_seconds, "models": MODELS}
        files = {
            "opt/lab/host.json": (json.dumps(facts).encode(), 0o644),
            # Where the stand-in launchers look for the address of their own host.
            "home/address": (f"{address}\n".encode(), 0o644),
        }
        for program in ("docker", "ibdev2netdev", "nvidia-smi"):
            files[f"usr/local/bin/{program}"] = ((HERE / "host" / program).read_bytes(), 0o755)
        library = [HERE / "host/spark_host.py", HERE / "image/lab_spark.py"]
        library += [images.SIMULATION / "lib" / name for name in ("sim_host.py", "sim_nvidia.py")]
        return files | {f"opt/lab/{path.name}": (path.read_bytes(), 0o644) for path in library}

    def _lay_launcher(self, host: str, files: dict[str, tuple[bytes, int]]) -> None:
        folder = f"/home/{images.USER}/spark-vllm-docker"
        lay = f"rm -rf {folder} && mkdir {folder} && tar -xC {folder}"
        self.root(host, "runuser", "-u", images.USER, "--", "sh", "-c", lay, input=images.archive(files))

    def _remove(self, container: str) -> None:
        """Remove a host with its own containers, which hold control groups of this machine."""
        inner = "docker ps -q | xargs -r /usr/bin/docker rm -f"
        with suppress(subprocess.TimeoutExpired):
            docker("exec", container, "timeout", "10", "sh", "-c", inner, check=False, timeout=20)
        name = words("inspect", "--format", "{{.Name}}", container)[0].lstrip("/")
        docker("rm", "--force", "--volumes", container)
        docker("volume", "rm", "--force", f"{name}-docker")

    @property
    def _known_hosts(self) -> Path:
        return self.state / "known_hosts"

    def _write_inventory(self, count: int) -> None:
        self._sockets.mkdir(mode=0o700, exist_ok=True)
        shared = {
            "ansible_user": images.USER,
            "ansible_ssh_private_key_file": str(self.state / "id_ed25519"),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self._known_hosts} -o IdentitiesOnly=yes",
            "ansible_control_path_dir": str(self._sockets),
            "ssh_key_known_hosts": str(self._known_hosts),
            "ssh_key_password": PASSWORD,
            "spark_meminfo": "/run/spark-gpu/proc/meminfo",
            "recipe_dirs": [str(images.SIMULATION / "recipes"), str(self.state / "recipes")],
        }
        sparks = {host: {"ansible_host": address} for host, address in list(self.hosts.items())[:count]}
        groups = {"sparks": {"hosts": sparks}, "vllm": {"hosts": dict.fromkeys(sparks)}}
        self.inventory.mkdir(exist_ok=True)
        (self.state / "recipes").mkdir(exist_ok=True)
        text = json.dumps({"all": {"vars": shared, "children": groups}}, indent=2)
        (self.inventory / "hosts.yml").write_text(text + "\n")


def _banner(address: str) -> bool:
    """Whether sshd answers there."""
    with suppress(OSError), socket.create_connection((address, 22), 2) as connection:
        connection.settimeout(2)
        return connection.recv(4) == b"SSH-"
    return False
