"""`docker` of a simulated Spark: the subcommands, flags, JSON and messages that people's scripts use.

Each `do_…` takes (host, arguments) and returns the exit code. What docker itself would refuse is refused in docker's words.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time

import sim_containers as store
import sim_hostd
from sim_containers import DockerError, rfc3339
from sim_host import Host

VERSION = "28.3.3"

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
        print(f"Docker version {VERSION}, build 980b856")
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
            print_version(rest, server=False)
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
    name, command = rest[0], rest[1:]
    image = store.find_image(host, name)
    if image is None:
        print(f"Unable to find image '{store.full_name(name)}' locally", file=sys.stderr)
        repository = name.partition(":")[0]
        raise DockerError(
            f"docker: Error response from daemon: pull access denied for {repository}, repository does not exist or may require "
            "'docker login': denied: requested access to the resource is denied\n\nRun 'docker run --help' for more information",
            125,
        )
    refusal = host.fault("run-fails")
    if refusal is not None:
        raise DockerError(f"docker: Error response from daemon: {refusal.strip() or 'failed to create task for container'}", 125)
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
            f"docker: Error response from daemon: Invalid container name ({container_name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are "
            "allowed\n\nRun 'docker run --help' for more information",
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
    """A path in the home of another Spark means the same one here: real Sparks' homes have the same path everywhere, and the
    launcher counts on it when it gives a worker the head's cache folder."""
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
            f'Error response from daemon: cannot remove container "/{container.name}": container is running: stop the container '
            "before removing or force remove"
        )
    if host.fault("rm-refuses") is None:
        container.remove()


def do_stop(host, arguments):
    options, names = flags("stop", arguments, {"-t", "--time", "--timeout", "-s", "--signal"}, set())
    grace = float((values(options, "-t", "--time", "--timeout") or ["10"])[-1])
    return each(names, lambda name: stop(host, name, grace))


def stop(host, name, grace):
    container = store.find(host, name)
    if host.fault("rm-refuses") is not None:
        return
    if container.running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(container.facts["pid"], 15)
        deadline = time.monotonic() + grace
        while container.running and time.monotonic() < deadline:
            time.sleep(0.05)
        container.kill_processes()
    with contextlib.suppress(FileNotFoundError, ValueError):
        store.Container(host, container.id).ended()


def do_kill(host, arguments):
    _, names = flags("kill", arguments, {"-s", "--signal"}, set())
    return each(names, lambda name: stop(host, name, 0))


def do_cp(host, arguments):
    _, paths = flags("cp", arguments, set(), {"-a", "--archive", "-L", "--follow-link", "-q", "--quiet"})
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


# --- containers: look -----------------------------------------------------------------------------------------------


def do_ps(host, arguments):
    options, _ = flags(
        "ps",
        arguments,
        {"-f", "--filter", "--format", "-n"},
        {"-a", "--all", "-q", "--quiet", "--no-trunc", "-aq", "-qa"},
    )
    everything = values(options, "-a", "--all", "-aq", "-qa")
    full = values(options, "--no-trunc")
    rows = []
    for container in store.containers(host):
        if (container.running or everything) and all(
            matches(container, *split_pair(f)) for f in values(options, "-f", "--filter")
        ):
            rows.append(ps_row(container, full))
    template = (values(options, "--format") or [None])[-1]
    if values(options, "-q", "--quiet", "-aq", "-qa"):
        template = "{{.ID}}"
    if template in ("json", "{{json .}}"):
        print_lines(json.dumps(row) for row in rows)
    elif template:
        print_lines(render(template.removeprefix("table "), row) for row in rows)
    else:
        columns = {
            "CONTAINER ID": "ID",
            "IMAGE": "Image",
            "COMMAND": "Command",
            "CREATED": "RunningFor",
            "STATUS": "Status",
            "PORTS": "Ports",
            "NAMES": "Names",
        }
        print_table(list(columns), [[row[key] for key in columns.values()] for row in rows])
    return 0


def ps_row(container, full):
    facts = container.facts
    age = human_age(time.time() - facts["created"])
    command = " ".join(facts["cmd"])
    return {
        "Command": json.dumps(command if full or len(command) < 20 else command[:19] + "…"),
        "CreatedAt": time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", time.gmtime(facts["created"])),
        "ID": container.id if full else container.id[:12],
        "Image": facts["image"],
        "Labels": ",".join(f"{key}={value}" for key, value in facts["labels"].items()),
        "LocalVolumes": "0",
        "Mounts": ",".join(bind.split(":")[0] for bind in facts["binds"]),
        "Names": container.name,
        "Networks": "host",
        "Ports": "",
        "RunningFor": f"{age} ago",
        "Size": "0B",
        "State": "running" if container.running else "exited",
        "Status": f"Up {human_age(time.time() - facts['started'])}"
        if container.running
        else f"Exited ({facts['exit_code']}) {age} ago",
    }


