"""Text for search: cut into chunks at paragraphs, sentences and words; ids that tell the same content; snippets.

Pure functions: no Flask, no HTTP, no store.
"""

import hashlib
import json
import re
import uuid
from dataclasses import dataclass

SIZE, OVERLAP = 1200, 150  # characters; 1200 are about 300 tokens, which every embedding model takes whole
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://spark-control.invalid/collections")
# Where a chunk may end, best first.
SENTENCE_ENDS = ".!?\u2026\u3002\uff01\uff1f"
CLOSERS = "\"'\u201d\u2019)\\]"
BREAKS = tuple(map(re.compile, (r"\n\s*\n", rf"[{SENTENCE_ENDS}][{CLOSERS}]*(?:\s|$)", r"\n", r"\s")))
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Chunk:
    """A piece of a document: its number from 0, and where its text begins and ends in the document (characters)."""

    number: int
    start: int
    end: int
    text: str


def split(text, size=SIZE, overlap=OVERLAP):
    """[Chunk] of a text: none longer than `size` characters, each going back up to `overlap` into the one before.

    Every character that is no white space is in a chunk. Raises ValueError unless 0 <= overlap < size / 2.
    """
    if not 0 <= overlap < size / 2:
        raise ValueError("The overlap must be from 0 to less than half of the size.")
    found, start, length = [], _skip(text, 0), len(text)
    while start < length:
        end = _end(text, start, size, start + overlap)
        piece = text[start:end].rstrip()
        found.append(Chunk(len(found), start, start + len(piece), piece))
        if end >= length or not text[end:].strip():
            break
        start = _skip(text, _back(text, end, overlap))
    return found


def _skip(text, position):
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _end(text, start, size, least):
    """Where the chunk that begins at `start` ends: the best break in its second half, else right at `size`."""
    limit = start + size
    if limit >= len(text):
        return len(text)
    low = max(start + size // 2, least + 1)
    for pattern in BREAKS:
        last = None
        for match in pattern.finditer(text, low, limit):
            last = match.end()
        if last:
            return last
    return limit


def _back(text, end, overlap):
    """Where the next chunk begins: at a word, up to `overlap` characters before the end of the last one."""
    for position in range(end - overlap, end):
        if position > 0 and text[position - 1].isspace() and not text[position].isspace():
            return position
    return end


def point_id(collection, document, chunk):
    """The id of a chunk's point, a UUID as text: the same for the same collection, document, number and content."""
    return str(uuid.uuid5(NAMESPACE, "\0".join((collection, document, str(chunk.number), chunk.text))))


def document_id(text):
    """The id of a document that came without one: the same for the same text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def stamp(metadata, chunk):
    """Changes when something of a chunk's payload does that is not in its id."""
    told = json.dumps([metadata, chunk.start, chunk.end], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def snippet(text, query, size=300):
    """The part of a text that has most of the query's words, whole words, with … where it was cut.

    Returns {"text", "highlights": [[start, end]]}, positions in the snippet's text, in characters.
    """
    words = {word.casefold() for word in WORD.findall(query)}
    hits = [match.span() for match in WORD.finditer(text) if match[0].casefold() in words]
    start = 0
    if len(text) > size and hits:
        # The window that begins a little before a hit and holds the most different words.
        def holds(begin):
            return len({text[a:b].casefold() for a, b in hits if begin <= a and b <= begin + size})

        start = max((max(0, a - size // 6) for a, _ in hits[:200]), key=holds)
    end = min(len(text), start + size)
    start = max(0, min(start, end - size)) if len(text) > size else 0
    start, end = _whole(text, start, end)
    lead, tail = "… " if start else "", " …" if end < len(text) else ""
    shift = len(lead) - start
    marks = [[a + shift, b + shift] for a, b in hits if start <= a and b <= end]
    return {"text": lead + text[start:end] + tail, "highlights": marks}


def _whole(text, start, end):
    """The span without the parts of words at its edges."""
    inner = text[start:end]
    first, last = start, end
    if start and not text[start - 1].isspace():
        gap = re.search(r"\s", inner)
        first = start + gap.end() if gap else start
    if end < len(text) and not text[end].isspace():
        gap = text.rfind(" ", first, end)
        last = gap if gap > first else end
    while first < last and text[first].isspace():
        first += 1
    while last > first and text[last - 1].isspace():
        last -= 1
    return first, last
