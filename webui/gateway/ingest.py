"""Documents into a collection: chunks, vectors, points; what did not change is left alone, what is gone goes.

A large ingest is a file of lines in the state folder and a note of how far it is: it goes on where it was after a
failure of the embedding server, of the store, or of this server.
"""

import contextlib
import json
import logging
import os
import re
import threading
import time
import uuid
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
WAITS = (1, 2, 5, 10, 30, 60)  # seconds until the next try while a service is away
ID = re.compile(r"[0-9a-f]{32}")
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
    try:
        text.encode()
        size = len(json.dumps(metadata, ensure_ascii=False).encode())
    except (UnicodeEncodeError, RecursionError):
        raise Bad("text", "Half a surrogate pair, or metadata nested too deep.") from None
    if size > METADATA_LIMIT or not _plain(metadata):
        raise Bad("metadata", f"metadata: at most {METADATA_LIMIT:,} bytes, 8 levels, and integers of 64 bits.")
    name = item.get("id")
    if name is None:
        name = chunks.document_id(text)
    if not isinstance(name, str) or not DOCUMENT.fullmatch(name):
        raise Bad("id", "id: 1 to 200 of A-Z a-z 0-9 _ . : @ + -, the first one a letter, a digit or _.")
    return {"id": name, "text": text, "metadata": metadata}


def _plain(value, depth=0):
    if depth > 8:
        return False
    if isinstance(value, dict):
        return all(_plain(item, depth + 1) for item in value.values())
    if isinstance(value, list):
        return all(_plain(item, depth + 1) for item in value)
    return not isinstance(value, int) or -(2**63) <= value < 2**63


class Writer:
    """Puts documents into collections. engine: search.Engine."""

    def __init__(self, engine):
        self.engine, self._locks, self._lock = engine, {}, threading.Lock()

    def _of(self, name):
        with self._lock:
            return self._locks.setdefault(name, threading.Lock())

    def put(self, name, documents, size=chunks.SIZE, overlap=chunks.OVERLAP):
        """Put checked documents into a collection: {documents, added, unchanged, updated, removed, truncated}.

        The counts are chunks but for `documents`. truncated: [{document, chunk}] whose text the model does not take
        whole. Raises store's exceptions and Refused; what is written until then stays, and is not written again.
        """
        told = dict.fromkeys(COUNTS, 0) | {"truncated": []}
        by_id = {document["id"]: document for document in documents}  # the last one of an id counts
        with self._of(name):
            settings = self.engine.settings(name)
            names = list(by_id)
            for start in range(0, len(names), GROUP):
                group = {document: by_id[document] for document in names[start : start + GROUP]}
                self._put(name, settings, group, size, overlap, told)
        return told

    def _put(self, name, settings, group, size, overlap, told):
        known = self.engine.store().stamps(name, list(group))
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
            self.engine.store().upsert(name, rows)
            told["added"] += len(part)
            told["truncated"] += [{key: points[part[n]][key] for key in ("document", "chunk")} for n in cut]
        if changed:
            self.engine.store().overwrite(name, changed)
        # Last, so that a search never misses a document that is being replaced.
        stale = [point for there in known.values() for point in there if point not in points]
        if stale:
            self.engine.store().remove(name, stale)
        told["documents"] += len(group)
        told["updated"] += len(changed)
        told["removed"] += len(stale)
        told["unchanged"] += len(points) - len(todo) - len(changed)

    def remove(self, name, document):
        """Take a document out; returns how many chunks it had."""
        with self._of(name):
            self.engine.settings(name)
            points = list(self.engine.store().stamps(name, [document]).get(document, {}))
            if points:
                self.engine.store().remove(name, points)
            return len(points)


