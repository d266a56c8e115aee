"""Every role's Molecule scenario, on lab hosts of its own: `molecule test`, as a person types it."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.conftest import PROJECT
from tests.lab import engine
from tests.lab.conftest import need_engine
from tests.lab.lab import Lab
from tests.support import BIN

# Each file is a group of its own: whichever worker is free takes it. This one has one lab for all of its tests.
pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("molecule")]

ROLES = sorted(folder.name for folder in (PROJECT / "roles").iterdir() if (folder / "meta").is_dir())


@pytest.fixture(scope="module")
def turn():
    """One run of Molecule at a time; what a run that was cut off left there is gone afterwards too."""
    need_engine()
    # Not the lab's own lock: that is for the commands which Molecule runs.
    with engine.turn("molecule"):
        yield
        Lab("molecule", 2, "172.31.79", PROJECT / "var/lab-molecule").down()


@pytest.mark.parametrize("role", ROLES)
def test_scenario(role, turn, tmp_path):
    kept = {key: os.environ[key] for key in ("HOME", "CI", "LAUNCHER_DIR") if key in os.environ}
    environment = kept | {"PATH": f"{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    environment |= {"LC_ALL": "C.UTF-8", "MOLECULE_EPHEMERAL_DIRECTORY": str(tmp_path), "NO_COLOR": "1"}
    # Hosts that are put back are as good as new ones: only the last scenario takes them down, as each does by hand.
    whole = role in ("demo_spark", ROLES[-1])
    done = subprocess.run(
        [BIN / "molecule", "test", *([] if whole else ["--destroy=never"])],
        cwd=PROJECT / "roles" / role,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    # Each step of the shared sequence was taken: Molecule calls a sequence without steps a success too.
    for step in ("create", "converge", "idempotence", "check", "verify", *(["destroy"] if whole else [])):
        assert f"default > {step}: Executed: Successful" in done.stdout, done.stdout[-6000:]
