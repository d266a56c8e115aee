"""What the templates show, made from Facts: the serving sentence, what is wrong, a row per Spark."""

from dataclasses import dataclass, field

from webui.core import words

STALE = 600  # seconds after which facts about the Sparks are called old


@dataclass(frozen=True)
class Notice:
    """A line under the serving sentence. state: good|attention|bad|plain; link: (href, text).

    since: epoch; "for 3 min", or with `past` "3 min ago".
    """

    state: str
    text: str
    todo: str = ""
    since: float | None = None
    link: tuple | None = None
    past: bool = True


@dataclass(frozen=True)
class Serving:
    """The biggest sentence: lead ("Serving", "Nothing is serving"), title, details, and whether it answers."""

    lead: str
    title: str = ""
    model: str = ""
    details: tuple = ()
    since: float | None = None
    state: str = "plain"


@dataclass(frozen=True)
class Bar:
    """Memory of a Spark: parts [(class, word, bytes, x %, width %)] that fill the bar from the left."""

    parts: list
    total: int
    used: int


@dataclass(frozen=True)
class Spark:
    name: str
    address: str | None
    known: bool
    reachable: bool
    head: bool = False
    bar: Bar | None = None
    numbers: list = field(default_factory=list)  # (term, value, state)
    problems: list = field(default_factory=list)


def served_title(facts):
    """(title, name, mode words) of what the jobs say is serving, or of what vLLM itself names."""
    serving, live = facts.serving, facts.live
    if between(facts):
        return None, None
    if serving:
        same = not live.answers or not live.models or serving.get("served_name") in (None, *live.models)
        if same:
            return serving.get("title") or serving.get("model") or serving.get("served_name"), serving
    if live.answers and live.models:
        return live.models[0], None
    return None, None


def between(facts):
    """The running job that has taken the old model away already, or None: then nothing serves and nothing is wrong."""
    silent = facts.live.at and not facts.live.answers and not facts.old
    return next((job for job in facts.running if silent and job.operation in ("swap", "stop_model")), None)


def serving(facts):
    """The Serving sentence."""
    title, known = served_title(facts)
    live = facts.live
    if job := between(facts):
        old = (facts.serving or {}).get("title")
        if job.operation == "stop_model":
            return Serving("Stopping", old or "the model")
        model = job.variables.get("model")
        details = (f"in place of {old}",) if old and (facts.serving or {}).get("model") != model else ()
        return Serving("Starting", facts.titles.get(model, model), details=details)
    if not title:
        if facts.running:
            return Serving("Nothing is serving", details=("a job is running",))
        if facts.probe is None and not facts.serving_known:
            return Serving("What serves is not known" if facts.probe_error else "Looking at the Sparks…")
        return Serving("Nothing is serving", details=("pick a model below",) if facts.recipes else ())
    details = []
    if known:
        nodes = known.get("nodes") or []
        mode = "solo on" if known.get("mode") == "solo" or len(nodes) == 1 else "across"
        if nodes:
            details.append(f"{mode} {words.together(nodes)}")
    else:
        details.append("started outside Spark Control")
    if live.answers and not facts.old:
        idle = not live.running and not live.waiting and (live.tokens_per_second or 0) < 0.5
        if live.tokens_per_second is not None and not idle:
            details.append(f"{live.tokens_per_second:.0f} tok/s")
        if live.running is not None and idle:
            details.append("idle")
        elif live.running is not None:
            waiting = f", {live.waiting} waiting" if live.waiting else ""
            details.append(f"{live.running} in flight{waiting}")
    lead, state = ("does not answer", "bad") if live.at and not live.answers else ("Serving", "good")
    if facts.old:
        lead, state = "Last seen serving", "attention"
    return Serving(
        lead,
        title,
        (known or {}).get("model") or "",
        tuple(details),
        (known or {}).get("since"),
        state,
    )


def notices(facts, now):
    """What is wrong, worst first; a single good one when nothing is."""
    found = []
    if facts.inventory.error:
        found.append(Notice("bad", facts.inventory.error, "Correct it; this page reads it again by itself."))
    if facts.old:
        asked = "vLLM has not said how it is" if facts.live.at else "vLLM has not said yet how it is."
        found.append(Notice("attention", asked, "It is being asked.", facts.live.at or None, past=False))
    elif facts.serving and facts.live.at and not facts.live.answers and not facts.running:
        found.append(
            Notice(
                "bad",
                "Nothing comes back over HTTP.",
                "Its log on the head Spark says why; starting it again may help.",
                facts.live.since,
                past=False,
            )
        )
    for spark in (facts.probe or {}).get("sparks") or []:
        found += [
            Notice("bad", f"{spark['host']}{' ' if text.startswith('cannot') else ': '}{text}")
            for text in spark_problems(spark)
        ]
    found += _last_job(facts, now)
    if facts.lease and not facts.running:
        purpose = f" for {facts.lease['purpose']}" if facts.lease.get("purpose") else ""
        left = words.duration(facts.lease["expires"] - now)
        found.append(
            Notice(
                "attention",
                f"The GPUs are reserved by {facts.lease.get('holder')}{purpose}, {left} left.",
                "Nobody else can swap until then.",
            )
        )
    if facts.probe_error and not facts.looking:
        found.append(
            Notice(
                "attention",
                f"The last look at the Sparks failed. {words.sentence(facts.probe_error)}",
                "",
                facts.probed,
            )
        )
    elif facts.probed and now - facts.probed > STALE and not facts.looking:
        found.append(
            Notice(
                "attention", "Nobody has looked at the Sparks for a while.", "Look again to renew them.", facts.probed
            )
        )
    if found:
        return found
    if facts.probe is None:
        return [
            Notice(
                "plain",
                "The first look at the Sparks takes a few seconds."
                if facts.looking
                else "Nobody has looked at the Sparks yet.",
            )
        ]
    return [Notice("good", "All well.")]


