"""What every launch-cluster.sh carries unharmed from a plan: the patterns of names, and the quoting of a word.

Python standard library only: it runs on the Spark (spark_launcher) and where a recipe is read.
"""

from __future__ import annotations

import re

# Every launcher keeps `-e` and VLLM_SPARK_EXTRA_DOCKER_ARGS in one unquoted string that bash splits and an ssh shell
# reads again, so only characters that mean themselves may go there.
CARRIED = re.compile(r"[A-Za-z0-9_./:=,+@%-]*")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
IMAGE = re.compile(
    r"(?:(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]*")
# A folder that docker mounts: docker splits such an argument at colons, so a path has none.
MOUNT = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9_.=+@%-]+)+")
MOD = re.compile(r"(?!-)[A-Za-z0-9_.+-]+(?:/[A-Za-z0-9_.+-]+)*")


def quote(value: str) -> str:
    """One word of bash that is this value, on one line, so that a launcher that edits lines leaves it whole."""
    if value and CARRIED.fullmatch(value):
        return value
    return "'" + value.replace("'", "'\\''").replace("\n", "'$'\\n''") + "'"
