"""Containers of a simulated Spark: a folder, a PID 1 and the processes exec'd beside it.

    docker/containers/<id>/container.json   what `docker run` asked for, and PID 1
                           execs/<n>.json   {"argv", "workdir", "env", "pid", "ticks"} of each detached exec
                           log              what PID 1's stdout got; log.times: "offset epoch" a line
                           rootfs/          the container's own files (/workspace, /root)

Container processes run in sessions of their own, with the image's and the container's environment only, so that the
end of whoever called `docker` never ends a container. They carry SPARK_SIM_CONTAINER=<id>: that is how a container is
killed whole.

There is no file system of its own, so paths are translated in what is exec'd: /workspace is PID 1's working folder
(/proc/<pid>/cwd/workspace) and /proc/1 is /proc/<pid>. `untranslate` undoes exactly that.
"""

import contextlib
import json
import os
import re
import signal
import time
from datetime import UTC, datetime

from sim_host import ENV_CONTAINER, ENV_HOST, ENV_ROOT, read_json, tagged, ticks, write_atomic

IMAGE_ENV = {"VLLM_USAGE_SOURCE": "production-docker-image", "TORCH_CUDA_ARCH_LIST": "12.1a"}
CONTAINER_PATHS = re.compile(r"(?<![\w./~-])/(workspace(?![\w-])|proc/1(?=/))")


class DockerError(Exception):
    """What the docker daemon answers; `code` is docker's exit code."""

    def __init__(self, message, code=1):
        super().__init__(message)
        self.code = code


