"""`spark-control`: run an operation as a job, look at jobs, end one, serve the page."""

import argparse
import json
import os
import shutil
import sys
import textwrap
import time

RUN_HELP = """\
Runs playbooks/OPERATION.yml as a job: it is in the history, on the page and can be cancelled from anywhere.
In a terminal Ansible's output is shown as it comes; Ctrl-C cancels, a second one without waiting.
Exit code: 0 when it succeeded, 1 when it did not, 2 when the arguments are wrong."""


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _main(argv)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="spark-control", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands)
    run = _add_run(commands, wants_help=argv[:1] == ["run"] and not {"-h", "--help"}.isdisjoint(argv))
    _add_jobs(commands)
    if argv[:1] == ["run"] and not {"-h", "--help"}.isdisjoint(argv):
        return _run_help(run, argv[1:])
    args = parser.parse_args(argv)
    return args.act(args)


def _add_serve(commands) -> None:
    serve = commands.add_parser("serve", help="serve the page", description="Serve the page and the JSON twin.")
    serve.add_argument("--host", default="0.0.0.0", help="address to listen on (default: every one, %(default)s)")
    serve.add_argument("--port", type=int, default=9999, help="port to listen on (default: %(default)s)")
    serve.set_defaults(act=_serve)


def _add_run(commands, wants_help: bool) -> argparse.ArgumentParser:
    run = commands.add_parser(
        "run",
        help="run an operation",
        description=RUN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument(
        "operation", metavar="OPERATION", help="a playbook's name; `run OPERATION --help` shows its options"
    )
    run.add_argument(
        "-e",
        "--extra-vars",
        dest="variables",
        action="append",
        default=[],
        metavar="KEY=VALUE|@FILE",
        help="an option of the operation, or a YAML or JSON file of them; repeatable. A secret belongs in "
        "a file: everybody on this machine can read a command line",
    )
    run.add_argument("--check", action="store_true", help="a preview: change nothing, say what would change")
    run.add_argument("--diff", action="store_true", help="show differences")
    run.add_argument(
        "--asked-by", default="terminal", metavar="WHO", help="who asks, for the history (default: terminal)"
    )
    run.add_argument("--background", action="store_true", help="housekeeping: shown in no list unless asked for")
    run.add_argument("--job-id", help=argparse.SUPPRESS)  # a folder that the web server has laid
    run.add_argument("--lock", type=int, help=argparse.SUPPRESS)  # and the descriptors of its held lock
    run.add_argument("--variables", dest="held", type=int, help=argparse.SUPPRESS)  # and of its variables
    run.set_defaults(act=_run)
    return run


def _add_jobs(commands) -> None:
    jobs = commands.add_parser("jobs", help="list jobs, or show one", description="List the newest jobs, or show one.")
    jobs.add_argument("job", nargs="?", metavar="ID", help="show this job")
    jobs.add_argument("--json", action="store_true", help="as JSON")
    jobs.add_argument("--all", action="store_true", help="every job that is kept, background ones as well")
    jobs.set_defaults(act=_jobs)
    cancel = commands.add_parser(
        "cancel", help="end a running job", description="End a running job and tidy up after it."
    )
    cancel.add_argument("job", metavar="ID", help="the job, as `spark-control jobs` shows it")
    cancel.set_defaults(act=_cancel)


def _store():
    from webui.jobs import JobStore, project_folder, state_folder

    return JobStore(state_folder(), project_folder())


def _serve(args) -> int:
    from webui import serve
    from webui.jobs import state_folder

    return serve.main(args.host, args.port, state_folder()) or 0


def _run(args) -> int:
    from webui.jobs import extra
    from webui.jobs.supervisor import Supervisor

    store = _store()
    if args.job_id:
        job, lock = store.get(args.job_id), args.lock
        if not job or lock is None or args.held is None:
            return _complain(f"There is no job {args.job_id} to take up.")
        variables = extra.take(args.held)
    else:
        try:
            job, lock, variables = store.create(
                args.operation,
                _variables(args.variables),
                check=args.check,
                diff=args.diff,
                asked_by=args.asked_by,
                background=args.background,
            )
        except ValueError as error:
            for line in _lines(error):
                _complain(line)
            return 2
    live = not args.job_id
    found = Supervisor(store, job, lock, variables, live=live).run()
    status = job.status
    if live:
        print(f"\n{found['message']}\nJob {job.id}: {status} after {_length(job.seconds)}.", flush=True)
    return 0 if status == "successful" else 1


def _lines(error: ValueError) -> list[str]:
    from webui.jobs import InvalidVariables

    if isinstance(error, InvalidVariables):
        return [f"{item['field']}: {item['message']}" for item in error.errors]
    return [str(error)]


def _variables(given: list[str]) -> dict:
    """-e values, as ansible-playbook takes them: key=value, @file or a JSON object. Raises ValueError."""
    variables: dict = {}
    for text in given:
        if text.startswith("@"):
            variables |= _mapping(_file(text[1:]), f"The file {text[1:]}")
        elif text.lstrip().startswith("{"):
            variables |= _mapping(text, "The value of -e")
        elif "=" in text and (name := text.split("=", 1)[0].strip()).isidentifier():
            variables[name] = text.split("=", 1)[1]
        else:
            raise ValueError(f"-e {text.split('=')[0]}: expected KEY=VALUE, @FILE or a JSON object.")
    return variables


def _file(path: str) -> str:
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeError) as error:
        raise ValueError(f"The file {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _mapping(text: str, what: str) -> dict:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"{what} is not valid YAML or JSON.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what} must hold a mapping of options to values.")
    return value


