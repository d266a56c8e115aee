"""What no code tells of the HTTP API's operations, by Flask endpoint: their bodies, queries, answers and refusals.

webui/api/openapi.py joins it with what code does tell: addresses and methods (the app's routes), summaries (the
views' docstrings), the fields of what starts a playbook (the roles' argument specs).
"""

from dataclasses import dataclass, field

from webui.api import schemas
from webui.api.schemas import DRY_RUN, listed, ref, thing

JSON, STREAM, LINES = "application/json", "text/event-stream", "application/x-ndjson"


@dataclass(frozen=True)
class Told:
    """One operation.

    answers: {status: component's name, schema, or {media type: schema}}; refuses: statuses, spaced; body: {media type:
    (schema, example)} or a Starts; query: [parameter]; example: {path or query parameter: value that works}; located:
    the answer's Location says where to look.
    """

    answers: dict
    refuses: str = ""
    body: "dict | Starts | None" = None
    query: tuple = ()
    example: dict = field(default_factory=dict)
    located: bool = False


@dataclass(frozen=True)
class Starts:
    """The JSON body of what starts a playbook.

    fields: {name: what the HTTP API adds to the role's option of that name, or the whole of it where there is none};
    required: beyond the role's own; nulls: fields that may be null; sparks: fields that name Sparks of the inventory.
    """

    playbook: str
    fields: dict
    example: dict
    required: str = ""
    nulls: str = ""
    sparks: str = ""
    one_of: str = ""


def query(name, schema, **more):
    """A parameter of the address."""
    return {"name": name, "in": "query", "schema": schema, **more}


def json(schema, example):
    """A body of JSON."""
    return {JSON: (schema, example)}


CHUNKING = tuple(query(name, schema) for name, schema in schemas.CHUNK["properties"].items())
RELAYED = "400 404 408 413 415 429 4XX 502 503 504"  # 4XX: in the serving model's words
EMBEDDED = "400 404 408 413 415 429 502 503 504"
STORED = "404 422 503"
EMBEDS = "400 409 429 502 503 504"  # beyond what the store refuses
BODY = "400 408 413 415 422"
WEIGHTS = "400 404 409 413 415 422 503"
COLLECTION = {"name": "notes"}
TEXTS = ["The cat sleeps.", "A cat is asleep."]
MESSAGE = {"model": "default", "messages": [{"role": "user", "content": "Hello"}]}

