"""What the HTTP API takes and gives, as plain JSON Schemas: one dict a thing, for the OpenAPI document.

A pattern, a choice or a bound that has a name in the view is taken from there. One that the view has as a number is
here again, and tests/integration/test_openapi.py finds it if the two differ. What a playbook takes is not here but in
its role's argument spec (webui/api/openapi.py joins the two).
"""

from webui.api import swap
from webui.core import collections, filters, wishes, words
from webui.gateway import chat, dialects, embeddings, ingest
from webui.jobs import STATUSES


def whole(pattern):
    """A compiled pattern that a view matches fully, as JSON Schema's."""
    return f"^(?:{pattern.pattern})$"


def thing(required, **more):
    """An object of an answer; it may grow."""
    return {"type": "object", "required": required.split(), "properties": more}


def asked(required="", **fields):
    """An object of a request: no field but these."""
    made = {"type": "object", "properties": fields, "additionalProperties": False}
    return made | ({"required": required.split()} if required else {})


def ref(name):
    """A component's address."""
    return {"$ref": f"#/components/schemas/{name}"}


def listed(items, **more):
    """A list of such items."""
    return {"type": "array", "items": items, **more}


def within(low, high, about):
    """A whole number from low to high."""
    return {"type": "integer", "minimum": low, "maximum": high, "description": about}


def or_null(schema):
    """The same, or null: as if the field were not there."""
    return {"anyOf": [schema, {"type": "null"}]}


STRING, NUMBER, INTEGER, BOOLEAN, OBJECT = ({"type": t} for t in ("string", "number", "integer", "boolean", "object"))
TEXT_OR_NULL, NUMBER_OR_NULL = {"type": ["string", "null"]}, {"type": ["number", "null"]}
COUNT = {"type": "integer", "minimum": 0}
EPOCH = {"type": ["number", "null"], "description": "Seconds since 1970."}
ANSWER = {"type": "object"}
EVENTS = {"description": "Server-sent events."}
DRY_RUN = {"type": "boolean", "default": False, "description": "A preview: the job says what it would change."}

# --- what names things

JOB_ID = {"type": "string", "pattern": whole(words.JOB_ID), "description": "A job's id."}
COLLECTION = {"type": "string", "pattern": whole(collections.NAME), "description": "A collection's name."}
DOCUMENT_ID = {"type": "string", "pattern": whole(ingest.DOCUMENT)}
REPO = {
    "type": "string",
    "pattern": whole(wishes.REPO),
    "not": {"pattern": r"\.\.|--"},
    "description": "A repo of the Hugging Face Hub, as org/name.",
}
REVISION = {"type": "string", "pattern": whole(wishes.REVISION), "not": {"pattern": r"\.\."}}
FOLDER = {"type": "string", "pattern": "^/", "description": "The absolute folder of a local model."}
RECIPE = {"type": "string", "pattern": whole(words.NAME)}
# `printable` is Python's str.isprintable(), which no pattern tells.
PRINTABLE = {"type": "string", "maxLength": 80, "format": "printable"}
SECONDS = {"type": "integer", "minimum": 1, "maximum": swap.LONGEST}
TOKEN = {"type": "string", "minLength": 1, "maxLength": 200, "description": "What reserving answered, once."}

# --- collections and search

LANGUAGES = (
    "arabic azerbaijani basque bengali catalan chinese danish dutch english finnish "
    "french german greek hebrew hinglish hungarian indonesian italian japanese kazakh "
    "nepali norwegian portuguese romanian russian slovene spanish swedish tajik turkish"
)
SETTINGS = {
    "dimensions": {"type": ["integer", "null"], "minimum": 1, "maximum": 65536, "description": "Else the model's own."},
    "distance": {"enum": list(collections.DISTANCES), "default": "cosine"},
    "sparse": {"enum": list(collections.SPARSE), "default": "auto", "description": "Whence the vectors by words come."},
    "language": {
        "enum": LANGUAGES.split(),
        "default": "english",
        "description": "Whose endings and stop words BM25 knows.",
    },
}
CHUNK = asked(
    size=within(*collections.SIZES, "Characters of a chunk."),
    overlap=within(*collections.OVERLAPS, "Less than half of the size."),
)
DOCUMENT = asked(
    "text",
    id=or_null(DOCUMENT_ID | {"description": "Else one that follows from the text."}),
    text={
        "type": "string",
        "minLength": 1,
        "maxLength": ingest.TEXT_LIMIT,
        "pattern": r"[^\s\x1c-\x1f\x85]",  # what str.strip() leaves
    },
    metadata=or_null(
        {"type": "object", "description": 'At most 16 kB and 8 levels, integers of 64 bits, no " and no \\ in a key.'}
    ),
)
DOCUMENTS = asked("documents", documents=listed(DOCUMENT, minItems=1, maxItems=collections.DOCUMENTS), chunk=CHUNK)
KEY = {
    "type": "string",
    "pattern": whole(filters.KEY),
    "description": "A name in the metadata (quoted with a dot in it), or several joined by dots; `document` is the id.",
}
INT64 = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
VALUE = {"anyOf": [STRING, INT64, BOOLEAN]}
VALUES = {"anyOf": [listed(items, maxItems=filters.VALUES) for items in (STRING, INT64)]}
BOUND = {"type": "number", "exclusiveMinimum": -1e300, "exclusiveMaximum": 1e300}
TIME = {"type": "string", "anyOf": [{"format": "date-time"}, {"format": "date"}]}


