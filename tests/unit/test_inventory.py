"""What a person saves lies beside the inventory in use, where that is one file that a person wrote."""

from __future__ import annotations

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible_collections.spark.control.plugins.module_utils import spark_inventory


def folder(*sources):
    """What the task asks, with Ansible's own way of reading a file."""
    return spark_inventory.folder(sources, DataLoader().load_from_file)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hosts.yml", "all: {children: {sparks: {hosts: {spark1: {ansible_password: !vault x}}}}}\n"),
        ("hosts.yml", "# plugin: none\nall:\n  vars: {plugin: mine}\n"),
        ("hosts.yml", "not: [yaml\n"),
        ("hosts", "[sparks]\nspark1 ansible_host=192.0.2.1\n"),
        ("hosts.ini", "[plugin]\nplugin\n"),
        ("hosts.json", '{"all": {}}'),
    ],
)
def test_one_file_that_a_person_wrote(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert folder(str(path)) == str(tmp_path)


def test_on_a_disk_where_every_file_is_executable(tmp_path):
    path = tmp_path / "hosts.yml"
    path.write_text("all: {}\n")
    path.chmod(0o777)
    assert folder(str(path)) == str(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "mode"),
    [
        ("aws.yml", "plugin: amazon.aws.aws_ec2\n", 0o644),
        ("aws.yaml", "{regions: [x], 'plugin': amazon.aws.aws_ec2}", 0o644),
        ("hosts", "#!/bin/sh\necho '{}'\n", 0o755),
        ("hosts.yml", "#!/usr/bin/env python3\n", 0o755),
        ("hosts", "\x7fELF", 0o755),
    ],
)
def test_a_program_makes_the_inventory(tmp_path, name, text, mode):
    path = tmp_path / name
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(spark_inventory.NoPlace, match=f"made by a program, {path}. Run it with one inventory file"):
        folder(str(path))


def test_what_is_not_one_file(tmp_path):
    for name in ("a.yml", "b.yml"):
        (tmp_path / name).write_text("all: {}\n")
    both = str(tmp_path / "a.yml"), str(tmp_path / "b.yml")
    for sources, said in (
        (both, f"not one in use but 2: {both[0]}, {both[1]}."),
        ((), "not one in use but 0: none."),
        (("192.0.2.1,192.0.2.2",), "a list of hosts"),
        (("spark1,",), "a list of hosts"),
        ((str(tmp_path),), f"a folder, {tmp_path}."),
        ((str(tmp_path / "c.yml"),), "c.yml is no file."),
    ):
        with pytest.raises(spark_inventory.NoPlace) as refused:
            folder(*sources)
        assert said in str(refused.value)
