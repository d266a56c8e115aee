"""GET /metrics: what went through the gateway, in Prometheus' text format.

The labels are of a bounded number: endpoints are fixed words, and a model that none of the services has told of is
"other".
"""

from flask import Blueprint, Response, current_app
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

api = Blueprint("metrics", __name__)
MODELS = 64  # names at most; more come with years of swaps only
FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)  # seconds


class Metrics:
    """The counters of one app."""

    def __init__(self):
        self.registry, self._models = CollectorRegistry(), set()
        both = ("endpoint", "model")

        def counter(name, text, *labels):
            return Counter(f"spark_control_gateway_{name}", text, labels, registry=self.registry)

        self.requests = counter(
            "requests", "Requests that were relayed, by the status they ended with.", *both, "status"
        )
        self.refused = counter("refused", "Requests that the gateway answered itself.", "endpoint", "status")
        self.bytes = counter("bytes", "Bytes of bodies: up to the service, down to the client.", *both, "direction")
        self.tokens = counter("tokens", "Tokens, where an answer tells them.", *both, "kind")
        self.in_flight = Gauge(
            "spark_control_gateway_in_flight", "Requests in flight.", ("service",), registry=self.registry
        )
        self.first = Histogram(
            "spark_control_gateway_first_byte_seconds",
            "Seconds from a request's arrival to the first byte of its answer.",
            both,
            buckets=FIRST,
            registry=self.registry,
        )

    def knows(self, models):
        """These model names are labels from now on."""
        for name in models:
            if len(self._models) < MODELS:
                self._models.add(name)

    def label(self, model):
        """The model's name as a label."""
        return model if model in self._models else "other" if model else ""

    def exchange(self, account):
        """Count an ended exchange (relay.Account)."""
        where = account.endpoint, self.label(account.model)
        self.requests.labels(*where, str(account.status)).inc()
        self.bytes.labels(*where, "up").inc(account.up)
        self.bytes.labels(*where, "down").inc(account.down)
        for kind, count in ({} if account.again else account.tokens).items():
            self.tokens.labels(*where, kind).inc(count)
        if account.first is not None:
            self.first.labels(*where).observe(account.first)


@api.get("/metrics")
def metrics():
    """Tell the counters, for Prometheus; where a token is set, it sends it as any caller does."""
    registry = current_app.extensions["gateway"].metrics.registry
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)


def refused(endpoint, status):
    """Count a request that the gateway answered itself. endpoint: Flask's, of which there is a bounded number."""
    current_app.extensions["gateway"].metrics.refused.labels(endpoint or "", str(status)).inc()
