"""`docker ps`, `inspect`, `logs`, `top`, `images`, `version` and `info` of a simulated Spark: what only looks."""

import contextlib
import json
import re
import sys
import time

import sim_containers as store
from docker_words import flags, human_age, print_lines, print_table, render, split_pair, values
from sim_containers import DockerError, rfc3339

VERSION = "28.3.3"


def do_ps(host, arguments):
    options, _unused = flags(
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
            "RootFS": {"Type": "layers", "Layers": image.get("layers") or [image["id"]]},
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


def do_images(host, arguments):
    options, names = flags(
        "images", arguments, {"--format", "-f", "--filter"}, {"-a", "--all", "-q", "--quiet", "--no-trunc", "--digests"}
    )
    rows = []
    for image in store.images(host):
        for tag in image["tags"]:
            repository, _unused, version = tag.rpartition(":")
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


def do_version(_host, arguments):
    return print_version(arguments, server=True)


def print_version(arguments, server):
    options, _unused = flags("version", arguments, {"-f", "--format"}, set())
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
    options, _unused = flags("info", arguments, {"-f", "--format"}, set())
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
