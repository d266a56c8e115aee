"""The other road: the curl line that does what a button does."""

import json
import shlex

from flask import current_app, request

JSON = "application/json"


def curl(path, data=None, *, method="POST", file=None, kind=JSON, stream=False):
    """A line for a shell. data: what is sent as JSON; file: a file's name to send instead, of that media type."""
    words = ["curl", *(["--no-buffer"] if stream else []), *(["-X", method] if method != "GET" else [])]
    line = " ".join([*words, shlex.quote(request.host_url + path)])
    if current_app.config["TOKEN"]:
        line += ' -H "Authorization: Bearer $SPARK_CONTROL_TOKEN"'
    if file is not None:
        return f"{line} -H {shlex.quote(f'Content-Type: {kind}')} --data-binary {shlex.quote('@' + file)}"
    if data is None:
        return line
    return f"{line} -H {shlex.quote(f'Content-Type: {kind}')} -d {shlex.quote(json.dumps(data, ensure_ascii=False))}"