def matches(container, key, value):
    if key == "name":
        return re.search(value, container.name) or re.search(value, "/" + container.name)
    if key == "label":
        label, equals, wanted = value.partition("=")
        found = container.facts["labels"].get(label)
        return found is not None and (not equals or found == wanted)
    if key == "id":
        return container.id.startswith(value)
    if key == "status":
        return value == ("running" if container.running else "exited")
    if key == "ancestor":
        return store.full_name(value) == store.full_name(container.facts["image"])
    raise DockerError(f"Error response from daemon: invalid filter '{key}'")


def do_inspect(host, arguments, kinds=("container", "image")):
    options, names = flags("inspect", arguments, {"-f", "--format", "--type"}, {"-s", "--size"})
    kinds = values(options, "--type") or kinds
    template = (values(options, "-f", "--format") or [None])[-1]
    found, problems = [], []
    for name in names:
        try:
            found.append(inspect_one(host, name, kinds))
        except DockerError as error:
            problems.append(str(error))
    if template in (None, "json"):
        print(json.dumps(found, indent=None if template else 4))
    else:
        print_lines(render(template, item) for item in found)
        if not found:
            print()
    if problems:
        raise DockerError("\n".join(problems))
    return 0


def inspect_one(host, name, kinds):
    if "container" in kinds:
        try:
            return describe(store.find(host, name))
        except DockerError:
            if "image" not in kinds:
                raise
    image = store.find_image(host, name)
    if image:
        return {
            "Id": image["id"],
            "RepoTags": image["tags"],
            "RepoDigests": [],
            "Created": rfc3339(image["created"]),
            "Architecture": "arm64",
            "Os": "linux",
            "Size": image["size"],
            "Config": {
                "Env": [f"{k}={v}" for k, v in store.IMAGE_ENV.items()],
                "Cmd": None,
                "Entrypoint": None,
                "Labels": {},
                "WorkingDir": "/workspace",
            },
        }
    if "container" in kinds:
        raise DockerError(f"Error: No such object: {name}")
    raise DockerError(f"Error response from daemon: No such image: {store.full_name(name)}")


def describe(container):
    """`docker inspect` of a container."""
    facts, running = container.facts, container.running
    environment = {**store.IMAGE_ENV, **facts["env"]}
    mounts = []
    for bind in facts["binds"]:
        source, target, *mode = bind.split(":")
        mounts.append(
            {
                "Type": "bind",
                "Source": source,
                "Destination": target,
                "Mode": ":".join(mode),
                "RW": "ro" not in mode,
                "Propagation": "rprivate",
            }
        )
    return {
        "Id": container.id,
        "Created": rfc3339(facts["created"]),
        "Path": facts["cmd"][0],
        "Args": facts["cmd"][1:],
        "State": {
            "Status": "running" if running else "exited",
            "Running": running,
            "Paused": False,
            "Restarting": False,
            "OOMKilled": False,
            "Dead": False,
            "Pid": facts["pid"] if running else 0,
            "ExitCode": 0 if running else facts["exit_code"],
            "Error": "",
            "StartedAt": rfc3339(facts["started"]),
            "FinishedAt": rfc3339(facts.get("finished")),
        },
        "Image": facts["image_id"],
        "Name": f"/{container.name}",
        "RestartCount": 0,
        "LogPath": container.path("log"),
        "HostConfig": {
            "Binds": facts["binds"] or None,
            "AutoRemove": facts["auto_remove"],
            "NetworkMode": "host",
            "IpcMode": "host",
            "Privileged": "--privileged" in facts["args"],
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        },
        "Mounts": mounts,
        "Config": {
            "Hostname": container.host.name,
            "Image": facts["image"],
            "Env": [f"{key}={value}" for key, value in environment.items()],
            "Cmd": facts["cmd"],
            "Entrypoint": None,
            "Labels": facts["labels"],
            "WorkingDir": "/workspace",
            "Tty": False,
        },
    }


