"""GET /openapi.json: this server's HTTP API as OpenAPI 3.1, made from what the server itself goes by.

Addresses and methods are the app's routes, words the views' docstrings, the fields of what starts a playbook the roles'
argument specs. What else there is to say stands in operations.py and schemas.py. Source:
https://spec.openapis.org/oas/v3.1.1.html
"""

import inspect
import re
from importlib.metadata import PackageNotFoundError, version

from flask import Blueprint, current_app, jsonify

from webui.api.operations import JSON, OPERATIONS, Starts
from webui.api.schemas import COLLECTION, COMPONENTS, DOCUMENT_ID, JOB_ID, STRING, asked, or_null, ref
from webui.jobs import operations

api = Blueprint("openapi", __name__)

OURS = ("/v1/", "/v2/", "/api/", "/health", "/metrics", "/openapi.json")
OPENAI = "/v1/"  # below it, errors have OpenAI's shape
METHODS = ("GET", "PUT", "POST", "DELETE", "PATCH")
OPEN = ("api.healthz",)  # asks for no token
TAGS = {"api": "health", "metrics": "health", "openapi": "health", "openai": "openai", "gateway_embeddings": "vectors"}
PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")
IN_PATH = {
    "job_id": JOB_ID,
    "document": DOCUMENT_ID,
    "key": {"type": "string", "pattern": "^[0-9a-f]{32}$", "description": "An ingest's id."},
}
TYPES = {
    "str": "string",
    "path": "string",
    "bool": "boolean",
    "int": "integer",
    "float": "number",
    "list": "array",
    "dict": "object",
}
REFUSALS = {
    "400": "This is no HTTP, the body is broken, or it asks for more than the server behind can do.",
    "401": "The token is missing or wrong.",
    "403": "The Host header is not this server's, or the request comes from a page of a site that is not let in.",
    "404": "There is no such thing here, or no such service.",
    "408": "The request did not arrive within a minute, or its body did not go on.",
    "409": "Something is in the way: a job that runs, a name that is taken, another model than the vectors are of.",
    "413": "The body is too large.",
    "414": "The address is longer than 4 kB.",
    "415": "Another content type than is taken, or a compressed body.",
    "422": "A field is wrong; `errors` names it.",
    "423": "Somebody has reserved the GPUs.",
    "431": "A header is longer than 8 kB, all of them than 64 kB, or they are more than 100.",
    "429": "As much is in flight as the service takes.",
    "4XX": "What the serving model refuses, in its words.",
    "502": "The service behind broke off, or answered nonsense.",
    "503": "A service does not answer, a model is being swapped, or not enough is known yet.",
    "504": "The service behind was silent for too long.",
    "507": "The state folder is full.",
}
ANYWHERE = ("400", "403", "408", "414", "431")  # what is no request for anything here
RETRY = ("423", "429", "503")


@api.get("/openapi.json")
def document():
    """Describe this API: this document."""
    return jsonify(made(current_app))


def made(app):
    """The document of an app, as a dict."""
    sparks = [host.name for host in app.extensions["cluster"].inventory().sparks]
    known, paths = operations(app.config["PROJECT_DIR"]), {}
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith(OURS):
            for method in sorted(rule.methods & set(METHODS)):
                path = PARAMETER.sub(r"{\1}", rule.rule)
                operation = _operation(app, rule, method, known, sparks)
                name = re.sub(r"[^A-Za-z0-9]+", "_", path).strip("_")
                paths.setdefault(path, {})[method.lower()] = {"operationId": f"{method.lower()}_{name}"} | operation
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "Spark Control",
            "version": _version(),
            "description": "NVIDIA DGX Sparks: the models on them, and one address for what they serve.",
        },
        "servers": [{"url": "/"}],
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": COMPONENTS, "responses": _refusals()},
    }
    if app.config["TOKEN"]:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _version():
    try:
        return version("spark-control")
    except PackageNotFoundError:
        return "0"


