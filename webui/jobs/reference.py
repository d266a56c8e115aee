"""The reference page of the operations, made from the roles' argument specs: `python -m webui.jobs.reference`."""

from __future__ import annotations

from webui.jobs.catalogue import operations

HEAD = """# Operations

Made from the roles' `meta/argument_specs.yml` by `python -m webui.jobs.reference > docs/operations.md`. Ansible
validates with the same files, and so do the page, the API and `spark-control run`. Each operation runs as
`ansible-playbook playbooks/NAME.yml -e OPTION=VALUE` or `spark-control run NAME -e OPTION=VALUE`.
"""


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join([HEAD, *(section(operation) for _, operation in sorted(operations().items()))])


def section(operation) -> str:
    """One operation: what it does, and a row an option."""
    rows = [
        f"| `{name}` | {option['type']} | {default(option)} | {' '.join(option['description'].split())} |"
        for name, option in operation.options.items()
    ]
    table = ["| option | type | default | |", "|---|---|---|---|", *rows] if rows else ["It takes no options."]
    return "\n".join([f"## {operation.name}", "", " ".join(operation.about.split()), "", *table, ""])


def default(option: dict) -> str:
    """An option's default, or that it is required."""
    if option.get("required"):
        return "required"
    choices = ", ".join(f"`{choice}`" for choice in option.get("choices") or ())
    value = option.get("default")
    shown = "" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"
    return "; ".join(filter(None, [shown, f"one of {choices}" if choices else ""]))


if __name__ == "__main__":
    print(page(), end="")
