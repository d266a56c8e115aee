"""Search, to try it: collections, a search box over one, and an upload into it."""

import json
import re
import zlib
from urllib.parse import urlencode

from flask import Blueprint, current_app, render_template, request
from jinja2_fragments.flask import render_block
from markupsafe import Markup, escape

from webui.core import collections as wanted
from webui.core import fragments, words
from webui.core.problems import Problem
from webui.gateway import ingest, relay, store
from webui.gateway.errors import Refused
from webui.pages import roads

pages = Blueprint("search", __name__)
UPLOAD = 512 << 20  # bytes; more goes with curl
MODES = {"hybrid": "by meaning and words", "dense": "by meaning", "sparse": "by words"}
LINES = (".jsonl", ".ndjson")
SHOWN = 5  # ingests
TROUBLE = (Problem, Refused, store.Missing, store.Exists, store.Wrong, store.Unavailable)


@pages.get("/search")
def index():
    """?collection=NAME [&q=…&mode=…&rerank=1]: the page, or with htmx what was found."""
    context = _context(request.args.get("collection"))
    if fragments.asked() and request.headers.get("HX-Target") == "found":
        return render_block("search.html", "found", **context)
    return render_template("search.html", **context)


def _context(name=None):
    """What search.html needs; `trouble` is what stands in the way, plainly."""
    told = dict.fromkeys(("chosen", "result", "trouble"))
    told |= {"collections": [], "ingests": [], "query": (request.args.get("q") or "").strip(), "modes": MODES}
    told |= {"mode": request.args.get("mode") if request.args.get("mode") in MODES else None}
    told |= {"rerank": bool(request.args.get("rerank")), "reranks": False}
    try:
        told["collections"] = [item for item in wanted.engine().store().collections() if not item.get("foreign")]
        listed = {item["name"]: item for item in told["collections"]}
        if name and name not in listed:
            raise store.Missing(name[:80])
        told["chosen"] = listed.get(name) or next(iter(listed.values()), None)
        if told["chosen"]:
            name = told["chosen"]["name"]
            told["ingests"] = [wanted.progress_of(note) for note in wanted.engine().ingests.all(name)[:SHOWN]]
            told["reranks"] = _reranks()
            told["mode"] = told["mode"] or ("hybrid" if told["chosen"].get("sparse") else "dense")
            asked = {"query": told["query"] or "…", "mode": told["mode"]} | ({"rerank": True} if told["rerank"] else {})
            told["curl"] = roads.curl(f"api/collections/{name}/search", asked)
            told["upload"] = _upload_line(name)
            if told["query"]:
                told["result"] = wanted.search(name, asked)
    except TROUBLE as error:
        told["trouble"] = _plainly(error)
    told["create"] = roads.curl("api/collections", {"name": "notes"})
    return told


def _reranks():
    try:
        return bool(current_app.extensions["embedders"].backend("rerank"))
    except Refused:
        return False


def _plainly(error):
    return words.sentence(getattr(error, "detail", None) or str(error))


def _upload_line(name):
    return roads.curl(
        f"api/collections/{name}/documents", method="PUT", file="documents.jsonl", kind="application/x-ndjson"
    )


def marked(snippet):
    """A snippet as Markup, its highlights marked."""
    text, parts, at = snippet["text"], [], 0
    for start, end in snippet["highlights"]:
        parts += [escape(text[at:start]), Markup("<mark>{}</mark>").format(text[start:end])]
        at = end
    return Markup("").join([*parts, escape(text[at:])])


pages.add_app_template_global(marked)


@pages.post("/search")
def create():
    """Make a collection, and show it."""
    name = (request.form.get("name") or "").strip()
    try:
        wanted.engine().create(wanted.checked_name(name), **wanted.options({}))
    except TROUBLE as error:
        raise Problem(_status(error), _plainly(error)) from error
    return _to(name)


@pages.get("/search/<name>/delete")
def ask_delete(name):
    """The question before a collection is deleted."""
    try:
        found = wanted.engine().store().collection(wanted.checked_name(name))
    except TROUBLE as error:
        raise Problem(_status(error), _plainly(error)) from error
    line = roads.curl(f"api/collections/{name}?confirm={name}", method="DELETE")
    return render_template("forget.html", collection=found, curl=line, fragment=fragments.asked())


