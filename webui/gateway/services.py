"""Which services there are, from the inventory: where each listens, how long it may be silent, how much it takes.

A group that is empty or absent is a service that isn't there. Every number is a variable of the inventory (group_vars),
`gateway_<service>_in_flight` and `gateway_<service>_silence_seconds`; DEFAULTS has what holds without one.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from webui.gateway.errors import Refused

VLLM_SEQUENCES = 256  # vLLM's own --max-num-seqs where a recipe says nothing
WAITING = 2  # that may wait in vLLM's queue beyond what it runs at once
CEILING = 160  # chats in flight at most, whatever a recipe says: each holds a thread of this server


@dataclass(frozen=True)
class Service:
    """One service at one address.

    key: what it is for (chat, embeddings, …); name: what people call it; group: of the inventory; host: its name there;
    address: its IPv4 address; silence: seconds without a byte after which it is given up; cap: requests in flight.
    """

    key: str
    name: str
    group: str
    host: str
    address: str
    port: int
    silence: float
    cap: int

    @property
    def url(self):
        return f"http://{self.address}:{self.port}"

    @property
    def where(self):
        """«vLLM on spark1»"""
        return f"{self.name} on {self.host}"


# key: (name, group, variable of the port, its default, seconds of silence, requests in flight)
# A chat that does not stream is silent until its last token; a page of speech or a batch of texts takes its time too.
DEFAULTS = {
    "chat": ("vLLM", "vllm", "vllm_port", 8888, 600, None),
    "embeddings": ("the embedding server", "embeddings", "embed_port", 8080, 120, 32),
    "sparse": ("the sparse embedding server", "sparse", "sparse_port", 8081, 120, 32),
    "rerank": ("the reranker", "rerank", "rerank_port", 8082, 120, 32),
    "qdrant": ("Qdrant", "qdrant", "qdrant_port", 6333, 60, 32),
    "transcription": ("the transcription server", "parakeet", "parakeet_port", 8000, 600, 4),
    "speech": ("the speech server", "kokoro", "kokoro_port", 8880, 120, 8),
}


def find(inventory, key, sequences=None):
    """The Service of that key, or None if the inventory has none (or its name has no address).

    sequences: how many requests the model that serves runs at once, if that is known; only chat asks.
    """
    name, group, port, default, silence, cap = DEFAULTS[key]
    found = inventory.service(group, port, default)
    if not found:
        return None
    host, url = found[0]
    variables = inventory.hosts[host].variables
    if key == "chat":
        ceiling = number(variables, "gateway_chat_ceiling", CEILING, int)
        cap = min((sequences or VLLM_SEQUENCES) + WAITING, ceiling)
    try:
        address = urlsplit(url)
        where = address.hostname, address.port
    except ValueError:
        raise Refused(503, f"The inventory's {port} for {host} is no port.", code="service_unavailable") from None
    return Service(
        key=key,
        name=name,
        group=group,
        host=host,
        address=where[0],
        port=where[1],
        silence=number(variables, f"gateway_{key}_silence_seconds", silence, float),
        cap=number(variables, f"gateway_{key}_in_flight", cap, int),
    )


def number(variables, name, default, kind):
    """A positive number of the inventory; the default where it is none."""
    try:
        value = kind(variables.get(name, default))
    except (TypeError, ValueError, OverflowError):
        return default
    return value if 0 < value < 1e9 else default


def absent(key):
    """The refusal for a service that the inventory has not."""
    _, group, *_ = DEFAULTS[key]
    return Refused(
        404,
        f"There is no such service here: the inventory's group {group} has no host.",
        code="service_not_configured",
    )


def sequences(serving, swap):
    """How many requests the model that serves runs at once (--max-num-seqs), or None if nobody knows.

    serving: what serves, of the Facts; swap: the newest swap's result, whose sum knows it.
    """
    if not serving or not swap or (swap.get("serving") or {}).get("digest") != serving.get("digest"):
        return None
    counts = [row.get("sequences") for row in swap.get("arithmetic") or () if isinstance(row, dict)]
    # The sum behind a recipe that does not say counts with one.
    return next((count for count in counts if isinstance(count, int) and count > 1), None)
