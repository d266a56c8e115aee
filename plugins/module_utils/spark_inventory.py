"""Where a person's own things are saved: beside the inventory in use, where that is one file that a person wrote."""

from __future__ import annotations

import os

STATIC = (".yml", ".yaml", ".json", ".ini", ".toml")
WAY_OUT = "Run it with one inventory file, -i FOLDER/hosts.yml, or name a folder as recipe_dirs."


class NoPlace(Exception):
    """Nothing can be saved beside the inventory in use; the text says why, and what to do."""


def folder(sources, load) -> str:
    """The folder of the one static inventory file among sources (what -i was given); raises NoPlace.

    load(path) returns the data of a YAML or JSON file and may raise anything.
    """
    sources = [str(source) for source in sources]
    if len(sources) != 1:
        told = ", ".join(sources) if sources else "none"
        raise NoPlace(
            f"It would lie beside the inventory, and there is not one in use but {len(sources)}: {told}. {WAY_OUT}"
        )
    source = sources[0]
    if "," in source:
        raise NoPlace(f"It would lie beside the inventory, and the one in use is a list of hosts, no file. {WAY_OUT}")
    if os.path.isdir(source):
        # Ansible reads every file below an inventory folder, and would take what is saved there for inventory.
        raise NoPlace(f"It would lie beside the inventory, and the one in use is a folder, {source}. {WAY_OUT}")
    if not os.path.isfile(source):
        raise NoPlace(f"It would lie beside the inventory, and {source} is no file. {WAY_OUT}")
    if _dynamic(source, load):
        raise NoPlace(
            f"It would lie beside the inventory, and the one in use is made by a program, {source}. {WAY_OUT}"
        )
    return os.path.dirname(os.path.abspath(source))


def _dynamic(path, load):
    """Whether a script or a plugin's configuration; Ansible runs any executable file, whatever is in it."""
    with open(path, "rb") as file:
        shebang = file.read(2) == b"#!"
    if shebang or (os.access(path, os.X_OK) and not path.endswith(STATIC)):
        return True
    if not path.endswith((".yml", ".yaml")):
        return False
    try:
        data = load(path)
    except Exception:  # an error of Ansible's own; it has read the file by then, so it is no plugin's
        return False
    return isinstance(data, dict) and bool(data.get("plugin"))
