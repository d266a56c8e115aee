"""A search's filter: Qdrant's JSON for one, checked, and with keys that lead into the metadata.

Source: https://qdrant.tech/documentation/concepts/filtering/ and what qdrant-client's Filter.model_dump() gives.
"""

import re
import uuid
from datetime import datetime

from webui.core.problems import wrong_field
from webui.gateway import ingest

# A step of a key is a name, in quotes where a dot or a bracket is part of it; [] behind it is each item of a list.
NAME = re.compile(r'"[^"\\]*"|[^."\\\[\]]+')
KEY = re.compile(rf"(?:{NAME.pattern})(?:\[\])*(?:\.(?:{NAME.pattern})(?:\[\])*){{0,{ingest.LEVELS}}}")
PLAIN = re.compile(r"[A-Za-z0-9_-]+")  # a name that Qdrant takes without quotes, as edge.py knows it
DATE = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:\d\d)?)?")
CLAUSES = ("must", "should", "must_not")
OF_FIELD = ("match", "range", "values_count", "is_empty", "is_null")
NOT_TAKEN = ("geo_bounding_box", "geo_radius", "geo_polygon")  # of a field condition; a dump has them as null
DEPTH = 4  # filters in a filter
CONDITIONS = 50  # of a clause
VALUES = 1000  # of a match
BOUNDS = ("gt", "gte", "lt", "lte")


def checked(given):
    """Qdrant's Filter, for a store; None without a condition. Raises Problem 422.

    {must, should, must_not: a condition or a list of them, min_should: {conditions, min_count}}; a condition is {key,
    match: {value | any | except}}, {key, range: {gt, gte, lt, lte}}, {key, values_count: the same}, {key, is_empty |
    is_null: true or false}, {is_empty | is_null: {key}}, {has_id: [ids]} or a filter. A null member is none. The key
    `document` is the document's id.
    """
    return None if given is None else _filter(given, 0) or None


def _refuse(text):
    return wrong_field("filter", text)


def _members(given, names, text):
    """An object's members that are not null. Raises Problem for one of another name."""
    if not isinstance(given, dict) or not set(given) <= set(names):
        raise _refuse(text)
    return {key: value for key, value in given.items() if value is not None}


def _filter(given, depth):
    if depth > DEPTH:
        raise _refuse(f"Filters in filters, more than {DEPTH} deep.")
    given = _members(given, (*CLAUSES, "min_should"), "An object with must, should, must_not or min_should.")
    least = given.pop("min_should", None)
    found = {kind: _conditions(kind, items, depth) for kind, items in given.items()}
    found = {kind: items for kind, items in found.items() if items}  # an empty list is no condition, as in Qdrant
    if least is not None:
        text = f"min_should: an object with conditions, and a min_count from 0 to {CONDITIONS}."
        least = _members(least, ("conditions", "min_count"), text)
        count = least.get("min_count")
        if len(least) < 2 or type(count) is not int or not 0 <= count <= CONDITIONS:
            raise _refuse(text)
        found["min_should"] = least | {"conditions": _conditions("min_should", least["conditions"], depth)}
    return found


def _conditions(kind, items, depth):
    items = items if isinstance(items, list) else [items]
    if len(items) > CONDITIONS:
        raise _refuse(f"{kind}: at most {CONDITIONS} conditions.")
    return [_condition(item, depth) for item in items]


def _condition(given, depth):
    if not isinstance(given, dict):
        raise _refuse("A condition is an object with key, and match or range.")
    if "key" in given:
        return _of_field(given)
    for kind in ("is_empty", "is_null"):
        if set(given) == {kind}:
            return {kind: {"key": _key(_members(given[kind], ("key",), f"{kind}: an object with key.").get("key"))}}
    if set(given) == {"has_id"}:
        return {"has_id": _ids(given["has_id"])}
    return _filter(given, depth + 1)


def _of_field(given):
    key = _key(given["key"])
    text = f"one of {', '.join(OF_FIELD[:-1])} and {OF_FIELD[-1]}"
    text = f"{key.removeprefix('metadata.')}: {text}."
    item = _members(given, ("key", *OF_FIELD, *NOT_TAKEN), text)
    del item["key"]
    if len(item) == 1:
        kind, value = next(iter(item.items()))
        if kind == "match":
            return _match(key, value)
        if kind in ("range", "values_count"):
            return {"key": key, kind: _range(kind, value)}
        if kind in ("is_empty", "is_null") and isinstance(value, bool):
            found = {kind: {"key": key}}
            return found if value else {"must_not": [found]}
    raise _refuse(text)


def _key(key):
    if not isinstance(key, str) or not KEY.fullmatch(key) or not ingest.sound(key):
        raise _refuse("A key is a name in the metadata, or several joined by dots; with a dot in it, in quotes.")
    steps = re.sub(NAME, lambda name: _quoted(name[0].strip('"')), key)
    return steps if steps == "document" or steps.startswith("metadata.") else f"metadata.{steps}"


def _quoted(name):
    return name if PLAIN.fullmatch(name) else f'"{name}"'


def _match(key, given):
    kind, value = next(iter(given.items())) if isinstance(given, dict) and len(given) == 1 else (None, None)
    if kind == "value" and _plain(value):
        return {"key": key, "match": {"value": value}}
    if kind in ("any", "except", "except_") and isinstance(value, list) and len(value) <= VALUES:  # except_: a dump's
        kinds = {type(item) for item in value}
        if kinds in (set(), {str}, {int}) and all(map(_plain, value)):
            found = {"key": key, "match": {"any": value}}
            # Said so, it does not depend on which type of values an index of the field happens to be for.
            return found if kind == "any" else {"must_not": [found, {"is_empty": {"key": key}}]}
    raise _refuse("match: {value: a string, an integer, true or false}, or {any: [...]} or {except: [...]}.")


def _plain(value):
    return (isinstance(value, str) and ingest.sound(value)) or (isinstance(value, int) and ingest.whole(value))


def _range(kind, given):
    text = f"{kind}: one or more of {', '.join(BOUNDS)}."
    bounds = _members(given, BOUNDS, text)
    if not bounds:
        raise _refuse(text)
    values = bounds.values()
    if kind == "values_count":
        if not all(type(value) is int and 0 <= value < 2**31 for value in values):
            raise _refuse("values_count: whole numbers.")
    elif not all(type(value) in (int, float) and abs(value) < 1e300 for value in values) and not all(
        isinstance(value, str) and DATE.fullmatch(value) and _is_time(value) for value in values
    ):
        raise _refuse("range: numbers, or times like 2026-11-22T10:00:00Z.")
    return bounds


def _is_time(value):
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _ids(given):
    if not isinstance(given, list) or len(given) > VALUES or not all(map(_is_id, given)):
        raise _refuse(f"has_id: a list of at most {VALUES} ids, as hits have them.")
    return given


def _is_id(value):
    if type(value) is int:  # what others put into a Qdrant may have such
        return 0 <= value < 2**63
    try:
        return isinstance(value, str) and bool(uuid.UUID(value))
    except ValueError:
        return False
