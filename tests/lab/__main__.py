"""`python -m tests.lab up|down|status`: lab Sparks for a person to play with."""

from __future__ import annotations

import argparse
import sys
import time

from tests.conftest import PROJECT
from tests.lab.engine import LabError
from tests.lab.lab import Lab

# Each lab has a network of its own, so that one for a person, one for the tests and one for Molecule fit side by side.
NETWORKS = {"lab": "172.31.77", "test": "172.31.78", "molecule": "172.31.79"}


def main() -> int:
    """Do what was asked; 1 where it could not be done."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("action", choices=["up", "down", "status"])
    parser.add_argument("--sparks", type=int, default=2, help="how many hosts")
    parser.add_argument(
        "--launcher", default="september", help="october, september, january, or a folder of the real project"
    )
    parser.add_argument("--name", choices=NETWORKS, default="lab", help="which lab")
    parser.add_argument("--load-seconds", type=float, default=2.0, help="how long a model takes to load")
    parser.add_argument("--no-keys", action="store_true", help="do not run the playbooks that install the SSH keys")
    parser.add_argument("--fresh", action="store_true", help="leave nothing of what was run on hosts that are up")
    wanted = parser.parse_args()
    state = PROJECT / "var" / ("lab" if wanted.name == "lab" else f"lab-{wanted.name}")
    lab = Lab(wanted.name, wanted.sparks, NETWORKS[wanted.name], state, wanted.launcher, wanted.load_seconds)
    began = time.monotonic()
    try:
        with lab.held():
            if wanted.action == "up":
                lab.up()
                if wanted.fresh:
                    lab.freshen()
                lab.disconnect() if wanted.no_keys else lab.connect()
            elif wanted.action == "down":
                lab.down()
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    if wanted.action in ("up", "status"):
        for row in lab.status():
            well = ", ".join(f"{key} {'yes' if row[key] else 'no'}" for key in ("container", "ssh", "docker"))
            print(f"{row['host']}  {row['address']}  {well}")
    if wanted.action == "up":
        print(f"Up after {time.monotonic() - began:.0f} s. Use it with ANSIBLE_INVENTORY={lab.inventory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
