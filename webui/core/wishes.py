"""What a caller may wish of the weights and recipes: checked against the newest facts before a playbook is started."""

import re

from flask import current_app

from webui.core import words
from webui.core.problems import Problem, wrong_field

REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


def repo(value, field="repo"):
    """A Hub repo, `org/name`. Raises Problem 422."""
    if not isinstance(value, str) or not REPO.fullmatch(value) or ".." in value or "--" in value:
        raise wrong_field(field, "Expected a repo of the Hugging Face Hub, as org/name.")
    return value


def on_disk(name, field="repo"):
    """The cards of a model that is on some disk, by its repo or its local path. Raises Problem 422, 404, 503."""
    if not isinstance(name, str) or not name.startswith("/"):
        repo(name, field)
    facts = _facts()
    cards = [card for card in facts.models if card["name"] == name and card["hosts"]]
    if not cards:
        raise wrong_field(field, f"{name[:200]} is on no Spark's disk.", 404)
    return cards


def hosts(value, field="hosts", among=None):
    """Names of Sparks, each once; None stays None. Raises Problem 422."""
    if value is None:
        return None
    known = [host.name for host in current_app.extensions["cluster"].inventory().sparks]
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise wrong_field(field, "Expected a list of names of Sparks.")
    strange = [name for name in value if name not in (known if among is None else among)]
    if strange:
        raise wrong_field(field, f"There is no Spark named {strange[0][:80]!r}; there {_are(known)}.")
    return list(dict.fromkeys(value))


def host(value, field="host"):
    """The name of one Spark; None stays None. Raises Problem 422."""
    return None if value is None else hosts([value], field)[0]


def deletion(data):
    """{repo | path, hosts?} -> the variables of delete_weights. Raises Problem 4xx with the field."""
    given = [field for field in ("repo", "path") if data.get(field) is not None]
    if len(given) != 1:
        raise wrong_field(given[0] if given else "repo", "Expected either repo or path.")
    field = given[0]
    name = data[field]
    if (field == "path") != (isinstance(name, str) and name.startswith("/")):
        raise wrong_field(field, "Expected org/name as repo, or the absolute folder of a local model as path.")
    cards = on_disk(name, field)
    chosen = hosts(data.get("hosts"))
    serving = _facts().serving or {}
    if serving.get("model") in [card["recipe"] for card in cards if card["recipe"]] or serving.get("repo") == name:
        title = serving.get("title") or name
        raise wrong_field(field, f"{title} is serving; stop it or swap to another model first.", 409)
    if any(row["state"] == "downloading" for card in cards for row in card["hosts"].values()):
        raise wrong_field(field, f"{name} is being downloaded; cancel that first.", 409)
    return {field: name} | ({"hosts": chosen} if chosen else {})


def download(data):
    """{repo, revision?, host?, copy_to?} -> the variables of download_weights. Raises Problem 422 with the field."""
    found = {"repo": repo(data.get("repo"))}
    revision = data.get("revision")
    if revision is not None:
        if not isinstance(revision, str) or not REVISION.fullmatch(revision) or ".." in revision:
            raise wrong_field("revision", "Expected a branch, tag or commit.")
        found["revision"] = revision
    if (to := host(data.get("host"))) is not None:
        found["host"] = to
    if (others := hosts(data.get("copy_to"), "copy_to")) is not None:
        found["copy_to"] = others
    return found


def copy(data):
    """{repo, source?, to?, verify?} -> the variables of copy_weights; repo may be a local path. Raises Problem 4xx."""
    found = {"repo": data.get("repo")}
    cards = on_disk(found["repo"])
    whole = sorted({name for card in cards for name in card["complete"]})
    if not whole:
        raise wrong_field("repo", f"{found['repo']} is whole on no Spark.", 409)
    if (source := host(data.get("source"), "source")) is not None:
        if source not in whole:
            raise wrong_field("source", f"{found['repo']} is not whole on {source}.", 409)
        found["source"] = source
    if (to := hosts(data.get("to"), "to")) is not None:
        found["to"] = to
    if (verify := data.get("verify")) is not None:
        if verify not in ("size", "hash"):
            raise wrong_field("verify", "Expected size or hash.")
        found["verify"] = verify
    return found


def suggestion(name, nodes=None):
    """The variables of suggest_recipe. Raises Problem 4xx with the field."""
    on_disk(name)
    if nodes not in (None, 1, 2, 4, 8):
        raise wrong_field("nodes", "Expected 1, 2, 4 or 8.")
    return {"model": name} | ({"nodes": nodes} if nodes else {})


def recipe(data):
    """{model, recipe} -> the variables of save_recipe. Raises Problem 422 with the field."""
    name, fields = data.get("model"), data.get("recipe")
    if not isinstance(name, str) or not words.NAME.fullmatch(name):
        raise wrong_field("model", "Expected letters, digits, dots, dashes and underscores.")
    if not isinstance(fields, dict):
        raise wrong_field("recipe", "Expected an object with the recipe's fields.")
    return {"model": name, "recipe": fields}


def _facts():
    cluster = current_app.extensions["cluster"]
    facts = cluster.facts(fresh=True)
    if facts.probe is None:
        cluster.look()
        raise Problem(
            503,
            "The models are not known yet: the first look at the Sparks takes a few seconds.",
            headers={"Retry-After": "5"},
        )
    return facts


def _are(names):
    return f"are {words.together(names)}" if len(names) > 1 else f"is {names[0]}" if names else "are none"