def do_logs(host, arguments):
    options, names = flags(
        "logs", arguments, {"-n", "--tail", "--since", "--until"}, {"-f", "--follow", "-t", "--timestamps"}
    )
    container = store.find(host, names[0])
    stamps = values(options, "-t", "--timestamps")
    tail = (values(options, "-n", "--tail") or ["all"])[-1]
    out = sys.stdout.buffer
    with open(container.path("log"), "rb") as log:
        text = log.read()
        lines = text.splitlines(keepends=True) if stamps else text.split(b"\n")
        if not stamps:
            lines = [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
        skipped = 0
        if tail not in ("all", "-1"):
            cut = max(len(lines) - int(tail), 0)
            skipped = sum(map(len, lines[:cut]))
            lines = lines[cut:]
        write_log(container, out, lines, skipped, stamps)
        while values(options, "-f", "--follow") and container.running:
            more = log.read()
            if more:
                write_log(container, out, more.splitlines(keepends=True), log.tell() - len(more), stamps)
            else:
                time.sleep(0.05)
    return 0


def write_log(container, out, lines, offset, stamps):
    times = []
    if stamps:
        store.note_log_time(container)
        with contextlib.suppress(FileNotFoundError), open(container.path("log.times")) as file:
            times = [line.split() for line in file]
    for line in lines:
        offset += len(line)
        if stamps:
            when = next((float(epoch) for size, epoch in times if int(size) >= offset), time.time())
            out.write(rfc3339(when).encode() + b" ")
        out.write(line)
    out.flush()


def do_top(host, arguments):
    container = store.find(host, arguments[0])
    if not container.running:
        raise DockerError(f"Error response from daemon: container {container.id} is not running")
    rows = [[str(pid), command_line(container, pid)] for pid in container.processes()]
    if len(arguments) > 1 and "pid" in " ".join(arguments[1:]).lower():
        print_table(["PID", "COMMAND"], rows)
    else:
        rows = [["root", pid, "1", "0", "00:00", "?", "00:00:00", command] for pid, command in rows]
        print_table(["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"], rows)
    return 0


def command_line(container, pid):
    """A process's arguments as they would read in the container."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return ""
    if len(words) > 4 and words[2].endswith("/lib/run.py"):
        words = ["/usr/bin/python3", f"/usr/local/bin/{words[4]}", *words[5:]]
    return container.untranslate(" ".join(words)).replace("\n", " ")


# --- images and the daemon ------------------------------------------------------------------------------------------


def do_images(host, arguments):
    options, names = flags(
        "images", arguments, {"--format", "-f", "--filter"}, {"-a", "--all", "-q", "--quiet", "--no-trunc", "--digests"}
    )
    rows = []
    for image in store.images(host):
        for tag in image["tags"]:
            repository, _, version = tag.rpartition(":")
            if names and names[0] not in (repository, tag):
                continue
            identifier = image["id"] if values(options, "--no-trunc") else image["id"].removeprefix("sha256:")[:12]
            age = human_age(time.time() - image["created"]) + " ago"
            rows.append(
                {
                    "Repository": repository,
                    "Tag": version,
                    "ID": identifier,
                    "CreatedSince": age,
                    "Size": f"{image['size'] / 1e9:.1f}GB",
                }
            )
    template = (values(options, "--format") or [None])[-1]
    if values(options, "-q", "--quiet"):
        template = "{{.ID}}"
    if template in ("json", "{{json .}}"):
        print_lines(json.dumps(row) for row in rows)
    elif template:
        print_lines(render(template, row) for row in rows)
    else:
        print_table(["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"], [list(row.values()) for row in rows])
    return 0


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


def do_version(_host, arguments):
    return print_version(arguments, server=True)


def print_version(arguments, server):
    options, _ = flags("version", arguments, {"-f", "--format"}, set())
    facts = {
        "Client": {"Version": VERSION, "ApiVersion": "1.51"},
        "Server": {"Version": VERSION, "ApiVersion": "1.51"} if server else None,
    }
    template = (values(options, "-f", "--format") or [None])[-1]
    if template and server:
        print(json.dumps(facts) if template == "json" else render(template, facts))
    elif not template:
        print(f"Client: Docker Engine - Community\n Version:           {VERSION}")
        if server:
            print(f"\nServer: Docker Engine - Community\n Engine:\n  Version:          {VERSION}")
    return 0


def do_info(host, arguments):
    options, _ = flags("info", arguments, {"-f", "--format"}, set())
    found = store.containers(host)
    facts = {
        "ID": host.name,
        "Containers": len(found),
        "ContainersRunning": sum(container.running for container in found),
        "Images": len(store.images(host)),
        "Driver": "overlay2",
        "DockerRootDir": host.path("docker"),
        "MemTotal": host.total,
        "NCPU": 20,
        "Architecture": "aarch64",
        "OperatingSystem": "Ubuntu 24.04.3 LTS",
        "Name": host.name,
        "ServerVersion": VERSION,
    }
    template = (values(options, "-f", "--format") or [None])[-1]
    if template:
        print(json.dumps(facts) if template == "json" else render(template, facts))
    else:
        print_lines(f" {key}: {value}" for key, value in facts.items())
    return 0


# --- helpers --------------------------------------------------------------------------------------------------------


def flags(command, arguments, with_value, switches):
    """Docker's way with flags: they end at the first word that is none. Returns ([(flag, value)], the rest)."""
    found, rest = [], list(arguments)
    interspersed = command not in ("run", "exec")
    positional = []
    while rest:
        word = rest.pop(0)
        if word == "--":
            return found, positional + rest
        if not word.startswith("-") or word == "-":
            positional.append(word)
            if not interspersed:
                return found, positional + rest
            continue
        name, equals, value = word.partition("=")
        if name in switches:
            if value.lower() not in ("false", "0"):
                found.append((name, "true"))
        elif name in with_value:
            if not equals:
                if not rest:
                    raise DockerError(
                        f"flag needs an argument: {word}\n\nUsage:  docker {command}\n\nRun 'docker {command} --help' for more information",
                        125,
                    )
                value = rest.pop(0)
            found.append((name, value))
        elif not word.startswith("--") and word[:2] in with_value:
            found.append((word[:2], word[2:].removeprefix("=")))
        else:
            what = (
                f"unknown flag: {name}" if word.startswith("--") else f"unknown shorthand flag: '{word[1]}' in {word}"
            )
            raise DockerError(
                f"{what}\n\nUsage:  docker {command} [OPTIONS]\n\nRun 'docker {command} --help' for more information",
                125,
            )
    return found, positional


def values(options, *names):
    return [value for name, value in options if name in names]


def split_pair(text):
    key, _, value = text.partition("=")
    return key, value


def read_environment(options):
    """-e KEY=value, -e KEY (the caller's) and --env-file as one mapping."""
    environment = {}
    for path in values(options, "--env-file"):
        with open(path) as file:
            environment.update(
                split_pair(line.rstrip("\n")) for line in file if "=" in line and not line.startswith("#")
            )
    for text in values(options, "-e", "--env"):
        key, equals, value = text.partition("=")
        if equals:
            environment[key] = value
        elif key in os.environ:
            environment[key] = os.environ[key]
    return environment


def each(names, action):
    """Do something to each name; print those that went, then the problems. Exit code 1 if there were any."""
    problems = []
    for name in names:
        try:
            action(name)
            print(name)
        except DockerError as error:
            problems.append(str(error))
    if problems:
        raise DockerError("\n".join(problems))
    return 0


def render(template, item):
    """The part of Go's templates that people use: {{.A.B}}, {{json .A}}, {{index .A "key"}}, \\t and \\n."""

    def value(path):
        found = item
        for part in path.strip(".").split("."):
            if part:
                if not isinstance(found, dict) or part not in found:
                    raise DockerError(
                        f'template parsing error: template: :1:2: executing "" at <{path}>: map has no entry for key "{part}"',
                        64,
                    )
                found = found[part]
        return found

    def replace(match):
        words = match[1].strip()
        if words.startswith("json "):
            return json.dumps(value(words[5:].strip()))
        if words.startswith("index "):
            path, key = words[6:].strip().split(" ", 1)
            return str((value(path) or {}).get(key.strip(' "'), ""))
        if not words.startswith("."):
            raise DockerError(f'template parsing error: template: :1: function "{words.split()[0]}" not defined', 64)
        found = value(words)
        return str(found).lower() if isinstance(found, bool) else str(found)

    return re.sub(r"\{\{(.*?)\}\}", replace, template.replace("\\t", "\t").replace("\\n", "\n"))


def human_age(seconds):
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} seconds" if seconds < 60 else "About a minute"


def print_lines(lines):
    for line in lines:
        print(line)


def print_table(header, rows):
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("   ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


COMMANDS = {
    "run": do_run,
    "exec": do_exec,
    "rm": do_rm,
    "stop": do_stop,
    "kill": do_kill,
    "cp": do_cp,
    "ps": do_ps,
    "inspect": do_inspect,
    "container inspect": lambda host, arguments: do_inspect(host, arguments, ("container",)),
    "image inspect": lambda host, arguments: do_inspect(host, arguments, ("image",)),
    "images": do_images,
    "tag": do_tag,
    "logs": do_logs,
    "top": do_top,
    "version": do_version,
    "info": do_info,
}
