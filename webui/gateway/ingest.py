"""Documents into a collection: chunks, vectors, points; what did not change is left alone, what is gone goes.

A large ingest is a file of lines in the state folder and a note of how far it is: it goes on where it was after a
failure of the embedding server, of the store, or of this server, whenever and however that ends. Its lines are deleted
when they are all in, when the ingest is cancelled, and when its collection is deleted; never because something failed.
"""

import atexit
import fcntl
import json
import logging
import math
import os
import re
import threading
import time
import uuid
import weakref
from collections import deque
from pathlib import Path

from webui.gateway import chunks, store
from webui.gateway.errors import Refused

log = logging.getLogger("spark-control.gateway")

DOCUMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+-]{0,199}")
TEXT_LIMIT = 5_000_000  # characters of a document
METADATA_LIMIT = 16_384  # bytes of a document's metadata as JSON
LINE_LIMIT = 24 << 20  # bytes of a line
BATCH = 64  # chunks that are embedded and written at once
GROUP = 32  # documents that are looked up at once
TOLD = 100  # wrong lines, and cut chunks, that a note lists
KEPT = 50  # notes of ended ingests
RESUMABLE = 5  # failed ones among them whose lines are kept
OWN_TRIES = 5  # after an error that is nobody's but ours
WAITS = (1, 2, 5, 10, 30, 60)  # seconds until the next try while a service is away
EXIT_SECONDS = 2.0  # that the thread has to come to the end of a step when this process ends
ID = re.compile(r"[0-9a-f]{32}")
UNQUOTED = re.compile(r'[^"\\]*')  # a key that can stand between the quotes of a path (api/filters.py)
LEVELS = 8  # of metadata
WAITED = (429, 502, 503, 504)  # refusals that come right by themselves
GONE = "The collection is not there any more."
COUNTS = ("documents", "added", "unchanged", "updated", "removed")


class Bad(ValueError):
    """A document that cannot be taken. field: which part of it; its text says why."""

    def __init__(self, field, text):
        super().__init__(text)
        self.field = field


def checked(item):
    """{id, text, metadata} of a document as it was sent. Raises Bad."""
    if not isinstance(item, dict):
        raise Bad("", "A document is an object with text, and id and metadata if you like.")
    for key in item:
        if key not in ("id", "text", "metadata"):
            raise Bad(key[:80], f"There is no field {key[:80]!r} in a document.")
    text = item.get("text")
    if not isinstance(text, str) or not text.strip():
        raise Bad("text", "text: a document needs one.")
    if len(text) > TEXT_LIMIT:
        raise Bad("text", f"text: at most {TEXT_LIMIT:,} characters.")
    metadata = item.get("metadata")
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict):
        raise Bad("metadata", "metadata: an object.")
    if not sound(text):
        raise Bad("text", "text: half a surrogate pair is no text.")
    if flaw := _too_large(metadata) or _flaw(metadata):
        raise Bad("metadata", flaw)
    name = item.get("id")
    if name is None:
        name = chunks.document_id(text)
    if not isinstance(name, str) or not DOCUMENT.fullmatch(name):
        raise Bad("id", "id: 1 to 200 of A-Z a-z 0-9 _ . : @ + -, the first one a letter, a digit or _.")
    return {"id": name, "text": text, "metadata": metadata}


def _too_large(metadata):
    try:
        size = len(json.dumps(metadata, ensure_ascii=False).encode(errors="surrogatepass"))
    except RecursionError:
        return f"metadata: at most {LEVELS} levels."
    return f"metadata: at most {METADATA_LIMIT:,} bytes." if size > METADATA_LIMIT else None


