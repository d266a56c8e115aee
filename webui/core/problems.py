"""Errors as RFC 9457 problem details for programs, as a plain page for people."""

from flask import Response, current_app, json, render_template, request
from werkzeug.http import HTTP_STATUS_CODES

from webui.core import fragments

TITLES = {413: "Too much data", 415: "Wrong content type", 422: "A field is wrong", 423: "The GPUs are reserved"}


class Problem(Exception):
    """A refusal with its reason.

    status: HTTP status; detail: one plain sentence; errors: [{"field", "message"}]; more: further members.
    """

    def __init__(self, status, detail, *, errors=None, headers=None, **more):
        super().__init__(detail)
        self.status, self.detail, self.errors = status, detail, errors
        self.headers, self.more = headers or {}, more


def wrong_field(field, message, status=422, **more):
    """A Problem that names the field of the request that is wrong."""
    return Problem(status, f"{field}: {message}", errors=[{"field": field, "message": message}], **more)


def wants_json():
    """True for addresses that programs call, and for callers that ask for JSON rather than a page."""
    if (
        request.path.startswith(("/api/", "/v2/", "/health", "/metrics", "/openapi.json"))
        or request.mimetype == "application/json"
    ):
        return True
    best = request.accept_mimetypes.best_match(["text/html", "application/json", "application/problem+json"])
    return best != "text/html" and "*/*" not in request.accept_mimetypes.values()


def respond(problem):
    """The response for a Problem: JSON for programs, a page for people."""
    title = TITLES.get(problem.status) or HTTP_STATUS_CODES.get(problem.status, "Error")
    if wants_json():
        body = {"type": "about:blank", "title": title, "status": problem.status, "detail": problem.detail}
        if problem.errors:
            body["errors"] = problem.errors
        body |= problem.more | as_cohere(request.path, problem.detail)
        response = Response(json.dumps(body) + "\n", problem.status, mimetype="application/problem+json")
    else:
        fragment = fragments.asked()
        html = render_template("error.html", title=title, problem=problem, fragment=fragment)
        response = Response(html, problem.status, mimetype="text/html")
        if fragment:  # wherever the answer was to go, a refusal is a dialog of its own
            response.headers.extend({"HX-Retarget": "#dialog", "HX-Reswap": "innerHTML", "HX-Reselect": "dialog"})
    response.headers.extend(problem.headers)
    return response


def as_cohere(path, text):
    """What an error has beside problem details where Cohere's clients ask: {"message"}, as its API has it."""
    return {"message": text} if path.startswith("/v2/") else {}


def fields(data, allowed, required=()):
    """Refuse unknown and missing fields by name. Returns data; raises Problem 422."""
    errors = [{"field": key, "message": f"There is no field {key[:80]!r} here."} for key in data if key not in allowed]
    errors += [{"field": key, "message": "This field is required."} for key in required if key not in data]
    if errors:
        raise Problem(422, errors[0]["message"], errors=errors)
    return data


def body():
    """The request's JSON object. Raises Problem 415 (not JSON by its type; packed), 400 (not JSON), 422 (no object)."""
    if request.mimetype != "application/json":
        raise Problem(415, "Send JSON, with the header Content-Type: application/json.")
    if request.headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
        raise Problem(415, "Send the body uncompressed.")
    raw = request.get_data(cache=False)
    try:
        data = json.loads(raw, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"The body is not JSON: {str(error)[:120]}") from error
    if not isinstance(data, dict):
        raise Problem(422, "The body must be a JSON object.", errors=[{"field": "", "message": "Expected an object."}])
    return data


def _once(pairs):
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a field is given twice")
    return data


def typed(data, field, kind, default=None, *, check=None, message=""):
    """data[field] if it is of the type (bool is no int), else Problem 422 that names the field."""
    value = data.get(field, default)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON has one kind of number: 5.0 is 5
    wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    if wrong or (check and not check(value)):
        raise wrong_field(field, message)
    return value


def method_or(status):
    """The plain sentence for a status that nothing more is known about."""
    return {
        404: "There is no such page here.",
        405: "This address does not take that method.",
        413: f"The request is larger than {current_app.config['MAX_CONTENT_LENGTH'] // 1000} kB.",
        500: "Spark Control met an error of its own. Its log has the details.",
    }.get(status, HTTP_STATUS_CODES.get(status, "The request cannot be answered") + ".")
