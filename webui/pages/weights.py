"""The questions before weights are downloaded, copied or deleted."""

from urllib.parse import urlencode

from flask import Blueprint, request

from webui.core import changes, wishes, words
from webui.pages import cluster
from webui.pages.ask import ask, go

pages = Blueprint("weights", __name__)


@pages.get("/weights/delete")
def ask_delete():
    """?model=org/name or a local path [&host=…]: what would go, and what comes back."""
    wish = wishes.deletion(_deletion(request.args))
    name = wish.get("repo") or wish["path"]
    there = sorted({host for card in wishes.on_disk(name) for host in card["hosts"]})
    chosen = wish.get("hosts") or there
    choices = [("From all", {"model": name}, len(chosen) == len(there))]
    choices += [(f"Only from {host}", {"model": name, "host": host}, chosen == [host]) for host in there]
    return _ask(
        "delete_weights",
        wish,
        name,
        lambda result: f"Delete {words.size(result['bytes'])}" if result.get("bytes") else f"Delete {name}",
        "/weights/delete",
        plan=_deletion_plan,
        choices=choices if len(there) > 1 else [],
        fields=[("model", name), *(("host", host) for host in wish.get("hosts") or [])],
        curl=("api/models/delete", wish),
        danger=True,
    )


@pages.post("/weights/delete")
def delete():
    """Delete, and go to the job."""
    return go(changes.start("delete_weights", wishes.deletion(_deletion(request.form))))


def _deletion(given):
    name = given.get("model") or ""
    return {"path" if name.startswith("/") else "repo": name, "hosts": given.getlist("host") or None}


def _deletion_plan(result, question):
    gone = [row for row in result.get("hosts") or [] if row.get("changed")]
    found = [("Deletes", [f"{question.title}, all of its files, from {words.together(row['host'] for row in gone)}."])]
    found.append(("Comes back", [f"{words.size(row['bytes'])} on {row['host']}." for row in gone]))
    if result.get("recipe_removed"):
        found.append(("Its recipe", ["It was suggested from these files and goes with them."]))
    return [*found, ("Afterwards", ["It cannot be undone; to have it again it has to be downloaded or copied."])]


@pages.get("/weights/download")
def ask_download():
    """?model=org/name [&host=…] [&copy_to=…]: how much it is, and where it goes."""
    wish = wishes.download(_download(request.args))
    names = [host.name for host in cluster.inventory().sparks]
    first = wish.get("host") or (cluster.facts().probe or {}).get("head") or (names[0] if names else None)
    others = [name for name in names if name != first]
    mine = {"model": wish["repo"]} | ({"host": wish["host"]} if "host" in wish else {})
    choices = [(f"Only to {first}", mine, "copy_to" not in wish)]
    choices.append(("To all Sparks", mine | {"copy_to": others}, wish.get("copy_to") == others))
    choices += [(f"Only to {name}", {"model": wish["repo"], "host": name}, False) for name in others]
    return _ask(
        "download_weights",
        wish,
        wish["repo"],
        f"Download {wish['repo']}",
        "/weights/download",
        plan=_download_plan,
        choices=choices if others else [],
        fields=_fields(wish, repo="model"),
        curl=("api/models/download", wish),
    )


@pages.post("/weights/download")
def download():
    """Download, and go to the job."""
    return go(changes.start("download_weights", wishes.download(_download(request.form))))


def _download(given):
    named = {"repo": (given.get("model") or "").strip(), "host": given.get("host") or None}
    return named | {"copy_to": given.getlist("copy_to") or None}


def _download_plan(result, question):
    to = next((value for name, value in question.fields if name == "host"), None) or result.get("host")
    others = [value for name, value in question.fields if name == "copy_to"]
    found = [("Downloads", [question.message]), ("To", [words.together([to, *others])])]
    return [*found, ("Goes on", ["when this page is closed; a second download takes up where a cut left it."])]


@pages.get("/weights/copy")
def ask_copy():
    """?model=org/name or a local path [&to=…] [&verify=hash]: what goes where."""
    wish = wishes.copy(_copy(request.args))
    name = wish["repo"]
    mine = {"model": name, "to": wish.get("to") or []}
    choices = [
        ("Compare by size", mine, wish.get("verify") != "hash"),
        ("Read it all and compare (slower)", mine | {"verify": "hash"}, wish.get("verify") == "hash"),
    ]
    return _ask(
        "copy_weights",
        wish,
        name,
        lambda result: f"Copy {words.size(result['bytes'])}" if result.get("bytes") else f"Copy {name}",
        "/weights/copy",
        plan=_copy_plan,
        choices=choices,
        fields=_fields(wish, repo="model"),
        curl=("api/models/copy", wish),
    )


@pages.post("/weights/copy")
def copy():
    """Copy, and go to the job."""
    return go(changes.start("copy_weights", wishes.copy(_copy(request.form))))


def _copy(given):
    found = {"repo": given.get("model") or "", "to": given.getlist("to") or None}
    return found | {"source": given.get("source") or None, "verify": given.get("verify") or None}


def _copy_plan(result, question):
    to = [row["host"] for row in result.get("sparks") or [] if row.get("changed")]
    found = [("Copies", [f"{question.title} from {result.get('source')} to {words.together(to)}."])]
    return [*found, ("Goes on", ["when this page is closed; a second copy takes up where a cut left it."])]


def _ask(operation, wish, title, verb, action, *, choices=(), **more):
    """The question, unless the same is being done already."""
    name = wish.get("repo") or wish.get("path")
    running = cluster.facts(fresh=True).running
    busy = next((job for job in running if name in (job.variables.get("repo"), job.variables.get("path"))), None)
    addressed = [(text, f"{action}?{urlencode(query, doseq=True)}", chosen) for text, query, chosen in choices]
    return ask(operation, wish, title, verb, action, busy=busy, choices=addressed, **more)


def _fields(wish, **renamed):
    """A wish as what a form sends: lists as a name given several times."""
    return [
        (renamed.get(name, name), value)
        for name, given in wish.items()
        for value in (given if isinstance(given, list) else [given])
    ]
