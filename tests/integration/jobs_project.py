"""A project folder of its own for the jobs' tests: small playbooks, run for real by ansible-playbook."""

import json
import os
from pathlib import Path

from tests.support import wait_for
from webui.jobs import Job, JobStore

FILES = {
    "ansible.cfg": """
        [defaults]
        inventory = hosts
        roles_path = roles
        stdout_callback = default
        show_custom_stats = true
        """,
    "hosts": """
        localhost ansible_connection=local ansible_python_interpreter={{ansible_playbook_python}}
        gone ansible_host=127.0.0.1 ansible_port=1 ansible_ssh_common_args='-o ConnectTimeout=1 -o BatchMode=yes'
        """,
    "playbooks/empty.yml": """
        - name: Do nothing
          hosts: localhost
          gather_facts: false
          tasks: []
        """,
    "playbooks/swap.yml": """
        - name: Swap the model
          hosts: localhost
          gather_facts: false
          tasks:
            - name: Swap
              ansible.builtin.import_role:
                name: model
                tasks_from: swap
        """,
    # One task that lasts until its gate file appears, with a process of its own that ignores TERM.
    "playbooks/long.yml": """
        - name: Take long
          hosts: localhost
          gather_facts: false
          tasks:
            - name: Wait for the gate
              ansible.builtin.import_role:
                name: model
                tasks_from: long
        """,
    "playbooks/tidy_long.yml": """
        - name: Tidy up
          hosts: localhost
          gather_facts: false
          tasks:
            - name: Put things away
              ansible.builtin.copy:
                dest: "{{ gate }}.tidied"
                content: "{{ spark_control_job }}"
                mode: "0600"
            - name: Report
              ansible.builtin.set_stats:
                data:
                  result: {operation: long, ok: true, changed: true, message: "Put away."}
        """,
    "playbooks/broken.yml": """
        - name: Fail
          hosts: localhost
          gather_facts: false
          tasks:
            - name: Look for the moon
              ansible.builtin.fail:
                msg: The moon is down.
        """,
    "playbooks/absent.yml": """
        - name: Ask who is not there
          hosts: gone
          gather_facts: false
          tasks:
            - name: Knock
              ansible.builtin.ping:
        """,
    "playbooks/unreadable.yml": """
        - name: Not Ansible
          hosts: localhost
          no_such_keyword: 1
        """,
    "playbooks/many.yml": """
        - name: Say much
          hosts: localhost
          gather_facts: false
          tasks:
            - name: Say a word
              ansible.builtin.debug:
                msg: "{{ item }}"
              loop: "{{ range(20) | list }}"
            - name: Say too much
              ansible.builtin.debug:
                msg: "{{ 'x' * 800000 }}"
        """,
    "roles/model/meta/argument_specs.yml": """
        argument_specs:
          swap:
            short_description: Swap the model
            options:
              model: {type: str, required: true, description: The model by name.}
              token: {type: str, no_log: true, description: A key that nobody may see.}
              count: {type: int, default: 3}
              mode: {type: str, choices: [solo, cluster]}
              folder: {type: path}
              nodes: {type: list, elements: str}
          long:
            short_description: Take long
            options:
              gate: {type: str, required: true}
              token: {type: str, no_log: true, description: A key that nobody may see.}
        """,
    "roles/model/tasks/swap.yml": """
        - name: Show the model
          ansible.builtin.debug:
            msg: "{{ model }} {{ token | default('') }} {{ spark_control_job }} {{ spark_control_dead_jobs | length }}"
        - name: Write it down
          ansible.builtin.command:
            cmd: env
          register: env
          changed_when: true
        - name: Report
          ansible.builtin.set_stats:
            data:
              result:
                operation: swap
                ok: true
                changed: true
                message: "{{ model }} is serving."
                dead: "{{ spark_control_dead_jobs }}"
                said: "{{ token | default('') }}"
                env: "{{ env.stdout_lines }}"
        """,
    "roles/model/tasks/long.yml": """
        - name: Wait for the gate
          ansible.builtin.shell:
            cmd: "trap '' TERM; touch {{ gate }}.waiting; until test -e {{ gate }}; do sleep 0.05; done"
          changed_when: true
        """,
}


def lay(folder: Path) -> JobStore:
    """Write the project into `folder`; returns the store over it and a state folder beside it."""
    for name, text in FILES.items():
        path = folder / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.strip("\n").splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        path.write_text("\n".join(line[indent:] for line in lines) + "\n")
    return JobStore(folder / "state", folder / "project")


def ended(job: Job, seconds: float = 30.0) -> Job:
    """Wait until a job has come to its end."""
    wait_for(lambda: job.finished, seconds, f"the end of {job.id}")
    return job


def whole(folder: Path) -> str:
    """Everything that stands in a folder's files, as one text."""
    return "\n".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def command_lines() -> str:
    """The command lines of every process on this machine, as `ps` shows them."""
    lines = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            lines.append(Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(lines)


def job_file(job: Job, name: str = "job.json") -> dict:
    """One of a job's JSON files."""
    return json.loads((job.dir / name).read_text())