def _operation(app, rule, method, known, sparks):
    told, blueprint = OPERATIONS[rule.endpoint], rule.endpoint.partition(".")[0]
    summary, _, about = inspect.getdoc(app.view_functions[rule.endpoint]).partition("\n")
    found = {
        "tags": [TAGS.get(blueprint, blueprint.removeprefix("api_"))],
        "summary": summary.rstrip("."),
        "responses": _answers(told, rule, bool(app.config["TOKEN"]) and rule.endpoint not in OPEN),
    }
    if about.strip():
        found["description"] = about.strip()
    if parameters := [*_in_path(rule, told), *(_with_example(parameter, told) for parameter in told.query)]:
        found["parameters"] = parameters
    if told.body:
        body = _started(told.body, known, sparks) if isinstance(told.body, Starts) else told.body
        content = {kind: {"schema": schema, "example": example} for kind, (schema, example) in body.items()}
        found["requestBody"] = {"required": True, "content": content}
    if rule.endpoint in OPEN and app.config["TOKEN"]:
        found["security"] = []
    return found


# --- what is asked


def _in_path(rule, told):
    for name in PARAMETER.findall(rule.rule):
        schema = COLLECTION if rule.rule.startswith("/api/collections/") and name == "name" else STRING
        parameter = {"name": name, "in": "path", "required": True, "schema": IN_PATH.get(name, schema)}
        yield _with_example(parameter, told)


def _with_example(parameter, told):
    name = parameter["name"]
    return parameter | ({"example": told.example[name]} if name in told.example else {})


def _started(starts, known, sparks):
    """The body of what starts a playbook: {media type: (schema, example)}."""
    options = known[starts.playbook].options if starts.playbook in known else {}
    required = [name for name in starts.fields if options.get(name, {}).get("required")]
    required += [name for name in starts.required.split() if name not in required]
    fields = {}
    for name, added in starts.fields.items():
        schema = dict(added)
        if name in options:  # what the API adds narrows it; the words stay the role's
            schema = option_schema(options[name], name in required) | added
            schema["description"] = options[name]["description"]
        if name in starts.sparks.split() and sparks:
            among = schema["items"] if schema.get("type") == "array" else schema
            among |= {"enum": sparks}
        fields[name] = or_null(schema) if name in starts.nulls.split() else schema
    schema = asked(" ".join(required), **fields)
    if starts.one_of:
        schema["oneOf"] = [{"required": [name]} for name in starts.one_of.split()]
    return {JSON: (schema, starts.example)}


def option_schema(option, required=False):
    """The JSON Schema of a role's option, as the catalogue tells it."""
    schema = {"type": TYPES[option["type"]]} if option["type"] in TYPES else {}
    if option["elements"]:
        schema["items"] = {"type": TYPES[option["elements"]]} if option["elements"] in TYPES else {}
    if option["choices"]:
        schema["enum"] = list(option["choices"])
    if option["default"] is not None and not required:
        schema["default"] = option["default"]
    if option["secret"]:
        schema["writeOnly"] = True
    return schema | {"description": option["description"]}


# --- what is answered


def _answers(told, rule, token):
    kind, found = "Error" if rule.rule.startswith(OPENAI) else "Problem", {}
    for status in ["401"] * token + [*ANYWHERE, *told.refuses.split()]:
        found[status] = {"$ref": f"#/components/responses/{kind}{status}"}
    for status, answer in told.answers.items():
        answer = ref(answer) if isinstance(answer, str) else answer
        content = answer if any("/" in key for key in answer) else {JSON: answer}
        made = {"description": WORDS[status], "content": {key: {"schema": schema} for key, schema in content.items()}}
        if told.located:
            made["headers"] = {"Location": {"schema": STRING, "description": "Where the job is told of."}}
        found[str(status)] = made
    return dict(sorted(found.items()))


WORDS = {200: "Done.", 201: "Made.", 202: "Begun; the answer says where to follow it.", 503: "Something is not well."}


def _refusals():
    """The responses that refuse, for both shapes of errors."""
    found = {}
    for kind, media in (("Problem", "application/problem+json"), ("Error", JSON)):
        for status, words in REFUSALS.items():
            made = {"description": words, "content": {media: {"schema": ref(kind)}}}
            if status in RETRY:
                seconds = {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds until it is worth it."}
                made["headers"] = {"Retry-After": seconds}
            if status == "401":
                made["headers"] = {"WWW-Authenticate": {"schema": STRING}}
            found[kind + status] = made
    return found