OPERATIONS = {
    # the weights and the models
    "api_models.models": Told({200: thing("at models", at=schemas.EPOCH, models=listed(ref("Model")))}),
    "api_models.suggest": Told(
        {200: schemas.ANSWER},
        "404 422 503",
        query=(
            query("repo", {"anyOf": [schemas.REPO, schemas.FOLDER]}, required=True),
            query("nodes", {"enum": [1, 2, 4, 8]}, description="On how many Sparks; without it the fewest that do."),
        ),
        example={"repo": "demo/fine-tuned"},
    ),
    "api_models.save": Told(
        {202: "Accepted"},
        "400 413 415 422",
        Starts(
            "save_recipe",
            {"model": schemas.RECIPE, "recipe": {}, "dry_run": DRY_RUN},
            {
                "model": "tuned",
                "recipe": {
                    "recipe_version": "1",
                    "name": "Fine-tuned",
                    "model": "demo/fine-tuned",
                    "container": "vllm-node",
                    "defaults": {"port": 8888, "host": "0.0.0.0"},
                    "command": "vllm serve demo/fine-tuned --host {host} --port {port}",
                },
                "dry_run": True,
            },
        ),
        located=True,
    ),
    "api_models.delete": Told(
        {202: "Accepted"},
        WEIGHTS,
        Starts(
            "delete_weights",
            {"repo": schemas.REPO, "path": schemas.FOLDER, "hosts": {"minItems": 1}, "dry_run": DRY_RUN},
            {"repo": "demo/fine-tuned", "dry_run": True},
            nulls="hosts",
            sparks="hosts",
            one_of="repo path",
        ),
        located=True,
    ),
    "api_models.download": Told(
        {202: "Accepted"},
        "400 413 415 422",
        Starts(
            "download_weights",
            {
                "repo": schemas.REPO,
                "revision": schemas.REVISION,
                "host": {},
                "copy_to": {"minItems": 1},
                "dry_run": DRY_RUN,
            },
            {"repo": "demo/on-the-hub", "dry_run": True},
            nulls="revision host copy_to",
            sparks="host copy_to",
        ),
        located=True,
    ),
    "api_models.copy": Told(
        {202: "Accepted"},
        WEIGHTS,
        Starts(
            "copy_weights",
            {
                "repo": {"anyOf": [schemas.REPO, schemas.FOLDER]},
                "source": {},
                "to": {"minItems": 1},
                "verify": {},
                "dry_run": DRY_RUN,
            },
            {"repo": "demo/only-on-spark1", "dry_run": True},
            nulls="source to verify",
            sparks="source to",
        ),
        located=True,
    ),
    # the swap and the reservation of the GPUs
    "api_swap.swap": Told(
        {202: "Accepted"},
        "400 404 409 413 415 422 423 503",
        Starts("swap", {"model": {}, "dry_run": DRY_RUN, "force": {}}, {"model": "demo-small", "dry_run": True}),
        located=True,
    ),
    "api_swap.one": Told({200: "WholeJob"}, "404"),
    "api_swap.lease": Told({200: thing("lease at", lease=ref("Lease"), at=schemas.EPOCH)}),
    "api_swap.reserve": Told(
        {202: {"allOf": [ref("Accepted"), thing("token", token=schemas.STRING)]}},
        "400 413 415 422 423",
        Starts(
            "gpu_lease",
            {
                "holder": schemas.PRINTABLE | {"minLength": 1},
                "purpose": schemas.PRINTABLE,
                "seconds": schemas.SECONDS,
            },
            {"holder": "ComfyUI", "purpose": "a film", "seconds": 3600},
            required="holder seconds",
        ),
        located=True,
    ),
    "api_swap.release": Told(
        {202: "Accepted"},
        "400 413 415 422",
        Starts("gpu_lease", {"token": schemas.TOKEN}, {"token": "nM7zqkVZ4r0h2S9bXcQe1uYtGd3wLfA8"}, required="token"),
        located=True,
    ),
    # jobs
    "api_jobs.jobs": Told(
        {200: thing("jobs", jobs=listed(ref("Job")))},
        "422",
        query=(
            query("limit", {"type": "integer", "minimum": 1, "maximum": 200, "default": 50}),
            query("before", schemas.JOB_ID, description="Only older ones than this."),
            query("operation", schemas.STRING, description="Only of this playbook."),
        ),
    ),
    "api_jobs.job": Told({200: "WholeJob"}, "404"),
    "api_jobs.events": Told(
        {
            200: {
                STREAM: schemas.EVENTS,
                JSON: thing("events ended", events=listed(schemas.OBJECT), ended=schemas.BOOLEAN),
            }
        },
        "404 422 503",
        query=(query("after", {"type": "integer", "minimum": 0, "maximum": 2**31}, description="An event's counter."),),
    ),
    "api_jobs.cancel": Told({202: {"allOf": [ref("Accepted"), thing("status", status=schemas.STRING)]}}, "404 409"),
    # collections
    "api_collections.collections": Told(
        {
            200: thing(
                "store collections", store={"enum": ["embedded", "server"]}, collections=listed(ref("Collection"))
            )
        },
        "503",
    ),
    "api_collections.collection": Told({200: "Collection"}, STORED, example=COLLECTION),
    "api_collections.create": Told(
        {201: "Collection"},
        f"404 {BODY} {EMBEDS}",
        json(schemas.asked("name", name=schemas.COLLECTION, **schemas.SETTINGS), {"name": "manual"}),
    ),
    "api_collections.put": Told(
        {200: "Collection", 201: "Collection"},
        f"404 {BODY} {EMBEDS}",
        json(schemas.asked(**schemas.SETTINGS), {}),
        example=COLLECTION,
    ),
    "api_collections.delete": Told(
        {200: thing("deleted points", deleted=schemas.STRING, points=schemas.COUNT)},
        STORED,
        query=(query("confirm", schemas.STRING, required=True, description="The collection's name again."),),
        example={"name": "old", "confirm": "old"},
    ),
    "api_collections.put_documents": Told(
        {200: "Put", 202: "Ingest"},
        f"404 507 {BODY} {EMBEDS}",
        {
            JSON: (
                schemas.DOCUMENTS,
                {"documents": [{"id": "cats", "text": "Cats sleep all day.", "metadata": {"year": 2025}}]},
            ),
            LINES: (
                {"description": "A document a line; a wrong line is left out and told."},
                '{"id": "dogs", "text": "Dogs bark at night."}\n',
            ),
        },
        query=CHUNKING,
        example=COLLECTION,
    ),
    "api_collections.ingests": Told({200: thing("ingests", ingests=listed(ref("Ingest")))}, STORED, example=COLLECTION),
    "api_collections.progress": Told({200: "Ingest"}, STORED),
    "api_collections.cancel": Told({200: "Ingest"}, STORED),
    "api_collections.go_on": Told({200: "Ingest"}, f"409 {STORED}"),
    "api_collections.delete_document": Told(
        {200: thing("document removed", document=schemas.STRING, removed=schemas.COUNT)},
        f"409 429 {STORED}",
        example=COLLECTION | {"document": "order-77"},
    ),
    "api_collections.search": Told(
        {200: "Hits"},
        f"404 {BODY} {EMBEDS}",
        json(
            schemas.SEARCH,
            {
                "query": "sleeping cats",
                "limit": 3,
                "rerank": True,
                "filter": {"must": [{"key": "year", "range": {"gte": 2024}}]},
            },
        ),
        example=COLLECTION,
    ),
    # OpenAI's API
    "openai.models": Told({200: thing("object data", object={"const": "list"}, data=listed(ref("ModelCard")))}),
    "openai.model": Told({200: "ModelCard"}, "404", example={"name": "default"}),
    "openai.chat": Told(
        {200: {JSON: thing("id choices", id=schemas.STRING, choices=listed(schemas.OBJECT)), STREAM: schemas.EVENTS}},
        RELAYED,
        json(schemas.CHAT, MESSAGE),
    ),
    "openai.completions": Told(
        {200: {JSON: thing("id choices", id=schemas.STRING, choices=listed(schemas.OBJECT)), STREAM: schemas.EVENTS}},
        RELAYED,
        json(schemas.COMPLETION, {"model": "default", "prompt": "Hello"}),
    ),
    "openai.responses": Told(
        {200: {JSON: thing("id", id=schemas.STRING), STREAM: schemas.EVENTS}},
        RELAYED,
        json(schemas.RESPONSE, {"model": "default", "input": "Hello"}),
    ),
    "openai.response": Told({200: {JSON: thing("id", id=schemas.STRING), STREAM: schemas.EVENTS}}, RELAYED),
    "openai.response_cancel": Told({200: {JSON: thing("id", id=schemas.STRING)}}, RELAYED),
    "gateway_embeddings.embeddings": Told(
        {200: "Embeddings"}, EMBEDDED, json(schemas.EMBED, {"model": "default", "input": TEXTS})
    ),
    "gateway_embeddings.sparse": Told({200: "SparseEmbeddings"}, EMBEDDED, json(schemas.SPARSE, {"input": TEXTS[0]})),
    "gateway_embeddings.rerank": Told(
        {200: "Reranked"},
        EMBEDDED,
        json(schemas.RERANK, {"query": "Where does the cat sleep?", "documents": ["Dogs bark.", *TEXTS], "top_n": 2}),
    ),
    # for monitors
    "api.healthz": Told({200: thing("status", status={"const": "ok"})}),
    "api.health": Told({200: "Health", 503: "Health"}),
    "metrics.metrics": Told({200: {"text/plain": schemas.STRING}}),
    "openapi.document": Told({200: thing("openapi info paths", openapi=schemas.STRING)}),
}