def _last_job(facts, now):
    """The last change of the cluster, if it failed within a day and nothing has gone well since."""
    job = facts.last
    if not job or job.status not in ("failed", "interrupted") or now - (job.ended or 0) > 86400 or facts.running:
        return []
    if job.operation == "gpu_lease" or (job.result or {}).get("outcome") == "refused":
        return []
    name = words.name_of(job.operation, job.variables, facts.titles)
    text = (job.result or {}).get("message") or f"{name}: {job.status}"
    state = "attention" if facts.serving else "bad"
    return [Notice(state, words.sentence(text), "", job.ended, (f"/jobs/{job.id}", "See what happened"))]


def spark_problems(spark):
    """Plain sentences about what is wrong with one Spark of a probe."""
    if not spark.get("reachable"):
        return [words.sentence(f"cannot be reached: {spark.get('error') or 'no answer'}")]
    found = []
    docker, launcher, disk = (spark.get(key) or {} for key in ("docker", "launcher", "disk"))
    gpu, container = spark.get("gpu") or {}, spark.get("container") or {}
    if docker.get("ok") is False:
        found.append(words.sentence(f"docker does not answer: {docker.get('error') or 'no reason given'}"))
    if launcher.get("present") is False:
        found.append(f"the launcher is missing in {launcher.get('path')}.")
    if disk.get("total") and disk["free"] / disk["total"] < 0.05:
        found.append(f"the disk is nearly full: {words.size(disk['free'])} free.")
    if (gpu.get("temperature") or 0) >= 90:
        found.append(f"the GPU is very hot: {gpu['temperature']:.0f} °C.")
    if spark.get("warning"):
        found.append(f"it {spark['warning']}")
    if container.get("running") and container.get("serving_process") is False and not container.get("ray"):
        found.append(f"the container {container.get('name')} is up, but no model runs in it.")
    return found


def sparks(facts):
    """A row per Spark: the inventory's, in its order, then any other that the probe knows."""
    probed = {spark["host"]: spark for spark in (facts.probe or {}).get("sparks") or []}
    head = (facts.probe or {}).get("head") or (facts.inventory.head.name if facts.inventory.head else None)
    names = [host.name for host in facts.inventory.sparks]
    names += [name for name in probed if name not in names and not names]
    rows = []
    for name in names:
        spark, host = probed.get(name), facts.inventory.hosts.get(name)
        address = host.address if host else (spark or {}).get("address")
        if spark is None:
            rows.append(Spark(name, address, False, False, name == head))
            continue
        rows.append(
            Spark(
                name,
                address,
                True,
                bool(spark.get("reachable")),
                name == head,
                _bar(spark),
                _numbers(spark),
                spark_problems(spark),
            )
        )
    return rows


def _bar(spark):
    memory = spark.get("memory") or {}
    total = memory.get("total")
    if not total or not spark.get("reachable"):
        return None
    free = min(memory.get("available") or 0, total)
    model = min(memory.get("model") or 0, total - free)
    parts, left = [], 0.0
    for cls, word, count in (
        ("model", "model", model),
        ("other", "other", total - free - model),
        ("free", "free", free),
    ):
        width = 100 * count / total
        parts.append((cls, word, count, f"{left:.2f}", f"{width:.2f}"))
        left += width
    return Bar(parts, total, total - free)


def _numbers(spark):
    found = []
    gpu, disk = spark.get("gpu") or {}, spark.get("disk") or {}
    if gpu.get("utilization") is not None:
        found.append(("GPU", f"{gpu['utilization']:.0f} %", ""))
    if gpu.get("temperature") is not None:
        hot = gpu["temperature"]
        found.append(("Temperature", f"{hot:.0f} °C", "bad" if hot >= 90 else "attention" if hot >= 80 else ""))
    if gpu.get("power") is not None:
        found.append(("Power", f"{gpu['power']:.0f} W", ""))
    if disk.get("total"):
        full = 100 * (1 - disk["free"] / disk["total"])
        found.append(("Disk", f"{full:.0f} % full", "bad" if full > 95 else "attention" if full > 90 else ""))
    return found
