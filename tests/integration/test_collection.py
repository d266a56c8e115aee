"""A playbook of the collection needs no folder, no ansible.cfg and no word of where its roles and plugins are."""

from __future__ import annotations

import subprocess

from tests.conftest import PROJECT
from tests.support import BIN


def from_the_root(cluster, playbook: str, *arguments: str) -> subprocess.CompletedProcess:
    """ansible-playbook in `/`, where no ansible.cfg is."""
    command = [BIN / "ansible-playbook", PROJECT / "playbooks" / f"{playbook}.yml", *arguments]
    return subprocess.run(command, env=cluster.environment, cwd="/", capture_output=True, text=True, check=False)


def test_a_swap_from_another_folder_ends_in_its_sentence(cluster):
    preview = from_the_root(cluster, "swap", "-e", "model=demo-small", "--check")
    assert preview.returncode == 0, preview.stdout + preview.stderr
    assert preview.stdout.splitlines()[-1].startswith("Demo: small starts on spark1"), preview.stdout
    assert cluster.models() == []
    done = from_the_root(cluster, "swap", "-e", "model=demo-small")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("Demo: small serves on spark1"), done.stdout
    assert cluster.models() == ["demo-small"]


def test_a_refusal_is_the_last_line_too(cluster):
    done = from_the_root(cluster, "swap", "-e", "model=nobody-knows")
    assert done.returncode != 0
    assert done.stdout.splitlines()[-1].startswith("There is no recipe named nobody-knows."), done.stdout
