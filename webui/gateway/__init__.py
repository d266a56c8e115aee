"""One address for chat, embeddings, rerank and search: relays to the inventory's services, with caps and errors."""

import logging

from flask import Response, request

from webui.gateway import chat, embeddings, errors, metrics, relay, search
from webui.gateway.errors import Refused
from webui.gateway.relay import Gateway

log = logging.getLogger("spark-control.gateway")


def register(app, otherwise):
    """Add /v1 and /metrics to the app; app.extensions["gateway"] is its Gateway.

    otherwise: makes the response of a Refused for an address that does not speak OpenAI's API.
    """

    def answer(refused):
        metrics.refused(request.endpoint, refused.status)
        told = relay.request_id(), request.method, request.endpoint, refused.status, refused.code
        log.info("%s %s %s refused=%d %s", *told)
        response = errors.respond(refused) if errors.speaks_openai() else otherwise(refused)
        response.headers["X-Request-Id"] = relay.request_id()
        return response

    app.extensions["gateway"] = Gateway(app.extensions["cluster"], app.extensions["jobs"])
    app.extensions["embedders"] = embeddings.Embedders(app)
    app.extensions["search"] = search.Engine(app)
    app.register_error_handler(Refused, answer)
    app.register_error_handler(relay.HungUp, lambda _error: Response(status=499))
    for blueprint in (chat.api, embeddings.api, metrics.api):
        app.register_blueprint(blueprint)