def _run_help(run: argparse.ArgumentParser, words: list[str]) -> int:
    from webui.jobs import operations

    known = operations()
    chosen = next((known[word] for word in words if word in known), None)
    width = min(100, shutil.get_terminal_size().columns)
    if chosen is None:
        run.print_help()
        print("\noperations:")
        for operation in known.values():
            print(_entry(operation.name, operation.description, width))
        return 0
    print(f"usage: spark-control run {chosen.name} [-e KEY=VALUE ...] [--check] [--diff]\n")
    print(textwrap.fill(chosen.about or chosen.description, width))
    if chosen.options:
        print("\noptions, each as -e NAME=VALUE:")
    for name, option in chosen.options.items():
        kind = option["type"] + (f" of {option['elements']}" if option["elements"] else "")
        notes = [kind]
        if option["required"]:
            notes.append("required")
        elif option["default"] is not None:
            notes.append(f"default {json.dumps(option['default'])}")
        if option["choices"]:
            notes.append("one of " + ", ".join(map(str, option["choices"])))
        if option["secret"]:
            notes.append("secret: give it in a file, -e @FILE")
        print(_entry(name, f"({'; '.join(notes)}) {option['description']}".strip(), width))
    return 0


def _entry(name: str, text: str, width: int) -> str:
    indent = " " * 24
    head = f"  {name:<22}" if len(name) < 22 else f"  {name}\n{indent}"
    return head + textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent)[24:]


def _jobs(args) -> int:
    store = _store()
    if args.job:
        return _job(store, args)
    jobs = store.list(limit=10_000 if args.all else 20, background=args.all)
    if args.json:
        print(json.dumps([_as_json(job) for job in jobs], indent=2))
        return 0
    if not jobs:
        print("No jobs yet.")
        return 0
    rows = [("ID", "OPERATION", "STATUS", "WHEN", "TOOK", "CHANGED")]
    for job in jobs:
        what = " ".join(filter(None, [job.operation, str(job.variables.get("model") or ""), "(check)" * job.check]))
        changed = {None: "", True: "yes", False: "no"}[job.changed]
        rows.append((job.id, what, job.status, _when(job.created), _length(job.seconds), changed))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _job(store, args) -> int:
    job = store.get(args.job)
    if not job:
        return _complain(f"There is no job {args.job[:64]}.")
    if args.json:
        print(json.dumps(_as_json(job), indent=2))
        return 0
    print(f"{job.operation}  {job.status}, asked for by {job.asked_by or 'nobody known'}")
    print(f"  when       {_when(job.created)}")
    print(f"  took       {_length(job.seconds)}" + ("" if job.finished else " so far"))
    for name, value in job.variables.items():
        print(f"  {name:<10} {value if isinstance(value, str) else json.dumps(value)}")
    print(f"  same as    {job.command}")
    print(f"  folder     {job.dir}")
    found = job.result
    if found:
        print(f"\n{found.get('message') or ''}".rstrip())
    elif task := job.view().current_task:
        print(f"\nNow: {task}")
    return 0


def _cancel(args) -> int:
    store = _store()
    job = store.get(args.job)
    if not job:
        return _complain(f"There is no job {args.job[:64]}.")
    if not store.cancel(job.id, by="terminal"):
        print(f"{job.operation} has ended already: {job.status}.")
        return 1
    print("Cancelling.", flush=True)
    while not job.finished:
        time.sleep(0.1)
    print((job.result or {}).get("message") or job.status)
    return 0


def _as_json(job) -> dict:
    keys = (
        "id",
        "operation",
        "variables",
        "status",
        "created",
        "started",
        "ended",
        "seconds",
        "changed",
        "check",
    )
    return {key: getattr(job, key) for key in (*keys, "background", "asked_by", "command", "result")}


def _when(epoch: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch))


def _length(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _complain(message: str) -> int:
    print(f"spark-control: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