def bounds(kind):
    """gt, gte, lt, lte: at least one of them that is not null."""
    some = [{"required": [key], "properties": {key: kind}} for key in filters.BOUNDS]
    return asked(**dict.fromkeys(filters.BOUNDS, or_null(kind))) | {"anyOf": some}


MATCHES = {"value": VALUE} | dict.fromkeys(("any", "except", "except_"), VALUES)  # except_ is what a dump has
OF_FIELD = {
    "match": {"oneOf": [asked(kind, **{kind: schema}) for kind, schema in MATCHES.items()]},
    "range": {"anyOf": [bounds(BOUND), bounds(TIME)], "description": "All numbers, or all times."},
    "values_count": bounds({"type": "integer", "minimum": 0, "exclusiveMaximum": 1 << 31}),
    "is_empty": BOOLEAN,
    "is_null": BOOLEAN,
}
FIELD_CONDITION = asked(
    "key",
    key=KEY,
    **{kind: or_null(schema) for kind, schema in OF_FIELD.items()},
    **{key: {"type": "null"} for key in filters.NOT_TAKEN},
) | {"oneOf": [{"required": [kind], "properties": {kind: schema}} for kind, schema in OF_FIELD.items()]}
ID = {"anyOf": [{"type": "string", "format": "uuid"}, {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}]}
CONDITION = {
    "anyOf": [
        FIELD_CONDITION,
        *(asked(kind, **{kind: asked("key", key=KEY)}) for kind in ("is_empty", "is_null")),
        asked("has_id", has_id=listed(ID, maxItems=filters.VALUES)),
    ],
    "description": "Or a filter again, up to four levels. What is null is as if it were not there.",
}
CONDITIONS = {"anyOf": [CONDITION, listed(CONDITION, maxItems=filters.CONDITIONS)]}
AT_LEAST = asked(
    "conditions min_count", conditions=CONDITIONS, min_count=within(0, filters.CONDITIONS, "How many of them.")
)
FILTER = asked(**dict.fromkeys(filters.CLAUSES, or_null(CONDITIONS)), min_should=or_null(AT_LEAST))
WEIGHT = {"type": "number", "minimum": 0, "maximum": 1000, "default": 1}
SEARCH = asked(
    "query",
    query={"type": "string", "minLength": 1, "maxLength": 20_000, "pattern": DOCUMENT["properties"]["text"]["pattern"]},
    vector=or_null(listed(BOUND | {"exclusiveMinimum": -dialects.LARGEST, "exclusiveMaximum": dialects.LARGEST})),
    mode={
        "enum": list(collections.MODES),
        "description": "hybrid where the collection has sparse vectors, else dense.",
    },
    limit={"type": "integer", "minimum": 1, "maximum": 100, "default": 10},
    fusion={"enum": list(collections.FUSIONS), "default": "rrf"},
    k={"type": "integer", "minimum": 1, "maximum": 10_000, "default": 60},
    weights=asked(dense=WEIGHT, sparse=WEIGHT),
    candidates={"type": "integer", "minimum": 1, "maximum": 500, "description": "Of each ranking, to be fused."},
    filter=or_null(FILTER),
    rerank={"type": "boolean", "default": False},
    snippet={"type": "integer", "minimum": 0, "maximum": 2000, "default": 300, "description": "Characters."},
)

# --- OpenAI's API, and its kin

