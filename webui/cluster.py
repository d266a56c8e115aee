"""The inventory as objects: hosts, groups, service addresses. Nothing assumes two Sparks."""

import contextlib
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Host:
    """A host of the inventory: its name, its IPv4 address (None if the name does not resolve) and its groups."""

    name: str
    address: str | None
    groups: frozenset = frozenset()
    variables: dict = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Inventory:
    """The inventory: hosts {name: Host}, groups {name: (host names)}; error is a sentence when it could not be read."""

    hosts: dict = field(default_factory=dict)
    groups: dict = field(default_factory=dict)
    error: str | None = None

    @property
    def sparks(self):
        """The Sparks, in the inventory's order."""
        return [self.hosts[name] for name in self.groups.get("sparks", ())]

    @property
    def head(self):
        """The Spark that vLLM answers on: the first host of the group `vllm`; None without one."""
        names = self.groups.get("vllm", ())
        return self.hosts[names[0]] if names else None

    def service(self, group, port, default):
        """[(host name, "http://ip:port")] of a group's service; `port` is the variable that holds its port."""
        found = []
        for name in self.groups.get(group, ()):
            host = self.hosts[name]
            if host.address:
                found.append((name, f"http://{host.address}:{host.variables.get(port, default)}"))
        return found


@contextlib.contextmanager
def _configured(file):
    """Have Ansible read this configuration as it is imported; what this process starts later finds its own."""
    kept = os.environ.get("ANSIBLE_CONFIG")
    os.environ["ANSIBLE_CONFIG"] = kept or str(file)
    try:
        yield
    finally:
        if kept is None:
            del os.environ["ANSIBLE_CONFIG"]


def read_inventory(sources, project_dir):
    """The Inventory of these sources (paths), read and templated by ansible-core in this process (0.5 s at first).

    A source that cannot be read gives an Inventory with `error`, never an exception.
    """
    missing = [str(source) for source in sources if not Path(source).exists()]
    if missing:
        return Inventory(error=f"The inventory {missing[0]} does not exist.")
    try:
        with _configured(Path(project_dir) / "ansible.cfg"):
            from ansible.inventory.manager import InventoryManager
            from ansible.parsing.dataloader import DataLoader
            from ansible.plugins.loader import init_plugin_loader
            from ansible.template import Templar
            from ansible.utils.collection_loader import AnsibleCollectionConfig
            from ansible.vars.manager import VariableManager

        if not AnsibleCollectionConfig.collection_finder:
            init_plugin_loader([])
        loader = DataLoader()
        loader.set_basedir(str(project_dir))
        for source in sources:  # InventoryManager only warns of a file it cannot parse
            if Path(source).suffix in (".yml", ".yaml"):
                loader.load_from_file(str(source))
        manager = InventoryManager(loader=loader, sources=[str(source) for source in sources])
        variables = VariableManager(loader=loader, inventory=manager)
        hosts = {}
        for host in manager.get_hosts():
            known = variables.get_vars(host=host, include_hostvars=False)
            templar = Templar(loader=loader, variables=known)
            values = {}
            for key in known:
                if key == "ansible_host" or key.endswith(("_port", "_container")) or key.startswith("gateway_"):
                    values[key] = templar.template(known[key])
            address = resolve(str(values.get("ansible_host") or host.name))
            groups = frozenset(str(group.name) for group in host.get_groups())
            hosts[str(host.name)] = Host(str(host.name), address, groups, values)
        groups = {
            str(name): tuple(str(host.name) for host in group.get_hosts()) for name, group in manager.groups.items()
        }
    except Exception as error:  # ansible raises its own, YAML's and Jinja's errors here
        text = " ".join(str(getattr(error, "message", None) or error).split())
        return Inventory(error=f"The inventory cannot be read: {text[:300]}")
    if not groups.get("sparks"):
        return Inventory(hosts, groups, "The inventory has no host in the group sparks.")
    return Inventory(hosts, groups)


def resolve(name):
    """The IPv4 address of a name, or None. vLLM binds IPv4 only, and .local names may answer IPv6 first."""
    try:
        return socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
    except OSError:
        return None


def stamp(paths):
    """The newest mtime (ns) and the number of files under these paths: changes when any of them does."""
    newest, count = 0, 0
    for path in paths:
        path = Path(path)
        for item in [path, *(path.rglob("*") if path.is_dir() else ())]:
            with contextlib.suppress(OSError):
                newest = max(newest, item.stat().st_mtime_ns)
                count += 1
    return newest, count
