"""How docker reads its command line, fills in --format templates and prints tables."""

import json
import os
import re

from sim_containers import DockerError


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
                        f"flag needs an argument: {word}\n\nUsage:  docker {command}\n\n"
                        f"Run 'docker {command} --help' for more information",
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
    key, _unused, value = text.partition("=")
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
                        f'template parsing error: template: :1:2: executing "" at <{path}>: '
                        f'map has no entry for key "{part}"',
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
