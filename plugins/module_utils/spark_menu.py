"""The menu: the disks and the recipes, put together into one card a model. Pure functions, no I/O."""

from __future__ import annotations

import os
import re

from .spark_fit import fact

# What is told of one model on one host, and what of it as a whole; a scan knows more, and a page does not want it.
_ON_HOST = ("state", "bytes", "frees", "weights_bytes", "files", "progress", "reason", "path", "revision", "last_used")
_FACTS = ("architecture", "parameters", "experts", "quantization", "context", "vision", "audio")


def menu(recipes: list[dict], disks: dict[str, dict], fits: dict[str, dict | None]) -> list[dict]:
    """One card for each recipe, then one for each model without one, each group by title.

    recipes: the listing of the recipe role. disks: {host: {model's name: its entry of a scan}} of the Sparks that
    answered. fits: {recipe's name: {ok, message} or None}. A card is {id, title, recipe (its name) or None, kind
    (cache, local), name (org/name or a local model's path), repo, status, message, hosts {host: {state, bytes,
    frees, weights_bytes, files, progress, reason, path, revision, last_used}}, complete [hosts], lacking [hosts
    that need it], bytes, facts {fact: value}, shared [other recipes for the same model]}.

    status is ready; needs setup (it has no recipe); downloading; incomplete; missing on some hosts; too big; too
    few Sparks; no weights (a recipe whose model is nowhere); unusable (nothing that vLLM could serve as it is);
    broken (a recipe that cannot be read).
    """
    by_name: dict[str, dict[str, dict]] = {}
    for host, entries in disks.items():
        for name, entry in entries.items():
            if entry["state"] != "missing":
                by_name.setdefault(name, {})[host] = entry
    cards, taken = [], {}
    for recipe in recipes:
        name = model_of(recipe, by_name)
        if name:
            taken.setdefault(name, []).append(recipe["name"])
        cards.append(_of_recipe(recipe, name, by_name.get(name) or {}, list(disks), fits.get(recipe["name"])))
    for card in cards:
        card["shared"] = [other for other in taken.get(card["name"], []) if other != card["recipe"]]
    rest = [_of_model(name, found) for name, found in by_name.items() if name not in taken]
    return [*sorted(cards, key=_by_title), *sorted(rest, key=_by_title)]


def model_of(recipe: dict, there: dict) -> str | None:
    """Which model of the disks a recipe serves: by its repo or folder, else by the name that it answers to."""
    mounts = (recipe.get("placement") or {}).get("mounts") or []
    named = recipe.get("repo") or (mounts[0]["source"] if mounts else None)
    if named:
        return named
    served = recipe.get("served_name")
    return next((name for name in there if served and served in (name, os.path.basename(name))), None)


def _of_recipe(recipe: dict, name: str | None, found: dict, hosts: list[str], fit: dict | None) -> dict:
    card = _card(recipe.get("title") or recipe["name"], name, found) | {"id": recipe["name"], "recipe": recipe["name"]}
    placement = recipe.get("placement")
    need = [node["host"] for node in placement["nodes"]] if placement else []
    # A Spark that did not answer is not said to lack anything.
    card["lacking"] = [host for host in need if host in hosts and host not in card["complete"]]
    status, message = _status(recipe, card, need, fit, [host for host in need if host not in hosts])
    return card | {"status": status, "message": message}


def _status(recipe: dict, card: dict, need: list[str], fit: dict | None, silent: list) -> tuple[str, str]:
    if recipe.get("error"):
        return "broken", recipe["error"]
    if not need:
        least = recipe.get("min_nodes") or 1
        return "too few Sparks", f"It needs {least} Sparks."
    if card["name"] and card["lacking"]:
        unsound = _unsound(card)
        if unsound:
            return unsound
        if card["complete"]:
            return "missing on some hosts", f"It is on {_join(card['complete'])} and not on {_join(card['lacking'])}."
        return "no weights", f"{card['name']} is on no Spark{' that answers' if silent else ''}."
    if fit and not fit["ok"]:
        return "too big", fit["message"]
    return "ready", ""


def _of_model(name: str, found: dict) -> dict:
    card = _card(_title(name), name, found) | {"id": _slug(name), "recipe": None, "shared": [], "lacking": []}
    entry = next(iter(found.values()))
    if card["complete"]:
        if fact(entry, "adapter"):
            return card | {"status": "unusable", "message": "It is an adapter and no model of its own."}
        if fact(entry, "embedding"):
            return card | {"status": "unusable", "message": "It makes embeddings; the embedding service uses it."}
        return card | {"status": "needs setup", "message": "It has no recipe yet."}
    status, message = _unsound(card) or ("unusable", "There is nothing in it that could serve.")
    return card | {"status": status, "message": message}


def _unsound(card: dict) -> tuple[str, str] | None:
    """The status of weights that are there and not whole, with the first such host's own words."""
    unsound = {host: row for host, row in card["hosts"].items() if row["state"] != "complete"}
    loading = [(host, row) for host, row in unsound.items() if row["state"] == "downloading"]
    if loading:
        host, row = loading[0]
        percent = (row["progress"] or {}).get("percent")
        told = f"It comes to {host}." if percent is None else f"{percent:.0f} % is on {host}."
        return "downloading", told
    if unsound and not card["complete"]:
        host, row = next(iter(unsound.items()))
        return "incomplete", f"On {host} {row['reason'] or 'something is missing'}."
    return None


def _card(title: str, name: str | None, found: dict) -> dict:
    """What is told alike of both kinds."""
    first = next(iter(found.values()), None) or {}
    # The facts of the host where most of it is.
    best = max(found.values(), key=lambda entry: entry["weights_bytes"] or 0, default={})
    return {
        "title": title,
        "name": name,
        "kind": first.get("kind") or ("local" if (name or "").startswith("/") else "cache"),
        "repo": first.get("repo") or (name if name and not name.startswith("/") else None),
        "hosts": {host: {key: entry.get(key) for key in _ON_HOST} for host, entry in found.items()},
        "complete": [host for host, entry in found.items() if entry["state"] == "complete"],
        "bytes": max((entry["bytes"] for entry in found.values()), default=0),
        "facts": {name: value for name in _FACTS if (value := fact(best, name)) is not None},
    }


def _title(name: str) -> str:
    return os.path.basename(name.rstrip("/")) or name


def _slug(name: str) -> str:
    """A model's name as part of a page: letters, digits, dots and dashes. `--` stands where a slash was."""
    return re.sub(r"[^A-Za-z0-9._-]+", "--", name).strip("-")[:200] or "model"


def _by_title(card: dict) -> tuple[str, str]:
    return card["title"].lower(), card["id"]


def _join(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
