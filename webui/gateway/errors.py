"""Refusals of the gateway in the shape of OpenAI's API: {"error": {"message", "type", "param", "code"}}.

Source: https://platform.openai.com/docs/guides/error-codes, and what the `openai` package reads of it.
"""

from flask import Response, json, request

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    431: "invalid_request_error",
    429: "rate_limit_error",
    502: "upstream_error",
    503: "service_unavailable",
    504: "upstream_timeout",
}


class Refused(Exception):
    """A request that the gateway answers itself.

    status: HTTP status; message: plain sentences; code: OpenAI's short word for a program; param: the field that is
    wrong; retry_after: seconds until it is worth another try, or None; more: further members of the error object.
    """

    def __init__(self, status, message, *, code=None, param=None, retry_after=None, **more):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after, self.more = retry_after, more

    @property
    def headers(self):
        return {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}


def body(status, message, *, code=None, param=None, **more):
    """The error object, as a dict."""
    kind = TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code, **more}}


def respond(refused):
    """The response for a Refused."""
    text = json.dumps(body(refused.status, refused.message, code=refused.code, param=refused.param, **refused.more))
    return Response(text + "\n", refused.status, headers=refused.headers, mimetype="application/json")


def from_problem(problem):
    """The same for a refusal of the guards that every request passes (host, origin, token, size)."""
    code = {401: "invalid_api_key", 404: "unknown_url", 413: "request_too_large"}.get(problem.status)
    response = respond(Refused(problem.status, problem.detail, code=code))
    response.headers.extend(problem.headers)
    return response


def is_openai(path):
    """Whether errors have OpenAI's shape there."""
    return path.startswith("/v1/")


def speaks_openai():
    """Whether this request's errors have OpenAI's shape."""
    return is_openai(request.path)