WORDS = {"type": "string", "minLength": 1}
MODEL = {"type": ["string", "null"], "description": "As /v1/models lists it, or `default`: whatever is served."}
TRUNCATE = {"type": ["boolean", "null"], "description": "Cut what is too long, and tell so; else it is refused."}
TOKENS = listed({"type": "integer", "minimum": 0, "exclusiveMaximum": 1 << 31}, minItems=1)
INPUT = {
    "anyOf": [WORDS, listed({"anyOf": [WORDS, TOKENS]}, minItems=1, maxItems=embeddings.INPUTS), TOKENS],
    "description": "A text, several, or token ids where the server is a vLLM.",
}
# The gateway judges `model` and no other field: the rest goes on byte for byte, and the model says what it takes.
CHAT = {
    "type": "object",
    "description": "Whatever the serving model takes.",
    "required": ["messages"],
    "properties": {
        "model": {"type": "string", "maxLength": chat.MODEL_NAME, "description": MODEL["description"]},
        "messages": listed(
            {"type": "object", "required": ["role", "content"], "properties": {"role": STRING, "content": STRING}},
            minItems=1,
        ),
        "stream": {"type": "boolean", "default": False, "description": "Server-sent events, a token each."},
    },
}
COMPLETION = CHAT | {
    "required": ["prompt"],
    "properties": {key: CHAT["properties"][key] for key in ("model", "stream")} | {"prompt": STRING},
}
RESPONSE = CHAT | {
    "required": ["input"],
    "properties": {key: CHAT["properties"][key] for key in ("model", "stream")} | {"input": {}},
}
EMBED = {
    "type": "object",
    "required": ["input"],
    "properties": {
        "input": INPUT,
        "model": MODEL,
        "encoding_format": {"enum": ["float", "base64", None], "default": "float"},
        "dimensions": {"type": ["integer", "null"], "minimum": 1, "maximum": 65536},
        "truncate": TRUNCATE,
    },
}
SPARSE = EMBED | {
    "properties": {
        "input": {"anyOf": [WORDS, listed(WORDS, minItems=1, maxItems=embeddings.INPUTS)]},
        "model": MODEL,
        "truncate": TRUNCATE,
    }
}
PASSAGES = listed(
    {"anyOf": [STRING, {"type": "object", "required": ["text"], "properties": {"text": STRING}}]},
    minItems=1,
    maxItems=embeddings.DOCUMENTS,
)
ANY_RERANK = {
    "query": WORDS,
    "model": MODEL,
    "top_n": {"type": ["integer", "null"], "minimum": 1},
    "truncate": TRUNCATE,
    "raw_scores": {"type": ["boolean", "null"]},
}
RERANK = {
    "oneOf": [
        {
            "title": "Cohere, Jina",
            "type": "object",
            "required": ["query", "documents"],
            "properties": ANY_RERANK
            | {"documents": PASSAGES, "texts": False, "return_documents": {"type": ["boolean", "null"]}},
        },
        {
            "title": "TEI",
            "type": "object",
            "required": ["query", "texts"],
            "properties": ANY_RERANK
            | {"texts": PASSAGES, "documents": False, "return_text": {"type": ["boolean", "null"]}},
        },
    ]
}

# --- answers, by the names that the document has for them

