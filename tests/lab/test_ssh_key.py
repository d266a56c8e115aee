"""First contact, the mesh, and what is refused: roles/ssh_key against a real sshd."""

from __future__ import annotations

import io
import json
import subprocess

import pexpect
import pytest

from tests.conftest import PROJECT
from tests.lab.lab import PASSWORD
from tests.support import BIN, Run

# Each file is a group of its own: whichever worker is free takes it, with a lab of its own.
pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("keys")]

HOME = "/home/spark/.ssh"


@pytest.fixture
def laptop(cluster, tmp_path):
    """Another controller: no key and no trusted host keys yet. Afterwards the hosts know the lab's key only."""
    lab = cluster.lab
    yield Laptop(cluster, tmp_path)
    ours = (lab.state / "id_ed25519.pub").read_text()
    for host in lab.hosts:
        lab.root(
            host, "sh", "-c", f"grep -v laptop {HOME}/authorized_keys >/tmp/kept; cat /tmp/kept >{HOME}/authorized_keys"
        )
        assert ours in lab.root(host, "cat", f"{HOME}/authorized_keys")


class Laptop:
    """Runs the playbooks with a key and known hosts of its own."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder
        self.key, self.known = folder / "keys/id_ed25519", folder / "known_hosts"
        self.key.parent.mkdir(mode=0o700)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "laptop", "-f", self.key], check=True)

    @property
    def variables(self) -> dict:
        """What makes it another machine than the one that runs the other tests."""
        where = {"ssh_key_file": str(self.key), "ansible_ssh_private_key_file": str(self.key)}
        where["ansible_ssh_common_args"] = f"-o UserKnownHostsFile={self.known} -o IdentitiesOnly=yes"
        where["ansible_control_path_dir"] = str(self.folder / "cp")
        return where | {"ssh_key_known_hosts": str(self.known)}

    def copy(self, *arguments: str, **variables) -> Run:
        """playbooks/copy_ssh_key.yml from here."""
        return self.cluster.run("copy_ssh_key", *arguments, **(self.variables | variables))

    def reasons(self, run: Run) -> list[str]:
        """Each Spark's."""
        return [row["reason"] for row in run.result["sparks"]]


def test_a_first_contact_takes_the_password_and_the_second_run_changes_nothing(laptop):
    laptop.key.unlink()
    laptop.key.with_suffix(".pub").unlink()
    preview = laptop.copy("--check", "--diff")
    assert preview.code == 0, preview.output
    assert preview.result["changed"]
    assert not laptop.key.exists()
    assert not laptop.known.exists()
    first = laptop.copy("--diff", "-vvv")
    assert first.code == 0, first.output
    assert first.result["changed"]
    assert laptop.key.stat().st_mode & 0o777 == 0o600
    text, known = laptop.key.read_text(), laptop.known.read_text()
    again = laptop.copy("--diff")
    assert (again.code, again.result["changed"]) == (0, False), again.output
    assert {host: row["changed"] for host, row in again.recap.items()} == {"spark1": 0, "spark2": 0}
    assert "--- before" not in again.output
    assert (laptop.key.read_text(), laptop.known.read_text()) == (text, known)
    for run in (preview, first, again):
        assert PASSWORD not in run.output
        assert json.dumps(PASSWORD)[1:-1] not in run.output
        assert text not in run.output
    # Named so that the fixture finds it again.
    for host in laptop.cluster.lab.hosts:
        public = laptop.key.with_suffix(".pub").read_text().split()[1]
        laptop.cluster.lab.root(host, "sed", "-i", f"s#{public} .*#{public} laptop#", f"{HOME}/authorized_keys")


