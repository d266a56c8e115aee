"""`docker` of a simulated Spark: the subcommands, flags, JSON and messages that people's scripts use.

Each `do_…` takes (host, arguments) and returns the exit code. What docker itself would refuse is refused in docker's
words.
"""

import contextlib
import json
import os
import re
import sys
import time

import docker_look
import sim_containers as store
import sim_hostd
from docker_words import each, flags, read_environment, split_pair, values
from sim_containers import DockerError
from sim_host import Host

RUN_VALUES = {
    *(
        "--name",
        "--gpus",
        "-e",
        "--env",
        "--env-file",
        "-v",
        "--volume",
        "-l",
        "--label",
        "--network",
        "--net",
        "--ipc",
    ),
    *(
        "--ulimit",
        "--shm-size",
        "-m",
        "--memory",
        "--memory-swap",
        "--pids-limit",
        "--cap-add",
        "--cap-drop",
        "--device",
    ),
    *(
        "--entrypoint",
        "-p",
        "--publish",
        "-w",
        "--workdir",
        "--restart",
        "-u",
        "--user",
        "-h",
        "--hostname",
        "--runtime",
    ),
    *("--mount", "--security-opt", "--log-driver", "--log-opt", "--pull", "--stop-timeout", "--add-host", "--cpus"),
    *("--pid", "--platform", "--group-add", "--tmpfs", "--cgroupns", "--userns"),
}
RUN_SWITCHES = {"-d", "--detach", "--rm", "--privileged", "-i", "--interactive", "-t", "--tty", "--init", "-it", "-ti"}
EXEC_VALUES = {"-w", "--workdir", "-e", "--env", "-u", "--user", "--env-file"}
EXEC_SWITCHES = {"-d", "--detach", "-i", "--interactive", "-t", "--tty", "-it", "-ti", "--privileged"}


def main(host_folder, _program, arguments):
    host = Host(host_folder)
    try:
        return dispatch(host, arguments)
    except DockerError as error:
        sys.stdout.flush()
        print(error, file=sys.stderr)
        return error.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except KeyboardInterrupt:
        return 130


def dispatch(host, arguments):
    if not arguments or arguments[0] in ("--help", "help"):
        print("Usage:  docker [OPTIONS] COMMAND\n\nA self-sufficient runtime for containers")
        return 0
    if arguments[0] in ("-v", "--version"):
        print(f"Docker version {docker_look.VERSION}, build 980b856")
        return 0
    command, rest = arguments[0], arguments[1:]
    if command == "container" and rest:
        command = {"ls": "ps", "list": "ps", "inspect": "container inspect"}.get(rest[0], rest[0])
        rest = rest[1:]
    elif command == "image" and rest:
        command = {"ls": "images", "list": "images", "inspect": "image inspect", "tag": "tag"}.get(
            rest[0], "image " + rest[0]
        )
        rest = rest[1:]
    if command not in COMMANDS:
        raise DockerError(f"docker: unknown command: docker {command}\n\nRun 'docker --help' for more information")
    if host.off or host.fault("docker-down") is not None:
        if command == "version":
            docker_look.print_version(rest, server=False)
        raise DockerError(
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
        )
    store.reap(host)
    host.refresh_memory()
    return COMMANDS[command](host, rest)


# --- containers: make, use, end -------------------------------------------------------------------------------------


def do_run(host, arguments):
    options, rest = flags("run", arguments, RUN_VALUES, RUN_SWITCHES)
    if not rest:
        raise DockerError("docker: \"docker run\" requires at least 1 argument\n\nSee 'docker run --help'.", 1)
    name, command = rest[0], [*filter(None, values(options, "--entrypoint")[-1:]), *rest[1:]]
    image = store.find_image(host, name)
    if image is None:
        print(f"Unable to find image '{store.full_name(name)}' locally", file=sys.stderr)
        repository = name.partition(":")[0]
        raise DockerError(
            f"docker: Error response from daemon: pull access denied for {repository}, repository does not exist or "
            "may require 'docker login': denied: requested access to the resource is denied\n\n"
            "Run 'docker run --help' for more information",
            125,
        )
    refusal = host.fault("run-fails")
    if refusal is not None:
        raise DockerError(
            f"docker: Error response from daemon: {refusal.strip() or 'failed to create task for container'}", 125
        )
    sim_hostd.start(host)
    labels = dict(split_pair(label) for label in values(options, "-l", "--label"))
    environment = read_environment(options)
    binds = [own_path(host, bind) for bind in values(options, "-v", "--volume")]
    for bind in binds:
        source = bind.split(":")[0]
        if ":" not in bind:
            raise DockerError(f"docker: Error response from daemon: invalid volume specification: '{bind}'", 125)
        if source.startswith("/"):
            with contextlib.suppress(OSError):
                os.makedirs(source, exist_ok=True)  # as dockerd does
    auto_remove = bool(values(options, "--rm"))
    container_name = (values(options, "--name") or [""])[-1]
    if container_name and not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", container_name):
        raise DockerError(
            f"docker: Error response from daemon: Invalid container name ({container_name}), only "
            "[a-zA-Z0-9][a-zA-Z0-9_.-] are allowed\n\nRun 'docker run --help' for more information",
            125,
        )
    if not values(options, "-d", "--detach"):
        return run_attached(host, (name, image), command or ["true"], environment, labels, binds)
    container = store.create(
        host,
        container_name,
        (name, image),
        command or ["sleep", "infinity"],
        environment,
        labels,
        binds,
        auto_remove,
        arguments,
    )
    print(container.id)
    return 0


