"""What the launcher would say to a plan, asked of each of its shapes, and of one that cannot be asked."""

from __future__ import annotations

import os

import pytest
from ansible_collections.spark.control.plugins.module_utils import spark_launcher, spark_rehearsal

from tests.conftest import PROJECT

SHAPES = ("january", "september", "october", "mute")
MUTE = "#!/bin/bash\n[[ $1 == --help ]] && echo 'start | stop | status | exec --launch-script' && exit 1\nexit 7\n"
HEAD, WORKER = "127.0.0.1", "127.0.0.2"


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A Spark with a launcher of some shape, whose ssh gets in everywhere but at the addresses in `shut`."""
    files = PROJECT / "roles/demo_spark/files"
    folder = tmp_path / "spark/home/spark-vllm-docker"
    folder.mkdir(parents=True)
    (tmp_path / "spark/address").write_text(f"{HEAD}\n")
    program = tmp_path / "bin/ssh"
    program.parent.mkdir()
    program.write_text('#!/bin/bash\nfor word; do grep -qxF "$word" "$SHUT" && exit 255; done\nexit 0\n')
    program.chmod(0o755)
    (tmp_path / "shut").touch()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SHUT", str(tmp_path / "shut"))

    class Host:
        settings, mods, shut = folder / ".env", folder / "mods", tmp_path / "shut"

        def lay(self, shape):
            source = MUTE if shape == "mute" else (files / f"launch-cluster-{shape}.sh").read_text()
            (folder / "launcher-parts.sh").write_bytes((files / "launcher-parts.sh").read_bytes())
            (folder / "launch-cluster.sh").write_text(source)
            (folder / "launch-cluster.sh").chmod(0o755)

        def ask(self, **plan):
            found = spark_launcher.look(str(folder))
            return spark_rehearsal.rehearse(found, wanted(**plan), "vllm_node", os.environ)

    return Host()


def wanted(mode="cluster", mods=(), script=None):
    nodes = [{"host": "spark1", "address": HEAD}, {"host": "spark2", "address": WORKER}]
    return {
        "nodes": nodes if mode == "cluster" else nodes[:1],
        "mode": mode,
        "image": "vllm-node",
        "container": "vllm_node",
        "mods": list(mods),
        "env": {},
        "mounts": [],
        "argv": None if script else ["vllm", "serve", "demo/small"],
        "script": script,
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("plan", [{}, {"mode": "solo"}, {"script": "#!/bin/bash\nvllm serve demo/small\n"}])
def test_a_plan_that_starts_has_nothing_against_it(host, shape, plan):
    host.lay(shape)
    assert host.ask(**plan) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_a_worker_that_keeps_the_head_out_is_named_with_the_remedy(host, shape):
    host.lay(shape)
    host.shut.write_text(f"{WORKER}\n")
    code, message = host.ask()[0]
    assert code == "head_kept_out"
    assert "spark1 does not get in to spark2 over SSH" in message
    assert "mesh_ssh_keys.yml" in message
    assert host.ask(mode="solo") == []


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mod_that_is_not_there_or_no_mod_is_named(host, shape):
    host.lay(shape)
    code, message = host.ask(mods=["mods/fix"])[0]
    assert (code, "mods/fix is not there" in message) == ("mod_missing", True), message
    (host.mods / "fix").mkdir(parents=True)
    code, message = host.ask(mods=["mods/fix"])[0]
    assert (code, "mods/fix has no run.sh" in message) == ("mod_missing", True), message
    (host.mods / "fix/run.sh").touch()
    assert host.ask(mods=["mods/fix"]) == []


@pytest.mark.parametrize("shape", ["september", "october", "mute"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("CLUSTER_NODES=a\nETH_IF enp1s0f0np0\n", "line 2 has no equals sign"),
        ("# mine\n\n2ND=x\n", "line 3 begins with what is no name"),
        ("export ETH_IF=x\n", "line 1 begins with what is no name"),
        ("ETH_IF=x\nETH_IF=y\n", "line 2 sets ETH_IF a second time"),
        ("<<<<<<< HEAD\n", "line 1 has no equals sign"),
    ],
)
def test_settings_that_the_launcher_cannot_read_are_told_by_the_line(host, shape, text, said):
    host.lay(shape)
    host.settings.write_text(text)
    code, message = host.ask()[0]
    assert (code, said in message) == ("launcher_settings", True), message


@pytest.mark.parametrize("shape", ["september", "october", "mute"])
def test_settings_that_would_spoil_a_launch_are_told_all_at_once(host, shape):
    host.lay(shape)
    host.settings.write_text('CONTAINER_NAME=mine\nCONTAINER_NOTE="two words"\nLOCAL_IP=192.0.2.7\n')
    told = host.ask()
    assert {code for code, _message in told} == {"launcher_settings"}
    file = f"{host.settings} on spark1"
    for said in (
        f"CONTAINER_NAME=mine in {file} wins over vllm_container, which is vllm_node: take that line out",
        f"CONTAINER_NOTE in {file} has a space in its value",
        f"LOCAL_IP=192.0.2.7 in {file} is not {HEAD}",
    ):
        assert sum(message.startswith(said) for _code, message in told) == 1, told


def test_settings_that_the_launcher_reads_are_nothing_against_a_plan(host):
    host.lay("september")
    host.settings.write_text(f'# mine\n\n ETH_IF = x \nEMPTY=\nLOCAL_IP="{HEAD}"\nCONTAINER_NAME=vllm_node\n')
    assert host.ask() == []


def test_januarys_launcher_reads_no_settings(host):
    host.lay("january")
    host.settings.write_text("no line of it means anything\n")
    assert host.ask() == []


@pytest.mark.parametrize(
    ("shape", "mode", "address", "refused"),
    [
        ("september", "cluster", "192.0.2.7", True),
        ("september", "cluster", WORKER, True),
        ("september", "solo", "192.0.2.7", True),
        ("september", "solo", WORKER, False),  # an address of this machine too, which serves alone as well
        ("october", "cluster", "192.0.2.7", True),
        ("october", "solo", "192.0.2.7", False),  # there --solo is 127.0.0.1
        ("january", "cluster", "192.0.2.7", False),
    ],
)
def test_a_local_ip_of_another_network_is_told(host, shape, mode, address, refused):
    host.lay(shape)
    host.settings.write_text(f"LOCAL_IP={address}\n")
    told = host.ask(mode=mode)
    assert [code for code, _message in told] == ["launcher_settings"] * refused
    assert all(f"LOCAL_IP={address}" in message for _code, message in told)


def test_what_else_the_launcher_says_is_told_in_its_words():
    plan = wanted()
    said = "Loading …\nError: The moon is down.\n  Wait for it.\n"
    assert spark_rehearsal.explain(said, plan, "spark1") == [
        ("launcher_refuses", "The launcher on spark1 refuses it: The moon is down.")
    ]
    assert "no reason at all" in spark_rehearsal.explain("no reason at all\n", plan, "spark1")[0].message
    assert "did not say why" in spark_rehearsal.explain("", plan, "spark1")[0].message


def test_nodes_are_given_in_the_order_of_their_cables():
    ring = ["a", "c", "b", "d"]
    assert spark_launcher.in_ring_order(["a", "b", "c", "d"], ring) == ["a", "c", "b", "d"]
    assert spark_launcher.in_ring_order(["b", "a", "c", "d"], ring) == ["b", "d", "a", "c"]
    assert spark_launcher.in_ring_order(["a", "b", "x"], ring) == ["a", "b", "x"]
    assert spark_launcher.in_ring_order(["x", "a"], ring) == ["x", "a"]
    assert spark_launcher.in_ring_order(["a", "b"], []) == ["a", "b"]