JOB = {
    "job_id": STRING,
    "url": {"type": "string", "description": "Its page."},
    "operation": STRING,
    "variables": {"type": "object", "description": "Secrets are masked."},
    "status": {"enum": list(STATUSES)},
    "check": {"type": "boolean", "description": "It was a preview."},
    "asked_by": STRING,
    "created": EPOCH,
    "started": EPOCH,
    "ended": EPOCH,
    "seconds": NUMBER_OR_NULL,
    "result": {"type": ["object", "null"], "description": "The playbook's own; its role's README describes it."},
}
LEASE = thing(
    "holder expires seconds_left", holder=TEXT_OR_NULL, purpose=TEXT_OR_NULL, expires=EPOCH, seconds_left=COUNT
)
COUNTS = dict.fromkeys(ingest.COUNTS, COUNT)
COMPONENTS = {
    "Problem": thing(
        "type title status detail",
        type=STRING,
        title=STRING,
        status=INTEGER,
        detail={"type": "string", "description": "One plain sentence."},
        errors=listed(thing("field message", field=STRING, message=STRING)),
        job_id={"type": "string", "description": "The job that is in the way."},
        holder=TEXT_OR_NULL,
        seconds_left=COUNT,
        message={"type": "string", "description": "Below /v2/, the detail again: as Cohere's API has it."},
    )
    | {"description": "RFC 9457 problem details."},
    "Error": thing(
        "error",
        error=thing(
            "message",
            message={"type": "string", "description": "Plain sentences."},
            type=TEXT_OR_NULL,
            param={"type": ["string", "null"], "description": "The field that is wrong."},
            code={"type": ["string", "integer", "null"], "description": "A short word for a program."},
        ),
    )
    | {"description": "OpenAI's error object."},
    "Accepted": thing("job_id url", job_id=STRING, url=STRING),
    "Job": thing(" ".join(JOB), **JOB),
    "WholeJob": thing(
        " ".join(JOB),
        **JOB,
        command=STRING,
        expected_seconds=NUMBER_OR_NULL,
        phase=TEXT_OR_NULL,
        percent=NUMBER_OR_NULL,
        current_task=TEXT_OR_NULL,
        failed=listed(OBJECT),
        tasks=listed(thing("name hosts", name=STRING, seconds=NUMBER_OR_NULL, hosts=OBJECT)),
    ),
    "Lease": or_null(LEASE),
    "Model": thing(
        "id name title model status serving bytes weights complete lacking",
        id=STRING,
        name={"type": ["string", "null"], "description": "What /api/swap takes; null without a recipe."},
        title=STRING,
        model=STRING,
        repo=TEXT_OR_NULL,
        kind=STRING,
        status=STRING,
        message=TEXT_OR_NULL,
        serving=BOOLEAN,
        fits={"type": ["object", "null"]},
        bytes={"type": ["integer", "null"]},
        weights={"type": "object", "description": "By Spark."},
        complete=listed(STRING),
        lacking=listed(STRING),
    ),
    "Collection": thing(
        "name points",
        name=STRING,
        points=COUNT,
        dimensions=COUNT,
        distance=STRING,
        sparse=TEXT_OR_NULL,
        language=STRING,
        model=TEXT_OR_NULL,
        identity={"type": ["string", "null"], "description": "Tells it from others that have had its name."},
        foreign={"type": "boolean", "description": "Something else made it; it cannot be searched here."},
    ),
    "Ingest": thing(
        "id collection state percent url",
        id=STRING,
        collection=STRING,
        state={"enum": ["waiting", "running", "done", "failed", "cancelled"]},
        percent=NUMBER,
        url=STRING,
        **COUNTS,
        wrong=COUNT,
        wrong_lines=listed(thing("line reason", line=INTEGER, reason=STRING)),
        message=TEXT_OR_NULL,
        identity={"type": ["string", "null"], "description": "The collection's."},
        resumable={"type": "boolean", "description": "It failed, has its lines, and goes on when asked to."},
    ),
    "Put": thing(" ".join(COUNTS), **COUNTS, truncated=listed(thing("document chunk", document=STRING, chunk=INTEGER))),
    "Hits": thing(
        "collection mode reranked hits milliseconds",
        collection=STRING,
        mode=STRING,
        reranked=BOOLEAN,
        hits=listed(
            thing(
                "id score document chunk text",
                id=STRING,
                score=NUMBER,
                fused_score=NUMBER,
                document=TEXT_OR_NULL,
                chunk={"type": ["integer", "null"]},
                text=TEXT_OR_NULL,
                metadata={"type": ["object", "null"]},
                snippet=thing("text highlights", text=STRING, highlights=listed(listed(INTEGER))),
                ranks={"type": "object", "additionalProperties": thing("rank score", rank=INTEGER, score=NUMBER)},
            )
        ),
        milliseconds={"type": "object", "additionalProperties": NUMBER},
    ),
    "ModelCard": thing("id object", id=STRING, object={"const": "model"}, created=INTEGER, owned_by=STRING),
    "Embeddings": thing(
        "object data model usage",
        object={"const": "list"},
        data=listed(
            thing("index embedding", index=COUNT, embedding={"anyOf": [listed(NUMBER), STRING]}, object=STRING)
        ),
        model=STRING,
        usage=thing("prompt_tokens total_tokens", prompt_tokens=COUNT, total_tokens=COUNT),
        truncated=listed(COUNT, description="Which inputs were cut."),
    ),
    "SparseEmbeddings": thing(
        "object data model usage",
        object={"const": "list"},
        data=listed(thing("index indices values", index=COUNT, indices=listed(COUNT), values=listed(NUMBER))),
        model=STRING,
        usage=OBJECT,
    ),
    "Reranked": {
        "anyOf": [
            thing(
                "id model results",
                id=STRING,
                model=STRING,
                results=listed(thing("index relevance_score", index=COUNT, relevance_score=NUMBER)),
            ),
            listed(thing("index score", index=COUNT, score=NUMBER)),
        ],
        "description": "In the request's shape, best first.",
    },
    "Health": thing(
        "status problems serving vllm sparks lease running facts_age_seconds",
        status={"enum": ["ok", "degraded", "unknown"]},
        problems=listed(STRING),
        serving={"type": ["object", "null"]},
        vllm=thing("answers models", answers=BOOLEAN, models=listed(STRING)),
        sparks=listed(thing("host problems", host=STRING, problems={"type": "array"})),
        lease=ref("Lease"),
        running=listed(thing("job_id operation url", job_id=STRING, operation=STRING, url=STRING)),
        facts_age_seconds=NUMBER_OR_NULL,
    ),
}