def own_path(host, path):
    """A path in the home of another Spark means the same one here: real Sparks' homes have the same path everywhere,
    and the launcher counts on it when it gives a worker the head's cache folder."""
    name, slash, rest = path.removeprefix(host.root + "/").partition("/")
    if slash and path.startswith(host.root + "/") and os.path.exists(os.path.join(host.root, name, "host.json")):
        return host.path(rest)
    return path


def run_attached(host, image, command, environment, labels, binds):
    """`docker run IMAGE COMMAND` without -d: the command runs in a container that goes with it."""
    container = store.create(host, "", image, ["sleep", "infinity"], environment, labels, binds, True, command)
    try:
        return container.spawn(command).wait()
    finally:
        container.remove()


def do_exec(host, arguments):
    options, rest = flags("exec", arguments, EXEC_VALUES, EXEC_SWITCHES)
    if len(rest) < 2:
        raise DockerError("docker: \"docker exec\" requires at least 2 arguments\n\nSee 'docker exec --help'.", 1)
    container = store.find(host, rest[0])
    if not container.running:
        raise DockerError(f"Error response from daemon: container {container.id} is not running")
    workdir = (values(options, "-w", "--workdir") or [None])[-1]
    environment = read_environment(options)
    if values(options, "-d", "--detach"):
        container.exec_detached(rest[1:], workdir, environment)
        return 0
    import subprocess

    interactive = values(options, "-i", "--interactive", "-it", "-ti")
    return container.exec_attached(rest[1:], workdir, environment, stdin=None if interactive else subprocess.DEVNULL)


def do_rm(host, arguments):
    options, names = flags("rm", arguments, set(), {"-f", "--force", "-v", "--volumes", "-fv", "-vf"})
    force = values(options, "-f", "--force", "-fv", "-vf")
    return each(names, lambda name: remove(host, name, force))


def remove(host, name, force):
    container = store.find(host, name)
    if container.running and not force:
        raise DockerError(
            f'Error response from daemon: cannot remove container "/{container.name}": container is running: stop the '
            "container before removing or force remove"
        )
    if host.fault("rm-refuses") is None:
        container.remove()


def do_stop(host, arguments):
    options, names = flags("stop", arguments, {"-t", "--time", "--timeout", "-s", "--signal"}, set())
    grace = (values(options, "-t", "--time", "--timeout") or [None])[-1]
    return each(names, lambda name: stop(host, name, grace))


def stop(host, name, grace):
    container = store.find(host, name)
    if host.fault("rm-refuses") is not None:
        return
    if grace is None:
        options, _unused = flags("run", container.facts["args"], RUN_VALUES, RUN_SWITCHES)
        grace = (values(options, "--stop-timeout") or [10])[-1]
    if container.running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(container.facts["pid"], 15)
        deadline = time.monotonic() + float(grace)
        while container.running and time.monotonic() < deadline:
            time.sleep(0.05)
        container.kill_processes()
    with contextlib.suppress(FileNotFoundError, ValueError):
        store.Container(host, container.id).ended()


def do_kill(host, arguments):
    _unused, names = flags("kill", arguments, {"-s", "--signal"}, set())
    return each(names, lambda name: stop(host, name, 0))


def do_cp(host, arguments):
    import shutil

    _unused, paths = flags("cp", arguments, set(), {"-a", "--archive", "-L", "--follow-link", "-q", "--quiet"})
    if len(paths) != 2:
        raise DockerError('docker: "docker cp" requires exactly 2 arguments')
    source, target = (container_path(host, path) for path in paths)
    contents = source.endswith("/.")
    if not os.path.exists(source):
        raise DockerError(f"lstat {paths[0]}: no such file or directory")
    if contents:
        os.makedirs(target, exist_ok=True)
        shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)
    elif os.path.isdir(source):
        target = os.path.join(target, os.path.basename(source)) if os.path.isdir(target) else target
        shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)
    else:
        if not os.path.isdir(os.path.dirname(target.rstrip("/"))):
            raise DockerError(
                f"Error response from daemon: Could not find the file {os.path.dirname(paths[1])} in container"
            )
        shutil.copy2(source, target)
    return 0


def container_path(host, text):
    name, colon, path = text.partition(":")
    if not colon or "/" in name:
        return text
    container = store.find(host, name)
    return container.host_path(path) + ("/." if path.endswith("/.") else "")


def do_tag(host, arguments):
    source, target = arguments
    with host.locked("docker/lock"):
        path = host.path("docker", "images.json")
        images = store.read_json(path)
        wanted = store.find_image(host, source)
        if wanted is None:
            raise DockerError(f"Error response from daemon: No such image: {store.full_name(source)}")
        for image in images:
            image["tags"] = [tag for tag in image["tags"] if tag != store.full_name(target)]
            if image["id"] == wanted["id"]:
                image["tags"].append(store.full_name(target))
        store.write_atomic(path, json.dumps(images, indent=1))
    return 0


COMMANDS = {
    "run": do_run,
    "exec": do_exec,
    "rm": do_rm,
    "stop": do_stop,
    "kill": do_kill,
    "cp": do_cp,
    "ps": docker_look.do_ps,
    "inspect": docker_look.do_inspect,
    "container inspect": lambda host, arguments: docker_look.do_inspect(host, arguments, ("container",)),
    "image inspect": lambda host, arguments: docker_look.do_inspect(host, arguments, ("image",)),
    "images": docker_look.do_images,
    "tag": do_tag,
    "logs": docker_look.do_logs,
    "top": docker_look.do_top,
    "version": docker_look.do_version,
    "info": docker_look.do_info,
}
