"""Which operations there are and what each takes, read from the playbooks and their roles' argument specs.

An operation is a file `playbooks/<name>.yml`; `tidy_*.yml` are not (they run after a cancel). What it takes
is what the roles that it names declare in `meta/argument_specs.yml` under the entry point that it names
(`tasks_from`, default `main`). When one of these entry points is called like the operation, that one alone
decides; otherwise the options of all are joined. An option that the playbook itself sets (`vars:`) is not one
that a caller gives. A role goes by its full name, `spark.control.vllm`, of which the last word is its folder's.
"""

import contextlib
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from webui.jobs.folder import project_folder

MAX_STRING = 4096  # characters
MAX_DEPTH = 6
MAX_ITEMS = 1000
_SPEC_KEYS = {"type", "required", "choices", "elements", "no_log", "options", "aliases"}
_cache: dict[Path, tuple[tuple, dict]] = {}


@dataclass(frozen=True)
class Operation:
    """One playbook. `options`: name → {type, required, default, choices, description, secret, elements}."""

    name: str
    playbook: Path
    description: str
    options: dict[str, dict] = field(default_factory=dict)
    about: str = ""  # the spec's longer description
    spec: dict[str, dict] = field(default_factory=dict, repr=False)

    @property
    def secrets(self) -> set[str]:
        """The options whose values are never shown."""
        return {name for name, option in self.options.items() if option["secret"]}


def operations(project_dir: Path | None = None) -> dict[str, Operation]:
    """Every operation by name. A playbook or spec that cannot be read is left out, not an error."""
    project = Path(project_dir or project_folder())
    stamp = _stamp(project)
    known = _cache.get(project)
    if known and known[0] == stamp:
        return known[1]
    found = {}
    for path in sorted((project / "playbooks").glob("*.yml")):
        if path.stem.startswith(("tidy_", ".", "_")):
            continue
        # Any shape of YAML may stand in these files; ansible-playbook says what is wrong with it, not we.
        with contextlib.suppress(AttributeError, TypeError, ValueError):
            if operation := _read(project, path):
                found[path.stem] = operation
    _cache[project] = (stamp, found)
    return found


def validate(
    operation: str | Operation, variables: Mapping[str, object], project_dir: Path | None = None
) -> tuple[dict[str, object], list[dict[str, str]]]:
    """Check a caller's variables against an operation's spec, with Ansible's own validator.

    Returns (clean, errors): `clean` holds only what the caller gave, in the declared types (defaults stay
    where the inventory can override them); errors are [{field, message}], empty when all is well. Raises
    KeyError for an unknown operation.
    """
    if isinstance(operation, str):
        operation = operations(project_dir)[operation]
    given, errors = dict(variables), []
    for name, value in list(given.items()):
        problem = None
        if not isinstance(name, str) or name not in operation.spec:
            takes = ", ".join(operation.spec) or "no options"
            problem = f"{operation.name} has no option {_short(name)}; it takes {takes}."
        elif value is None:
            del given[name]  # an empty form field or a JSON null is an option that was not given
        else:
            problem = _unfit(value)
        if problem:
            errors.append({"field": str(name)[:128], "message": problem})
            given.pop(name, None)
    refused = {error["field"] for error in errors}
    clean, more = _check_types(operation, given)
    errors += [error for error in more if error["field"] not in refused]
    return clean, errors


def _check_types(operation: Operation, given: dict) -> tuple[dict, list[dict[str, str]]]:
    # Imported late: 50 ms that a job which was checked by its starter does not pay.
    from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

    clean, errors = {}, []
    for name, option in operation.spec.items():
        if name not in given:
            if option.get("required"):
                errors.append({"field": name, "message": f"{name} is required."})
            continue
        # One option at a time, so that each message belongs to a field.
        result = ArgumentSpecValidator({name: {**option, "required": False}}).validate({name: given[name]})
        if result.error_messages:
            message = " ".join(result.error_messages)
            if option.get("no_log"):
                message = f"{name} is not a valid {option.get('type', 'str')}."
            errors.append({"field": name, "message": message[:500]})
        else:
            clean[name] = result.validated_parameters[name]
    return clean, errors


def _unfit(value: object, depth: int = 0) -> str | None:
    """Why a value is refused whatever its type, or None."""
    if depth > MAX_DEPTH:
        return f"It is nested more than {MAX_DEPTH} levels deep."
    if isinstance(value, str):
        if len(value) > MAX_STRING:
            return f"It is longer than {MAX_STRING} characters."
        if any(unicodedata.category(char) in ("Cc", "Cs") for char in value):
            return "It contains a control character."
        return None
    if isinstance(value, Mapping):
        if any(not isinstance(key, str) or key.startswith("__ansible") for key in value):
            return "Its keys must be plain names."
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple):
        parts = list(value)
    elif isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return "It is not a finite number."
    else:
        return None if isinstance(value, bool | int | float | None) else "It is not a JSON value."
    if len(parts) > MAX_ITEMS:
        return f"It has more than {MAX_ITEMS} entries."
    return next((problem for part in parts if (problem := _unfit(part, depth + 1))), None)


