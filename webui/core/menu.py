"""A row per model for the dashboard: what it is, how it stands on the Sparks, and what a person can do with it now."""

from dataclasses import dataclass, field
from urllib.parse import urlencode

from webui.core import words
from webui.core.overview import served_title


@dataclass(frozen=True)
class Action:
    """A button: its word, where it leads, what a screen reader adds."""

    label: str
    href: str
    whom: str
    id: str
    primary: bool = False
    danger: bool = False
    dialog: bool = True  # or a page of its own


@dataclass(frozen=True)
class Row:
    """One model. state: good|attention|bad|plain|doing; action: the one button; more: those under the dots."""

    id: str
    title: str
    about: list  # short words: NVFP4, vision, 17 GB
    where: str
    state: str
    word: str
    message: str
    serving: bool
    card: dict
    action: Action | None = None
    more: list = field(default_factory=list)
    recipe: dict = field(default_factory=dict)


# status of a card -> (state, word, rank, what its button does)
_STATUS = {
    "ready": ("good", "fits", 1, "swap"),
    "needs setup": ("attention", "needs set-up", 2, "setup"),
    "downloading": ("doing", "downloading", 3, "download"),
    "incomplete": ("attention", "incomplete", 3, "download"),
    "missing on some hosts": ("attention", "missing", 3, "copy"),
    "no weights": ("plain", "not on disk", 4, "download"),
    "too big": ("attention", "does not fit", 5, "swap"),
    "too few Sparks": ("attention", "needs more Sparks", 6, None),
    "unusable": ("plain", "cannot be served", 7, None),
    "broken": ("bad", "cannot be read", 8, None),
}


def rows(facts):
    """A Row per card of the menu: the serving one first, then what can run, then what needs something."""
    serving = served_title(facts)[1] or {}
    recipes = {recipe["name"]: recipe for recipe in facts.recipes}
    busy = {name: job for job in facts.running if (name := job.variables.get("repo") or job.variables.get("path"))}
    used = {card["name"] for card in facts.models if card["recipe"] and card["recipe"] == serving.get("model")}
    found = []
    for card in facts.models:
        is_serving = bool(serving.get("model")) and card["recipe"] == serving["model"]
        status = _STATUS.get(card["status"], _STATUS["broken"])
        row = _row(facts, card, status, recipes.get(card["recipe"]) or {}, is_serving, busy.get(card["name"]), used)
        found.append((0 if is_serving else status[2], row.title.lower(), row))
    return [row for _, _, row in sorted(found, key=lambda item: item[:2])]


def _row(facts, card, status, recipe, is_serving, job, used):
    state, word, _rank, does = status
    message = words.sentence(card["message"])
    if card["status"] == "ready" and not recipe.get("fits"):
        state, word = "plain", "may fit"
    elif card["status"] == "ready" and recipe["fits"].get("estimate"):
        word = "fits, by an estimate"
    elif card["status"] == "missing on some hosts":
        word, message = f"missing on {words.together(card['lacking'])}", ""
    action = _action(card, does)
    if job:
        state, word, message, action = "doing", words.doing(job.operation), "", None
    elif is_serving and facts.old:
        state, word, message, action = "attention", "last seen serving", "", _action(card, "stop")
    elif is_serving and facts.live.at and not facts.live.answers and not facts.running:
        state, word, message = "bad", "does not answer", ""
        action = _action(card, "again")
    elif is_serving:
        state, word, message, action = "good", "serving", "", _action(card, "stop")
    return Row(
        id=card["id"],
        title=card["title"],
        about=_about(card, recipe),
        where=words.together(card["complete"]),
        state=state,
        word=word,
        message=message,
        serving=is_serving,
        card=card,
        action=action,
        more=[] if job else _more(facts, card, does, used),
        recipe=recipe,
    )


def _about(card, recipe):
    facts = card["facts"]
    told = [
        (recipe.get("quantization") or facts.get("quantization") or "").upper(),
        "vision" if recipe.get("vision") or facts.get("vision") else "",
        words.size(card["bytes"]) if card["bytes"] else "",
        "local" if card["kind"] == "local" else "",
    ]
    need = recipe.get("min_nodes") or 1
    if recipe.get("mode") == "cluster" or need > 1:
        told.append(f"{need} Sparks")
    return [word for word in told if word]


def _action(card, does):
    """The button of that name, or None where it would lead nowhere."""
    title, name, recipe = card["title"], card["name"], card["recipe"]
    if does in ("swap", "again", "stop"):
        label = {"swap": "Swap", "again": "Start again", "stop": "Stop"}[does]
        whom = {"swap": f" to {title}", "again": f": {title}", "stop": f" {title}"}[does]
        path = f"/models/{recipe}/{'stop' if does == 'stop' else 'swap'}"
        primary = does == "again" or (does == "swap" and card["status"] == "ready")
        return Action(label, path, whom, f"{'stop' if does == 'stop' else 'swap'}-{card['id']}", primary)
    if does == "setup":
        return Action(
            "Set up", f"/setup?{urlencode({'model': name})}", f" {title}", f"setup-{card['id']}", True, dialog=False
        )
    if does == "download" and card["repo"]:
        label = "Download" if card["status"] == "no weights" else "Resume"
        query = urlencode({"model": card["repo"]})
        return Action(label, f"/weights/download?{query}", f" {title}", f"download-{card['id']}")
    if does == "copy":
        return Action("Copy", f"/weights/copy?{urlencode({'model': name})}", f" {title}", f"copy-{card['id']}", True)
    return None


def _more(facts, card, does, used):
    """What else can be done with it; `used` are the models that serve."""
    found, names = [], [spark["host"] for spark in facts.probe["sparks"] if spark["reachable"]]
    lacking = [host for host in names if host not in card["complete"]]
    if card["status"] == "missing on some hosts" and card["recipe"]:
        found.append(_action(card, "swap"))
    if does != "copy" and card["complete"] and lacking and card["status"] != "downloading":
        found.append(_action(card, "copy"))
    if does != "download" and not card["complete"] and card["repo"] and card["status"] != "broken":
        found.append(_action(card, "download"))
    if card["hosts"] and card["name"] and card["name"] not in used:
        query = urlencode({"model": card["name"]})
        whom = f" {card['title']}"
        found.append(Action("Delete", f"/weights/delete?{query}", whom, f"delete-{card['id']}", danger=True))
    return [action for action in found if action]