class Ingests:
    """The large ingests: one after the other, in a thread, from files below `folder`."""

    def __init__(self, writer, folder):
        self.writer, self.folder = writer, Path(folder)
        self._queue, self._lock, self._wake = deque(), threading.Lock(), threading.Event()
        self._thread, self._gone = None, set()

    # --- what is asked for

    def add(self, name, pieces, size, overlap):
        """Take in a body of JSON lines and begin; returns its note. pieces: iterable of bytes."""
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
            "collection": name,
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
        """End an ingest; what it has written stays. Returns the note."""
        with self._lock:
            self._gone.add(note["id"])
            fresh = self._read(note["id"]) or note
            if fresh["state"] in ("waiting", "running"):
                fresh |= {"state": "cancelled", "written": time.time(), "message": None}
                self._write(fresh)
                self._lines(note["id"]).unlink(missing_ok=True)
        self._wake.set()
        return fresh

    def resume(self):
        """Go on with what an earlier process did not end."""
        for part in self.folder.glob("*.part"):
            part.unlink(missing_ok=True)
        for note in reversed(self._notes()):
            if note["state"] in ("waiting", "running"):
                self._enqueue(note["id"])

    # --- files

    def _lines(self, key):
        return self.folder / f"{key}.ndjson"

    def _notes(self):
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
        fresh.write_text(json.dumps(note))
        os.replace(fresh, self.folder / f"{note['id']}.json")

    # --- the thread

    def _enqueue(self, key):
        with self._lock:
            if key not in self._queue:
                self._queue.append(key)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ingests", daemon=True)
                self._thread.start()
        self._wake.set()

    def _run(self):
        while True:
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
            except Exception as error:
                log.exception("ingest %s", key)
                with contextlib.suppress(OSError):
                    self._end(note, "failed", f"{type(error).__name__}: {error}")

    def _ingest(self, note):
        tries = 0
        with open(self._lines(note["id"]), "rb") as file:
            file.seek(note["offset"])
            while note["id"] not in self._gone:
                documents, offset, line, wrong = self._next(file, note)
                if offset == note["offset"]:
                    self.writer.engine.store().tidy(note["collection"])
                    return self._end(note, "done")
                try:
                    told = self.writer.put(note["collection"], documents, **note["chunk"])
                except store.Missing:
                    return self._end(note, "failed", "The collection is not there any more.")
                except (store.Unavailable, Refused) as error:
                    if getattr(error, "status", 503) not in (429, 502, 503, 504):
                        return self._end(note, "failed", str(error))
                    self._save(note, message=f"Waiting: {error}")
                    self._wait(WAITS[min(tries, len(WAITS) - 1)], note["id"])
                    tries += 1
                    file.seek(note["offset"])
                    continue
                except store.Wrong as error:
                    return self._end(note, "failed", f"Line {note['line'] + 1} or one soon after: {error}")
                tries = 0
                cut = told.pop("truncated")
                for count, value in told.items():
                    note[count] += value
                note["wrong"] += len(wrong)
                note["wrong_lines"] = (note["wrong_lines"] + wrong)[:TOLD]
                note["truncated"] += len(cut)
                note["truncated_chunks"] = (note["truncated_chunks"] + cut)[:TOLD]
                self._save(note, offset=offset, line=line, message=None)
        return None

    def _wait(self, seconds, key):
        deadline = time.monotonic() + seconds
        while key not in self._gone and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))

    def _next(self, file, note):
        """The next documents: ([checked], offset and line after them, [{"line", "reason"}] of those that are wrong)."""
        documents, wrong, size, line = [], [], 0, note["line"]
        while len(documents) < GROUP and size < 400_000 and len(wrong) < TOLD:
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
                    documents.append(checked(json.loads(raw)))
            except (ValueError, RecursionError) as error:
                reason = str(error) if isinstance(error, Bad) else "This is not JSON."
                wrong.append({"line": line, "reason": reason[:200]})
        return documents, file.tell(), line, wrong

    def _save(self, note, **changes):
        with self._lock:
            if note["id"] not in self._gone:
                note |= {"state": "running", "written": time.time()} | changes
                self._write(note)

    def _end(self, note, state, message=None):
        with self._lock:
            if note["id"] not in self._gone:
                note |= {"state": state, "written": time.time(), "message": message}
                self._write(note)
        self._lines(note["id"]).unlink(missing_ok=True)
        ended = [old for old in self._notes() if old["state"] not in ("waiting", "running")]
        for old in ended[KEPT:]:
            (self.folder / f"{old['id']}.json").unlink(missing_ok=True)