def _flaw(value, path="metadata", depth=0):
    """What keeps a value of metadata from being stored, or from being filtered by; None where nothing does."""
    where = path if len(path) <= 100 else f"{path[:100]}…"
    if depth > LEVELS:
        return f"metadata: at most {LEVELS} levels."
    if isinstance(value, str) and not sound(value):
        return f"{where}: half a surrogate pair is no text."
    if isinstance(value, float) and not math.isfinite(value):
        return f"{where}: {value} is no number that can be kept."
    if isinstance(value, int) and not whole(value):
        return f"{where}: an integer has 64 bits at most."
    if isinstance(value, dict):
        if not all(sound(key) and UNQUOTED.fullmatch(key) for key in value):
            return f'{where}: a key has no ", no \\ and no half of a surrogate pair.'
        return next(filter(None, (_flaw(item, f"{path}.{key}", depth + 1) for key, item in value.items())), None)
    if isinstance(value, list):
        return next(filter(None, (_flaw(item, f"{path}[{n}]", depth + 1) for n, item in enumerate(value))), None)
    return None


def sound(text):
    """Whether a text is Unicode that can be sent: JSON's escapes can make half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def whole(value):
    """Whether an integer has 64 bits, as the stores keep it."""
    return -(2**63) <= value < 2**63


class Writer:
    """Puts documents into collections. engine: search.Engine.

    settings: the collection's, as engine.settings() gives them; another of the same name is never written into.
    """

    def __init__(self, engine):
        self.engine, self._locks, self._lock = engine, weakref.WeakValueDictionary(), threading.Lock()

    def _of(self, settings):
        with self._lock:
            return self._locks.setdefault(settings.get("identity") or settings["name"], threading.Lock())

    def put(self, settings, documents, size=chunks.SIZE, overlap=chunks.OVERLAP):
        """Put checked documents into a collection: {documents, added, unchanged, updated, removed, truncated}.

        The counts are chunks but for `documents`. truncated: [{document, chunk}] whose text the model does not take
        whole. Raises store's exceptions and Refused; what is written until then stays, and is not written again.
        """
        told = dict.fromkeys(COUNTS, 0) | {"truncated": []}
        by_id = {document["id"]: document for document in documents}  # the last one of an id counts
        with self._of(settings):
            names = list(by_id)
            for start in range(0, len(names), GROUP):
                group = {document: by_id[document] for document in names[start : start + GROUP]}
                self._put(settings, group, size, overlap, told)
        return told

    def _put(self, settings, group, size, overlap, told):
        where = name, _ = settings["name"], settings.get("identity")
        known = self.engine.store().stamps(*where, list(group))
        points, todo, changed = {}, [], {}
        for document, item in group.items():
            for chunk in chunks.split(item["text"], size, overlap):
                point = chunks.point_id(name, document, chunk)
                payload = {
                    "document": document,
                    "chunk": chunk.number,
                    "text": chunk.text,
                    "start": chunk.start,
                    "end": chunk.end,
                    "metadata": item["metadata"],
                    "stamp": chunks.stamp(item["metadata"], chunk),
                }
                points[point] = payload
                there = known.get(document, {})
                if point not in there:
                    todo.append(point)
                elif there[point] != payload["stamp"]:
                    changed[point] = payload
        for start in range(0, len(todo), BATCH):
            part = todo[start : start + BATCH]
            dense, sparse, cut = self.engine.vectors(settings, [points[point]["text"] for point in part])
            rows = [(point, dense[n], sparse[n] if sparse else None, points[point]) for n, point in enumerate(part)]
            self.engine.store().upsert(*where, rows)
            told["added"] += len(part)
            told["truncated"] += [{key: points[part[n]][key] for key in ("document", "chunk")} for n in cut]
        if changed:
            self.engine.store().overwrite(*where, changed)
        # Last, so that a search never misses a document that is being replaced.
        stale = [point for there in known.values() for point in there if point not in points]
        if stale:
            self.engine.store().remove(*where, stale)
        told["documents"] += len(group)
        told["updated"] += len(changed)
        told["removed"] += len(stale)
        told["unchanged"] += len(points) - len(todo) - len(changed)

    def remove(self, settings, document):
        """Take a document out; returns how many chunks it had."""
        where = settings["name"], settings.get("identity")
        with self._of(settings):
            points = list(self.engine.store().stamps(*where, [document]).get(document, {}))
            if points:
                self.engine.store().remove(*where, points)
            return len(points)


class Ingests:
    """The large ingests: one after the other, in a thread, from files below `folder`.

    A note is {id, collection, identity (the collection's), state: waiting, running, done, failed or cancelled, created,
    written (seconds since 1970), bytes, offset, line, COUNTS, wrong, wrong_lines, truncated, truncated_chunks, chunk,
    message, resumable: whether it failed and has its lines}.
    """

    def __init__(self, writer, folder):
        self.writer, self.folder = writer, Path(folder)
        self._queue, self._lock, self._wake = deque(), threading.Lock(), threading.Event()
        self._thread, self._gone, self._over = None, set(), threading.Event()

    # --- what is asked for

    def add(self, settings, pieces, size, overlap):
        """Take in a body of JSON lines for a collection and begin; returns its note. pieces: iterable of bytes."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = uuid.uuid4().hex
        part = self.folder / f"{key}.part"
        try:
            with open(part, "wb") as file:
                total = sum(file.write(piece) for piece in pieces)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self._lines(key))
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        now = time.time()
        note = {
            "id": key,
            "collection": settings["name"],
            "identity": settings.get("identity"),
            "state": "waiting",
            "created": now,
            "written": now,
            "bytes": total,
            "offset": 0,
            "line": 0,
            **dict.fromkeys(COUNTS, 0),
            "wrong": 0,
            "wrong_lines": [],
            "truncated": 0,
            "truncated_chunks": [],
            "chunk": {"size": size, "overlap": overlap},
            "message": None,
            "resumable": False,
        }
        self._write(note)
        self._enqueue(key)
        return note

    def get(self, name, key):
        """The note of an ingest of that collection, or None."""
        note = self._read(key) if ID.fullmatch(key) else None
        return note if note and note["collection"] == name else None

    def all(self, name):
        """[note] of a collection's ingests, newest first."""
        return [note for note in self._notes() if note["collection"] == name]

    def cancel(self, note):
        """End an ingest, and delete its lines; what it has written stays. Returns the note."""
        return self._drop(note, "cancelled", None)

    def end(self, name, identity):
        """End what is on its way into a collection that has been deleted."""
        for note in self.all(name):
            if note.get("identity") == identity:
                self._drop(note, "failed", GONE)

    def _drop(self, note, state, message):
        with self._lock:
            fresh = self._read(note["id"]) or note
            if fresh["state"] in ("waiting", "running") or fresh.get("resumable"):
                self._gone.add(note["id"])
                fresh |= {"state": state, "written": time.time(), "message": message, "resumable": False}
                self._write(fresh)
                self._lines(note["id"]).unlink(missing_ok=True)
        self._wake.set()
        return fresh

    def go_on(self, note):
        """Have a failed ingest go on, whose lines are there (note["resumable"]). Returns the note."""
        with self._lock:
            fresh = self._read(note["id"]) or note
            if fresh.get("resumable"):
                fresh |= {"state": "waiting", "written": time.time(), "message": None, "resumable": False}
                self._write(fresh)
        if fresh["state"] == "waiting":
            self._enqueue(fresh["id"])
        return fresh

    def resume(self):
        """Go on with what an earlier process did not end, and tidy up what it left."""
        known = {note["id"]: note for note in self._notes()}
        for path in self.folder.glob("*.*"):
            note = known.get(path.stem)
            ended = note and note["state"] not in ("waiting", "running") and not note.get("resumable")
            nobodys = not path.with_suffix(".json").exists()  # its sender has had no answer
            if path.suffix in (".part", ".fresh") or (path.suffix == ".ndjson" and (ended or nobodys)):
                path.unlink(missing_ok=True)
        for note in reversed(known.values()):
            if note["state"] in ("waiting", "running"):
                self._enqueue(note["id"])

    def close(self):
        """Stop, at the end of a step if that is soon; the next process goes on."""
        self._over.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(EXIT_SECONDS)

    # --- files

    def _lines(self, key):
        return self.folder / f"{key}.ndjson"

    def _notes(self):
        """[note], newest first."""
        found = []
        for path in self.folder.glob("*.json"):
            note = self._read(path.stem)
            if note:
                found.append(note)
        return sorted(found, key=lambda note: -note["created"])

    def _read(self, key):
        try:
            return json.loads((self.folder / f"{key}.json").read_text())
        except (OSError, ValueError):
            return None

    def _write(self, note):
        fresh = self.folder / f"{note['id']}.fresh"
        with open(fresh, "w") as file:
            json.dump(note, file)
            file.flush()
            os.fsync(file.fileno())  # or a power cut may leave an empty one, and nothing that goes on
        os.replace(fresh, self.folder / f"{note['id']}.json")

    # --- the thread

    def _enqueue(self, key):
        with self._lock:
            if key not in self._queue:
                self._queue.append(key)
            if self._thread is None and not self._over.is_set():
                self._thread = threading.Thread(target=self._run, name="ingests", daemon=True)
                self._thread.start()
                atexit.register(self.close)
        self._wake.set()

    def _run(self):
        """Work the queue off. One process at a time does, the one before may be on its way out still."""
        while not self._over.is_set():
            try:
                with open(self.folder / ".lock", "w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._work()
            except BlockingIOError:
                self._over.wait(0.2)
            except OSError as error:
                log.warning("ingests: %s", error)
                self._over.wait(WAITS[-1])

    def _work(self):
        while not self._over.is_set():
            with self._lock:
                key = self._queue.popleft() if self._queue else None
            if key is None:
                self._wake.wait(60)
                self._wake.clear()
                continue
            note = self._read(key)
            try:
                if note and note["state"] in ("waiting", "running"):
                    self._ingest(note)
            except Exception:  # its note cannot be written
                log.exception("ingest %s", key)
                self._over.wait(WAITS[-1])
                self._queue.append(key)

    def _goes_on(self, note):
        return note["id"] not in self._gone and not self._over.is_set()

    def _ingest(self, note):
        """Put in one step after the other until all is done. A failure is waited out, and never costs the lines.

        What can only be put right by somebody (another model, an error of ours) ends it, to be taken up again by
        go_on(); a bad line is left out; only with its collection an ingest is over.
        """
        self._save(note, message=None)
        tries = own = 0
        while self._goes_on(note):
            try:
                if not self._step(note):
                    return None
                tries = own = 0
                continue
            except store.Missing:
                return self._end(note, "failed", GONE)
            except (store.Unavailable, OSError) as error:
                if not self._lines(note["id"]).exists() and self._goes_on(note):
                    return self._end(note, "failed", "Its lines are not in the state folder any more. Send them again.")
                why = error
            except Refused as refused:
                if refused.status not in WAITED:
                    return self._end(note, "failed", str(refused), resumable=True)
                why = refused
            except Exception as error:
                # This process may be on its way out, and everything fails in it.
                log.exception("ingest %s", note["id"])
                why = f"Spark Control met an error of its own ({type(error).__name__}). Its log has the details."
                own += 1
                if own >= OWN_TRIES and self._goes_on(note):
                    return self._end(note, "failed", why, resumable=True)
            self._wait(note, why, WAITS[min(tries, len(WAITS) - 1)])
            tries += 1
        return None

    def _step(self, note):
        """Put in the next documents; False when there are none."""
        with open(self._lines(note["id"]), "rb") as file:
            file.seek(note["offset"])
            rows, offset, line, wrong = self._next(file, note)
        if offset == note["offset"]:
            self.writer.engine.store().tidy(note["collection"], note.get("identity"))
            self._end(note, "done")
            return False
        told, refused = self._put(note, rows)
        cut = told.pop("truncated")
        counts = {count: note[count] + value for count, value in told.items()}
        wrong = sorted(wrong + refused, key=lambda row: row["line"])
        counts |= {"wrong": note["wrong"] + len(wrong), "wrong_lines": (note["wrong_lines"] + wrong)[:TOLD]}
        counts |= {"truncated": note["truncated"] + len(cut)}
        counts |= {"truncated_chunks": (note["truncated_chunks"] + cut)[:TOLD]}
        self._save(note, offset=offset, line=line, message=None, **counts)
        return True

    def _put(self, note, rows):
        """(counts as Writer.put gives them, [{"line", "reason"}]) of [(line, document)] that were put in.

        Where the store or the embedding server refuses what it is given, each document is put in by itself, so that one
        of them does not cost the others.
        """
        settings = self.writer.engine.still(note["collection"], note.get("identity"))
        try:
            return self.writer.put(settings, [document for _, document in rows], **note["chunk"]), []
        except (store.Wrong, Refused) as error:
            if getattr(error, "status", 400) != 400:
                raise
            reason = str(error)
        if len(rows) == 1:
            return dict.fromkeys(COUNTS, 0) | {"truncated": []}, [{"line": rows[0][0], "reason": reason[:200]}]
        told, refused = dict.fromkeys(COUNTS, 0) | {"truncated": []}, []
        for row in rows:
            one, wrong = self._put(note, [row])
            told = {key: value + one[key] for key, value in told.items()}
            refused += wrong
        return told, refused

    def _wait(self, note, why, seconds):
        log.info("ingest %s waits: %s", note["id"], why)
        try:
            self._save(note, message=f"Waiting: {why}")
        except OSError as error:
            log.warning("the note of ingest %s cannot be written: %s", note["id"], error)
        deadline = time.monotonic() + seconds
        while self._goes_on(note) and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))

    def _next(self, file, note):
        """The next documents: ([(line, checked document)], offset and line after them, [{"line", "reason"}] of those
        that are wrong)."""
        rows, wrong, size, line = [], [], 0, note["line"]
        while len(rows) < GROUP and size < 400_000 and len(wrong) < TOLD:
            raw = file.readline(LINE_LIMIT + 1)
            if not raw:
                break
            line += 1
            size += len(raw)
            try:
                if len(raw) > LINE_LIMIT:
                    while raw and not raw.endswith(b"\n"):
                        raw = file.readline(LINE_LIMIT)
                    raise Bad("", f"The line is longer than {LINE_LIMIT >> 20} MB.")
                if raw.strip():
                    rows.append((line, checked(json.loads(raw))))
            except Bad as bad:
                wrong.append({"line": line, "reason": str(bad)[:200]})
            except ValueError:
                wrong.append({"line": line, "reason": "This is not JSON."})
            except RecursionError:
                wrong.append({"line": line, "reason": "This is nested too deep."})
        return rows, file.tell(), line, wrong

    def _save(self, note, **changes):
        with self._lock:
            if note["id"] not in self._gone:
                fresh = note | {"state": "running", "written": time.time()} | changes
                self._write(fresh)
                note |= fresh

    def _end(self, note, state, message=None, *, resumable=False):
        with self._lock:
            if note["id"] not in self._gone:
                self._write(note | {"state": state, "written": time.time(), "message": message, "resumable": resumable})
        if not resumable:
            self._lines(note["id"]).unlink(missing_ok=True)
        ended = [old for old in self._notes() if old["state"] not in ("waiting", "running")]
        for old in ended[KEPT:]:
            (self.folder / f"{old['id']}.json").unlink(missing_ok=True)
            self._lines(old["id"]).unlink(missing_ok=True)
        for old in [old for old in ended[:KEPT] if old.get("resumable")][RESUMABLE:]:
            self._drop(old, "failed", old["message"])