@pages.post("/search/<name>/delete")
def delete(name):
    """Delete it."""
    try:
        wanted.engine().delete(wanted.checked_name(name))
    except TROUBLE as error:
        raise Problem(_status(error), _plainly(error)) from error
    return _to()


def _status(error):
    kinds = {store.Missing: 404, store.Replaced: 409, store.Exists: 409, store.Wrong: 422, store.Unavailable: 503}
    return kinds.get(type(error)) or error.status


def _to(name=None):
    address = f"/search?{urlencode({'collection': name})}" if name else "/search"
    return fragments.lead(address)


# --- documents --------------------------------------------------------------------------------------------------------


@pages.post("/search/<name>/documents")
@relay.takes(UPLOAD)
def upload(name):
    """Put files into a collection: text files a document each, JSON lines as they are."""
    # The second is what the parser holds at once, files on their way to a temporary file included.
    request.max_content_length, request.max_form_memory_size = UPLOAD, 1 << 20
    try:
        wanted.checked_name(name)
        settings = wanted.engine().settings(name)
        files = [file for file in request.files.getlist("files") if file.filename]
        if not files:
            raise Problem(422, "Choose a file first.", errors=[{"field": "files", "message": "Expected files."}])
        pieces = [piece for file in files for piece in _pieces(file)]
        wanted.engine().ingests.add(settings, _flat(pieces), *wanted.chunk_sizes({}))
    except TROUBLE as error:
        raise Problem(_status(error), _plainly(error)) from error
    except OSError as error:
        raise Problem(507, f"The files cannot be kept in the state folder: {error.strerror}.") from error
    return _ingests(name) if fragments.asked() else _to(name)


def _pieces(file):
    """[bytes or an open file] of JSON lines for an uploaded file. Raises Problem 422 that names it."""
    name = file.filename
    if name.lower().endswith(LINES):
        return [file.stream, b"\n"]
    data = file.stream.read(4 * ingest.TEXT_LIMIT + 4)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Problem(422, f"{name} is no plain text. Save it as text (UTF-8) first.") from None
    if "\0" in text:
        raise Problem(422, f"{name} is no plain text. Save it as text (UTF-8) first.")
    try:
        document = ingest.checked({"id": document_id(name), "text": text, "metadata": {"file": name}})
    except ingest.Bad as bad:
        raise Problem(422, f"{name}: {bad}") from None
    return [json.dumps(document).encode() + b"\n"]


def _flat(pieces):
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
            continue
        while data := piece.read(1 << 16):
            yield data


def document_id(name):
    """A document's id for a file's name: the name where it is one, else what can be kept of it and a checksum."""
    plain = re.sub(r"[^A-Za-z0-9_.:@+-]", "_", name)[-180:]
    plain = plain if ingest.DOCUMENT.fullmatch(plain) else f"_{plain}"
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode('utf-8', 'replace')):08x}"


@pages.get("/search/<name>/ingests")
def ingests(name):
    """How far the uploads are."""
    return _ingests(name) if fragments.asked() else _to(name)


@pages.post("/search/<name>/ingests/<key>/cancel")
def cancel(name, key):
    """End an upload; what it has written stays."""
    note = wanted.engine().ingests.get(wanted.checked_name(name), key)
    if note is None:
        raise Problem(404, "There is no such upload.")
    wanted.engine().ingests.cancel(note)
    return _ingests(name) if fragments.asked() else _to(name)


@pages.post("/search/<name>/ingests/<key>/go-on")
def go_on(name, key):
    """Have an upload go on that failed and has its lines."""
    note = wanted.engine().ingests.get(wanted.checked_name(name), key)
    if note is None:
        raise Problem(404, "There is no such upload.")
    wanted.engine().ingests.go_on(note)
    return _ingests(name) if fragments.asked() else _to(name)


def _ingests(name):
    context = _context(name)
    return render_block("search.html", "ingests", **context) + render_block(
        "search.html", "collections", oob=True, **context
    )