class Container:
    def __init__(self, host, identifier):
        self.host = host
        self.id = identifier
        self.folder = host.path("docker", "containers", identifier)
        self.facts = read_json(os.path.join(self.folder, "container.json"))

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def save(self):
        write_atomic(self.path("container.json"), json.dumps(self.facts, indent=1))

    @property
    def name(self):
        return self.facts["name"]

    @property
    def running(self):
        pid = self.facts.get("pid")
        return bool(pid) and ticks(pid) == self.facts["ticks"]

    def processes(self):
        """Pids, PID 1 first."""
        pids = sorted(tagged(ENV_CONTAINER, self.id))
        first = self.facts.get("pid")
        return sorted(pids, key=lambda pid: (pid != first, pid))

    def translate(self, text):
        pid = self.facts["pid"]
        return CONTAINER_PATHS.sub(
            lambda match: f"/proc/{pid}/cwd/workspace" if match[1] == "workspace" else f"/proc/{pid}", text
        )

    def untranslate(self, text):
        pid = self.facts["pid"]
        text = text.replace(f"/proc/{pid}/cwd/workspace", "/workspace").replace(f"/proc/{pid}/", "/proc/1/")
        return text.replace(self.path("rootfs"), "")

    def host_path(self, path):
        """Where a path of the container is on the host: through a mount, else in rootfs."""
        path = os.path.normpath(path)
        for bind in sorted(self.facts["binds"], key=lambda bind: -len(bind.split(":")[1])):
            source, target = bind.split(":")[:2]
            target = os.path.normpath(target)
            if path == target or path.startswith(target + "/"):
                return source + path[len(target) :]
        return self.path("rootfs", path.lstrip("/"))

    def environment(self, extra=None):
        return {
            "PATH": f"{os.path.join(self.host.root, 'lib', 'container-bin')}:/usr/bin:/bin",
            "HOME": self.path("rootfs", "root"),
            "HOSTNAME": self.host.name,
            "LC_ALL": "C.UTF-8",
            **IMAGE_ENV,
            **self.facts["env"],
            **(extra or {}),
            ENV_CONTAINER: self.id,
            ENV_HOST: self.host.folder,
            ENV_ROOT: self.host.root,
        }

    def spawn(self, argv, workdir=None, env=None, **streams):
        """A process of this container (Popen). Raises DockerError when there is no such program or folder."""
        import subprocess  # here, as below: a look asks docker ten times, and most of a call's time is its imports

        argv = [self.translate(word) for word in argv]
        environment = self.environment(env)
        if not workdir or os.path.normpath(workdir) == "/":
            folder = self.path("rootfs") if workdir else self.path("rootfs", "workspace")
        else:
            folder = self.host_path(workdir)
        self.check_program(argv[0])
        with contextlib.suppress(FileNotFoundError, PermissionError):
            return subprocess.Popen(argv, env=environment, cwd=folder, start_new_session=True, **streams)
        raise self.no_program(argv[0])

    def check_program(self, name):
        """Raise DockerError where the container has no such program on its PATH."""
        import shutil

        if "/" not in name and not shutil.which(name, path=self.environment()["PATH"]):
            raise self.no_program(name)

    def no_program(self, name):
        """Docker's own words for a program that is not there."""
        reason = "no such file or directory" if "/" in name else "executable file not found in $PATH"
        message = f'exec failed: unable to start container process: exec: "{self.untranslate(name)}": {reason}'
        return DockerError(f"OCI runtime exec failed: {message}: unknown", 127)

    def boot(self):
        """Start PID 1. It ignores TERM, as PID 1 of a container does when it sets no handler."""
        import subprocess

        os.makedirs(self.path("rootfs", "workspace"), exist_ok=True)
        os.makedirs(self.path("rootfs", "root"), exist_ok=True)
        os.makedirs(self.path("execs"), exist_ok=True)
        ignored = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
        try:
            with open(self.path("log"), "ab") as log:
                # PID 1's folder is the container's root, which is what translate() counts on.
                # `./program` is one of the image's working folder, which is on the PATH here.
                command = [self.facts["cmd"][0].removeprefix("./"), *self.facts["cmd"][1:]]
                if not self.facts["auto_remove"]:
                    # Its parent is gone when it ends, so a shell keeps its exit code for `docker inspect`.
                    self.check_program(command[0])
                    command = ["/bin/sh", "-c", '"$@"; echo $? >"$0"', self.path("exit_code"), *command]
                process = self.spawn(
                    command, workdir="/", stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
                )
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self.facts.update(pid=process.pid, ticks=ticks(process.pid), started=time.time())
        self.save()

    def exec_detached(self, argv, workdir=None, env=None):
        import subprocess

        nothing = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.record(self.spawn(argv, workdir, env, **nothing), argv, workdir, env)

    def exec_attached(self, argv, workdir=None, env=None, **streams):
        """Run it to its end; the exit code. It lives on when whoever waits here is killed."""
        process = self.spawn(argv, workdir, env, **streams)
        path = self.record(process, argv, workdir, env)
        code = process.wait()
        if not self.host.off:  # switched off is not ended: it is started again with the host
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        return 128 - code if code < 0 else code

    def record(self, process, argv, workdir, env):
        """Note what was started in the container, so that a stopped demo can start it again; the note's path."""
        facts = {"argv": argv, "workdir": workdir, "env": env, "pid": process.pid, "ticks": ticks(process.pid)}
        path = self.path("execs", f"{time.time_ns()}.json")
        write_atomic(path, json.dumps(facts))
        return path

    def kill_processes(self):
        """End every process of the container at once, and wait until they are gone."""
        deadline = time.monotonic() + 10
        while pids := tagged(ENV_CONTAINER, self.id):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise DockerError(f"Error response from daemon: cannot kill container {self.id}: {pids}")
            time.sleep(0.01)

    def remove(self):
        import shutil

        self.kill_processes()
        link = self.host.path("docker", "names", self.name)
        with contextlib.suppress(OSError):
            if os.path.basename(os.readlink(link)) == self.id:
                os.unlink(link)
        grave = self.host.path("docker", f".gone-{self.id}")
        with contextlib.suppress(OSError):
            os.rename(self.folder, grave)
        shutil.rmtree(grave, ignore_errors=True)
        self.host.refresh_memory()

    def ended(self):
        """PID 1 is gone: with --rm the container goes too, else it is kept as exited."""
        if self.facts["auto_remove"]:
            self.remove()
        elif self.facts.get("pid"):
            self.kill_processes()
            self.facts.update(pid=0, finished=time.time(), exit_code=self.exit_code())
            self.save()
            self.host.refresh_memory()

    def exit_code(self):
        """What PID 1 ended with; 137, killed, where nothing tells."""
        try:
            with open(self.path("exit_code")) as file:
                return int(file.read())
        except (FileNotFoundError, ValueError):
            return 137

    def resume(self):
        """Start a container of a stopped demo again, with the programs that ran in it, and an empty log."""
        for name in ("log", "log.times"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(name))
        self.boot()
        for name in sorted(os.listdir(self.path("execs"))):
            record = read_json(self.path("execs", name))
            os.unlink(self.path("execs", name))
            self.exec_detached(record["argv"], record["workdir"], record["env"])


