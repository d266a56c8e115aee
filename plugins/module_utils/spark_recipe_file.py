"""A recipe file that was inferred and confirmed: its first line says so, and over which text, so that one that a person
wrote or changed is never written over.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import tempfile

from . import spark_recipe
from .spark_recipe_fields import RecipeError

PREFIX = "# Inferred by Spark Control"
_MARKER = re.compile(
    re.escape(PREFIX) + r" on \d{4}-\d\d-\d\d from (\S+) \(sha256 of the lines below: ([0-9a-f]{64})\)"
)
FIELDS = (
    "recipe_version", "name", "description", "model", "container", "solo_only", "cluster_only", "mods", "metadata",
    "env", "defaults", "command",
)  # fmt: skip


class Refused(Exception):
    """The recipe is not saved. problems: [{field, message}]; reason: bad_recipe, taken or not_writable."""

    def __init__(self, reason: str, problems: list[dict]):
        self.reason, self.problems = reason, problems
        super().__init__(" ".join(problem["message"] for problem in problems))


def refuse(reason: str, field: str, message: str) -> Refused:
    """A refusal for one field."""
    return Refused(reason, [{"field": field, "message": message}])


def compose(name: str, recipe: object) -> str:
    """The YAML of a recipe's fields (FIELDS, eugr v1), proved to load as what was given; raises Refused."""
    if not isinstance(name, str) or not spark_recipe.NAME.fullmatch(name) or name.endswith(spark_recipe.SUFFIXES):
        text = "expected letters, digits, dots, dashes and underscores, at most 128, without .yaml"
        raise refuse("bad_recipe", "model", f"model: {text}.")
    try:
        # Ansible's own kinds of text and numbers become plain ones.
        fields = json.loads(json.dumps(recipe, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise refuse(
            "bad_recipe", "recipe", "recipe: expected plain values: texts, numbers, lists, mappings."
        ) from None
    if not isinstance(fields, dict):
        raise refuse("bad_recipe", "recipe", "recipe: expected a mapping of fields.")
    foreign = [field for field in fields if field not in FIELDS]
    if foreign:
        shown = "".join(c if c.isprintable() else "?" for c in foreign[0][:60])
        raise refuse("bad_recipe", f"recipe.{shown}", f"recipe.{shown}: expected one of {', '.join(FIELDS)}.")
    fields = {"recipe_version": "1"} | fields
    if str(fields["recipe_version"]) != "1":
        raise refuse("bad_recipe", "recipe.recipe_version", 'recipe.recipe_version: expected "1".')
    if not fields.get("model"):
        raise refuse("bad_recipe", "recipe.model", "recipe.model: expected a repository or a folder.")
    try:
        given = spark_recipe.from_mapping(fields, name)
        text = spark_recipe.write(fields)
        read = _reload(name, text)
    except RecipeError as error:
        raise Refused("bad_recipe", [_problem(name, message) for message in error.messages]) from None
    except (ValueError, RecursionError, OSError) as error:
        raise refuse("bad_recipe", "recipe", f"recipe: it cannot be written as YAML: {error}.") from None
    if _launches(given) != _launches(read):
        raise refuse("bad_recipe", "recipe", "recipe: it would not read as what was given.")
    return text


def mark(text: str, model: str, date: str) -> str:
    """The whole file: the first line, with the date and a hash over the rest, and the rest."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    shown = re.sub(r"\s", "?", "".join(c if c.isprintable() else "?" for c in model))[:300]
    return f"{PREFIX} on {date} from {shown} (sha256 of the lines below: {digest})\n{text}"


def whose(path: str) -> tuple[str, str]:
    """(state, the text below the first line): absent; inferred; changed, an inferred one since; or a person's."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return "person's", ""
        with open(path, "rb") as file:
            raw = file.read(spark_recipe.LARGEST + 1024)
        line, _unused, text = raw.decode().partition("\n")
    except FileNotFoundError:
        return "absent", ""
    except (OSError, ValueError):
        return "person's", ""
    found = _MARKER.fullmatch(line)
    if not found:
        return ("changed" if line.startswith(PREFIX) else "person's"), text
    return ("inferred" if hashlib.sha256(text.encode()).hexdigest() == found[2] else "changed"), text


def place(name: str, dirs: list[str]) -> str:
    """The path where a recipe of that name belongs, in the first of dirs; raises Refused where the name is taken."""
    if not dirs:
        raise refuse("not_writable", "recipe_dirs", "There is no folder for recipes (recipe_dirs).")
    target = os.path.join(os.path.expanduser(dirs[0]), f"{name}.yaml")
    for stem, path in spark_recipe.files(dirs):
        if stem == name and path != target:
            raise refuse("taken", "model", f"model: there is a recipe of that name already, {path}.")
    state, _unused = whose(target)
    if state == "person's":
        raise refuse("taken", "model", f"model: {target} was written by a person, and is left as it is.")
    if state == "changed":
        raise refuse("taken", "model", f"model: {target} was changed by a person since, and is left as it is.")
    return target


def save(path: str, whole: str, fresh: bool) -> None:
    """Write the file in one move, mode 0644; a fresh one never over what has come there meanwhile. Raises Refused.

    The folder is made if only it is missing.
    """
    folder = os.path.dirname(path)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        handle, name = tempfile.mkstemp(prefix=".", suffix=".new", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(whole)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            if fresh:
                os.link(name, path)
            else:
                os.replace(name, path)
        finally:
            if os.path.lexists(name):
                os.unlink(name)
    except FileExistsError:
        raise refuse("taken", "model", f"model: {path} has just been written by somebody else.") from None
    except OSError as error:
        raise refuse("not_writable", "recipe_dirs", f"{folder} cannot be written: {error.strerror}.") from None


def _reload(name, text):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"{name}.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return spark_recipe.load(path)


def _launches(recipe):
    """All that a recipe says, by what it launches on one Spark and on many."""
    many = [{"host": f"spark{n}", "address": f"192.0.2.{n}"} for n in range(1, 65)]
    plans = []
    for nodes in (many[:1], many):
        try:
            plan = spark_recipe.render(recipe, nodes, 8888)
        except RecipeError as error:
            plan = {"reason": error.reason}
        plans.append({key: value for key, value in plan.items() if key not in ("source", "warnings")})
    return plans


def _problem(name, message):
    """A message of the loader as one for a field of the option `recipe`."""
    text = message.removeprefix(f"{name}.yaml: ").removeprefix(f"{name}: ")
    text = text.split(f"/{name}.yaml: ", 1)[-1]
    field = text.split(":", 1)[0] if re.match(r"[a-z_]+(\.[^:\s]+)?: ", text) else ""
    return {"field": f"recipe.{field}" if field else "recipe", "message": f"recipe.{text}" if field else text}