def _read(project: Path, path: Path) -> Operation | None:
    plays = _load(path)
    if not isinstance(plays, list):
        return None
    entries = []
    for role, entry, settled in _roles(plays):
        specs = _load(project / "roles" / role / "meta" / "argument_specs.yml")
        spec = ((specs or {}).get("argument_specs") or {}).get(entry) if isinstance(specs, dict) else None
        if isinstance(spec, dict):
            entries.append((role, entry, settled, spec))
    own = [item for item in entries if path.stem in (item[1], item[0])]
    merged, summary, about = {}, "", ""
    for _, _, settled, spec in own[:1] or entries:
        summary = summary or _sentence(spec.get("short_description"))
        about = about or _sentence(spec.get("description"))
        for name, option in (spec.get("options") or {}).items():
            if name not in settled and isinstance(option, dict) and not name.startswith("spark_control_"):
                merged.setdefault(name, option)
    if not summary:
        summary = next((str(play["name"]) for play in plays if isinstance(play, dict) and play.get("name")), "")
    return Operation(
        name=path.stem,
        playbook=path,
        description=summary,
        options={name: _described(option) for name, option in merged.items()},
        about=about,
        spec={name: _argument(option) for name, option in merged.items()},
    )


def _roles(plays: list) -> Iterator[tuple[str, str, set[str]]]:
    """(role, entry point, names set by the playbook) in the order in which a playbook names its roles."""
    for play in plays:
        if not isinstance(play, dict):
            continue
        settled = set(play.get("vars") or {})
        for role in play.get("roles") or []:
            entry = role if isinstance(role, dict) else {"role": role}
            name = entry.get("role") or entry.get("name")
            if isinstance(name, str):
                yield _folder(name), str(entry.get("tasks_from") or "main"), settled | set(entry.get("vars") or {})
        for section in ("pre_tasks", "tasks", "post_tasks"):
            yield from _role_tasks(play.get(section) or [], settled)


def _role_tasks(tasks: list, settled: set[str]) -> Iterator[tuple[str, str, set[str]]]:
    for task in tasks:
        if not isinstance(task, dict):
            continue
        here = settled | set(task.get("vars") or {})
        for part in ("block", "rescue", "always"):
            yield from _role_tasks(task.get(part) or [], here)
        for action in ("import_role", "include_role"):
            call = task.get(f"ansible.builtin.{action}", task.get(action))
            if isinstance(call, dict) and isinstance(call.get("name"), str):
                entry = re.sub(r"\.ya?ml$", "", str(call.get("tasks_from") or "main"))
                yield _folder(call["name"]), entry, here


def _folder(role: str) -> str:
    return role.rpartition(".")[2]


def _argument(option: dict) -> dict:
    """A role's option as ArgumentSpecValidator takes it: no prose, no defaults."""
    kept = {key: value for key, value in option.items() if key in _SPEC_KEYS}
    if kept.get("type") == "path":
        kept["type"] = "str"  # the path is the far host's: `~` and `$X` are not this machine's to expand
    if "options" in kept:
        kept["options"] = {name: _argument(inner) for name, inner in kept["options"].items()}
    return kept


def _described(option: dict) -> dict:
    return {
        "type": option.get("type", "str"),
        "required": bool(option.get("required")),
        "default": option.get("default"),
        "choices": option.get("choices"),
        "elements": option.get("elements"),
        "description": _sentence(option.get("description")),
        "secret": bool(option.get("no_log")),
    }


def _sentence(text: object) -> str:
    parts = text if isinstance(text, list) else [text]
    return " ".join(str(part).strip() for part in parts if part)


def _short(name: object) -> str:
    return repr(str(name)[:64])


def _load(path: Path) -> object:
    import yaml

    try:
        return yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError):
        return None


def _stamp(project: Path) -> tuple:
    """What has to stay the same for the parsed operations to hold: names, sizes, times of the files."""
    files = [*(project / "playbooks").glob("*.yml"), *(project / "roles").glob("*/meta/argument_specs.yml")]
    stamp = []
    for path in sorted(files):
        try:
            stat = os.stat(path)
        except OSError:
            continue
        stamp.append((str(path), stat.st_mtime_ns, stat.st_size))
    return tuple(stamp)