def containers(host):
    """All containers of a host, newest first."""
    folder = host.path("docker", "containers")
    found = []
    for identifier in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError, ValueError):
            found.append(Container(host, identifier))
    return sorted(found, key=lambda container: -container.facts["created"])


def reap(host):
    """Deal with the containers whose PID 1 ended."""
    if host.off:
        return
    for container in containers(host):
        if container.facts.get("pid") and not container.running:
            container.ended()


def find(host, name):
    """A container by name, id or the beginning of its id. Raises DockerError."""
    for container in containers(host):
        if name.lstrip("/") == container.name or (len(name) >= 2 and container.id.startswith(name)):
            return container
    raise DockerError(f"Error response from daemon: No such container: {name}")


def create(host, name, image, command, env, labels, binds, auto_remove, arguments):
    """Make a container and start it. `image` is an entry of images.json and the name it was asked by."""
    identifier = os.urandom(32).hex()
    name = name or f"demo_{identifier[:8]}"
    link = host.path("docker", "names", name)
    with host.locked("docker/lock"):
        try:
            os.symlink(f"../containers/{identifier}", link)
        except FileExistsError:
            other = os.path.basename(os.readlink(link))
            raise DockerError(
                f'docker: Error response from daemon: Conflict. The container name "/{name}" is already in use by '
                f'container "{other}". You have to remove (or rename) that container to be able to reuse that name.\n\n'
                "Run 'docker run --help' for more information",
                125,
            ) from None
        folder = host.path("docker", "containers", identifier)
        os.makedirs(folder)
        facts = {
            "id": identifier,
            "name": name,
            "image": image[0],
            "image_id": image[1]["id"],
            "cmd": command,
            "env": env,
            "labels": labels,
            "binds": binds,
            "auto_remove": auto_remove,
            "args": arguments,
            "created": time.time(),
            "started": 0,
            "pid": 0,
            "ticks": None,
            "exit_code": 0,
        }
        write_atomic(os.path.join(folder, "container.json"), json.dumps(facts, indent=1))
        container = Container(host, identifier)
        try:
            container.boot()
        except DockerError:
            container.remove()
            raise
    return container


def note_log_time(container):
    """Remember when the log grew to its size, for `docker logs --timestamps`."""
    try:
        size = os.path.getsize(container.path("log"))
    except FileNotFoundError:
        return
    path = container.path("log.times")
    try:
        with open(path) as file:
            last = int(file.read().splitlines()[-1].split()[0])
    except (FileNotFoundError, IndexError):
        last = -1
    if size != last:
        with open(path, "a") as file:
            file.write(f"{size} {time.time():.6f}\n")


def images(host):
    """The host's images: [{"id", "tags", "created", "size"}]; faults/image-missing (names, none = all) hides some."""
    missing = host.fault("image-missing")
    found = read_json(host.path("docker", "images.json"))
    if missing is None:
        return found
    hidden = {full_name(name) for name in missing.split()}
    kept = [{**image, "tags": [tag for tag in image["tags"] if tag not in hidden]} for image in found]
    return [image for image in kept if image["tags"] and hidden]


def find_image(host, name):
    """An image by name, name:tag or id. None when there is none."""
    for image in images(host):
        if full_name(name) in image["tags"] or (
            len(name) > 6 and image["id"].removeprefix("sha256:").startswith(name.removeprefix("sha256:"))
        ):
            return image
    return None


def full_name(name):
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def rfc3339(epoch):
    if not epoch:
        return "0001-01-01T00:00:00Z"
    nanos = int((epoch % 1) * 1e9)
    return datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{nanos:09d}Z"