def test_the_password_is_in_no_argument_list_and_no_file_of_the_job(laptop):
    hosts = json.loads((laptop.cluster.lab.inventory / "hosts.yml").read_text())
    hosts["all"]["vars"] |= laptop.variables
    inventory, state = laptop.folder / "hosts.yml", laptop.folder / "state"
    inventory.write_text(json.dumps(hosts))
    where = {"SPARK_CONTROL_STATE": str(state), "ANSIBLE_INVENTORY": str(inventory)}
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = [BIN / "spark-control", "run", "copy_ssh_key"]
    job = subprocess.Popen(command, env=laptop.cluster.environment | where, cwd=PROJECT, **quiet)
    seen = []
    while job.poll() is None:
        seen += subprocess.run(
            ["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    output = job.stdout.read()
    assert job.returncode == 0, output
    assert any("UserKnownHostsFile=/" in line and "PubkeyAuthentication=no" in line for line in seen)
    assert not [line for line in seen if PASSWORD in line]
    assert PASSWORD not in output
    left = [path for path in state.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert left == []
    assert list(state.glob("jobs/*/result.json"))


def test_a_wrong_or_missing_password_is_said_and_nothing_is_pinned(laptop):
    wrong = laptop.copy(ssh_key_password="wrong")
    assert wrong.code != 0
    assert laptop.reasons(wrong) == ["password_refused"] * 2, wrong.output
    assert "spark1 did not accept the password of spark." in wrong.result["message"]
    missing = laptop.copy(ssh_key_password="")
    assert missing.code != 0
    assert laptop.reasons(missing) == ["password_needed"] * 2, missing.output
    assert not laptop.known.exists()


def test_the_prompt_asks_once_and_shows_nothing(laptop):
    command = laptop.cluster.lab.ansible("copy_ssh_key", **(laptop.variables | {"ssh_key_password": ""}))
    terminal = pexpect.spawn(command[0], command[1:], env=laptop.cluster.environment, cwd=PROJECT, timeout=60)
    shown = io.BytesIO()
    terminal.logfile_read = shown
    terminal.expect("it is not shown")
    assert terminal.waitnoecho(20)
    terminal.sendline(PASSWORD)
    terminal.expect(pexpect.EOF)
    terminal.close()
    output = shown.getvalue()
    assert terminal.exitstatus == 0, output
    assert PASSWORD.encode() not in output
    assert b"This machine's key is on spark1 now." in output


def test_another_host_key_than_the_trusted_one_is_refused(laptop):
    assert laptop.copy().code == 0
    other = laptop.folder / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    stranger = " ".join(other.with_suffix(".pub").read_text().split()[:2])
    laptop.known.write_text("".join(f"{address} {stranger}\n" for address in laptop.cluster.lab.hosts.values()))
    refused = laptop.copy()
    assert refused.code != 0
    assert laptop.reasons(refused) == ["host_key"] * 2, refused.output
    assert "spark1 shows another host key than the one that is trusted" in refused.result["message"], refused.output
    forget = f"ssh-keygen -R {laptop.cluster.lab.head} -f {laptop.known}"
    assert forget in refused.result["message"], refused.output
    swap = laptop.cluster.swap("demo-small", **laptop.variables)
    assert swap.code != 0
    assert swap.result["reason"] == "unreachable", swap.output
    for address in laptop.cluster.lab.hosts.values():
        subprocess.run(["ssh-keygen", "-R", address, "-f", laptop.known], capture_output=True, check=True)
    assert laptop.copy().code == 0


def test_a_fingerprint_that_was_read_off_the_screen_is_held_against_the_host(laptop):
    lab = laptop.cluster.lab
    shown = lab.root("spark1", "ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key.pub").split()[1]
    both = laptop.copy(ssh_key_fingerprint=shown)
    assert laptop.reasons(both) == ["", "host_key"], both.output
    assert "Nothing was sent to it." in both.result["message"]
    assert len(laptop.known.read_text().splitlines()) == 1


def test_the_head_reaches_its_workers_and_keeps_the_key_it_has(cluster):
    lab = cluster.lab
    before = lab.root("spark1", "sh", "-c", f"sha256sum {HOME}/id_ed25519; stat -c %a {HOME}/id_ed25519")
    assert before.split()[-1] == "600"
    again = cluster.run("mesh_ssh_keys", "--diff")
    assert (again.code, again.result["changed"]) == (0, False), again.output
    assert "--- before" not in again.output
    assert {host: row["changed"] for host, row in again.recap.items()} == {"spark1": 0, "spark2": 0}
    lab.root("spark1", "chmod", "644", f"{HOME}/id_ed25519")
    lab.root("spark1", "rm", f"{HOME}/id_ed25519.pub")
    put_right = cluster.run("mesh_ssh_keys")
    assert (put_right.code, put_right.result["changed"]) == (0, True), put_right.output
    assert lab.root("spark1", "sh", "-c", f"sha256sum {HOME}/id_ed25519; stat -c %a {HOME}/id_ed25519") == before
    assert cluster.host("spark1", "ssh", "-o", "BatchMode=yes", lab.hosts["spark2"], "hostname").stdout == "spark2\n"
    private = lab.root("spark1", "cat", f"{HOME}/id_ed25519")
    assert private not in put_right.output
    assert "PRIVATE" not in lab.root("spark2", "sh", "-c", f"cat {HOME}/*")


def test_the_heads_stale_host_key_gives_way_to_the_one_that_is_trusted(cluster):
    lab = cluster.lab
    known, worker = f"{HOME}/known_hosts", lab.hosts["spark2"]
    mine = lab.root(
        "spark1",
        "sh",
        "-c",
        "cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub",
    ).strip()
    line = f"echo 'friend,{worker} {mine}'"
    # Once hashed, once in clear.
    cluster.host("spark1", "sh", "-c", f"{line} >{known}; ssh-keygen -Hf {known}; {line} >>{known}")
    healed = cluster.run("mesh_ssh_keys", "--diff")
    assert healed.code == 0, healed.output
    assert healed.result["changed"]
    text = lab.root("spark1", "cat", known)
    assert f"friend {mine}" in text
    assert f"{worker} {mine}" not in text
    assert cluster.run("mesh_ssh_keys").result["changed"] is False


def test_a_worker_that_this_machine_does_not_trust_is_not_pinned(cluster, tmp_path):
    empty = tmp_path / "known_hosts"
    refused = cluster.run("mesh_ssh_keys", ssh_key_known_hosts=str(empty))
    assert refused.code != 0
    assert f"does not trust a host key of {cluster.lab.hosts['spark2']} yet" in refused.output, refused.output
