"""What is known of the cluster: vLLM's health over HTTP and the newest facts of the jobs, kept fresh while watched.

Nothing here changes a Spark. One background thread keeps `Cluster.facts()` fresh for as long as somebody watches; where
nobody has, `Cluster.now()` asks vLLM before a page is rendered, and waits for no more than a moment.
"""

import contextlib
import logging
import os
import re
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from webui.cluster import Inventory, read_inventory, stamp
from webui.jobs import processes

log = logging.getLogger("spark-control")
METRIC = re.compile(
    r"^vllm:(num_requests_running|num_requests_waiting|generation_tokens_total)(?:\{.*\})? ([0-9.eE+-]+)", re.M
)


@dataclass(frozen=True)
class Live:
    """vLLM as it answered over HTTP. at: epoch, 0 = never asked; since: epoch of the last change of `answers`."""

    at: float = 0.0
    since: float = 0.0
    answers: bool = False
    models: tuple = ()
    running: int | None = None
    waiting: int | None = None
    tokens_per_second: float | None = None
    tokens: float | None = None


class LivePoller:
    """Asks vLLM on the head: /health, /v1/models, /metrics. One request at a time, none more often than every 5 s."""

    EVERY = 5.0

    def __init__(self):
        self.state, self._lock, self._client = Live(), threading.Lock(), None
        self.changed = 0.0  # epoch of the last change of what serves: no older answer is of use

    def poll(self, url):
        """Ask now, unless the last answer is younger than 5 s or somebody else is asking. Returns the Live."""
        known = time.time() - self.state.at < self.EVERY and self.state.at >= self.changed
        if known or not self._lock.acquire(blocking=False):
            return self.state
        try:
            self.state = self._ask(url)
        finally:
            self._lock.release()
        return self.state

    def _ask(self, url):
        import httpx

        if self._client is None:
            self._client = httpx.Client(timeout=httpx.Timeout(2.0), trust_env=False)
        before, now = self.state, time.time()
        live = replace(before, at=now, running=None, waiting=None, tokens_per_second=None, tokens=None)
        try:
            answers = url is not None and self._client.get(f"{url}/health").status_code == 200
            if answers:
                listed = self._client.get(f"{url}/v1/models").json()
                live = replace(live, models=tuple(str(model["id"]) for model in listed["data"]))
                live = replace(live, **self._metrics(url, before, now))
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            answers = False
        since = before.since if answers == before.answers and before.at else now
        return replace(live, answers=answers, since=since, models=live.models if answers else ())

    def _metrics(self, url, before, now):
        sums = {}
        for name, value in METRIC.findall(self._client.get(f"{url}/metrics").text):
            sums[name] = sums.get(name, 0.0) + float(value)
        tokens, rate = sums.get("generation_tokens_total"), None
        if tokens is not None and before.tokens is not None and tokens >= before.tokens and now - before.at < 30:
            rate = (tokens - before.tokens) / (now - before.at)
        counts = {k: sums.get(f"num_requests_{k}") for k in ("running", "waiting")}
        return {
            "tokens": tokens,
            "tokens_per_second": rate,
            **{k: None if v is None else int(v) for k, v in counts.items()},
        }


@dataclass(frozen=True)
class Facts:
    """All a page is rendered from, as of `at` (epoch).

    probe: the last probe's result or None; probe_job: its Job; probe_error: why the newest probe gave nothing;
    looking: a probe runs now; serving, lease: from the newest job that knows; running: [Job]; last: the newest ended
    job that changes the cluster, or None; old: `live` is older than what is shown as the present may be.
    """

    at: float
    inventory: Inventory
    probe: dict | None = None
    probe_error: str | None = None
    looking: bool = False
    serving: dict | None = None
    serving_known: bool = False
    lease: dict | None = None
    live: Live = Live()
    running: tuple = ()
    last: object = None
    old: bool = False

    @property
    def recipes(self):
        return (self.probe or {}).get("recipes") or []

    @property
    def models(self):
        """The menu: a card a model, as the probe put it together (roles/weights/README.md)."""
        return (self.probe or {}).get("models") or []

    @property
    def titles(self):
        """{model name: title}"""
        return {recipe["name"]: recipe.get("title") or recipe["name"] for recipe in self.recipes}

    @property
    def probed(self):
        """Epoch of the facts about the Sparks, or None."""
        return (self.probe or {}).get("at")


class Ledger:
    """The job folders, kept in memory: a finished job never changes, so only new and unfinished ones are read."""

    def __init__(self, store):
        self.store, self._lock = store, threading.Lock()
        self._jobs, self._order, self._stamp = {}, [], None
        self._latest = {}  # operation -> (job id, result, Job)

    def jobs(self):
        """[Job] of every kind, newest first."""
        with self._lock:
            try:
                changed = os.stat(self.store.folder).st_mtime_ns
            except OSError:
                return []
            # A folder's time has the grain of a clock tick, so a young one is listed again.
            if changed != self._stamp or time.time() - changed / 1e9 < 1:
                names = sorted(os.listdir(self.store.folder), reverse=True)
                known = ((name, self._jobs.get(name) or self.store.get(name)) for name in names)
                self._jobs = {name: job for name, job in known if job}
                self._stamp, self._order = changed, list(self._jobs.values())
            return self._order

    def latest(self, operation):
        """(result, Job) of the newest finished job of the operation that tells something; kept when its folder goes.

        A probe that failed tells nothing; a preview changes nothing.
        """
        for job in self.jobs():
            if job.operation != operation or job.check or not job.finished:
                continue
            known = self._latest.get(operation)
            if known and known[0] >= job.id:
                break
            result = job.result
            if result and (operation != "probe" or result.get("sparks") is not None):
                self._latest[operation] = (job.id, result, job)
                break
        known = self._latest.get(operation)
        return known[1:] if known else None


class Cluster:
    """The newest facts, and the thread that keeps them new."""

    TICK = 0.5  # seconds between looks at the job folders while somebody watches
    FRESH = 5.0  # seconds for which an answer of vLLM is the present
    MOMENT = 0.3  # seconds that a page waits for a newer one
    PROBE_EVERY = 180
    PROBE_OLD = 120

    def __init__(self, store, project_dir, inventory=None, looks=True):
        self.store, self.project_dir, self.looks = store, Path(project_dir), looks
        self.sources = self._sources(inventory)
        self.ledger, self.live = Ledger(store), LivePoller()
        self.listeners = []  # called with the Facts after each tick
        self._inventory, self._inventory_stamp, self._inventory_checked = None, None, 0.0
        self._inventory_lock, self._facts_lock = threading.Lock(), threading.Lock()
        self._facts, self._facts_at = None, 0.0
        self._watchers, self._wake, self._thread = 0, threading.Event(), None
        self._asked, self._changing, self._recipes = False, set(), None
        self._asking, self._asking_lock = None, threading.Lock()
        self._probe_job, self._probe_started, self._probe_error = None, 0.0, None
        self._stranger = ()  # the models that answered at the last tick

    def _sources(self, inventory):
        text = inventory or "inventory/hosts.yml"
        return [self.project_dir / part.strip() for part in str(text).split(",") if part.strip()]

    # --- reading

    def inventory(self, wait=True):
        """The Inventory; read again when a file of it changed. wait=False: what is known now, an empty one at first."""
        if time.monotonic() - self._inventory_checked < 2 and self._inventory:
            return self._inventory
        if not wait and self._inventory is None:
            return Inventory()
        if not self._inventory_lock.acquire(blocking=self._inventory is None):
            return self._inventory  # somebody else reads it
        try:
            folders = [source if source.is_dir() else source.parent for source in self.sources]
            changed = stamp(folders)
            if changed != self._inventory_stamp or self._inventory is None:
                self._inventory = read_inventory(self.sources, self.project_dir)
                self._inventory_stamp = changed
            self._inventory_checked = time.monotonic()
        finally:
            self._inventory_lock.release()
        return self._inventory

    def url(self):
        """vLLM's address, "http://ip:port", or None."""
        inventory = self.inventory(wait=False)
        found = inventory.service("vllm", "vllm_port", 8888)
        return found[0][1] if found else None

    def facts(self, fresh=False):
        """The newest Facts, at most TICK seconds old; fresh=True reads the job folders now."""
        with self._facts_lock:
            if fresh or self._facts is None or time.monotonic() - self._facts_at > self.TICK * 0.8:
                self._facts, self._facts_at = self._read(), time.monotonic()
            return self._facts

    def now(self):
        """The Facts with an answer of vLLM that is at most FRESH old, and not from before the last change of ours.

        `old` if none came within a MOMENT.
        """
        facts = self.facts()
        if self._is_old(self.FRESH, facts):
            self.ask_live(self.MOMENT)
        return replace(facts, live=self.live.state, old=self._is_old(self.FRESH, facts))

    def _is_old(self, seconds, facts):
        """Whether there is a vLLM whose last answer is older than that, or than the last change of ours."""
        self.live.changed = (facts.last and facts.last.ended) or 0.0
        has_one = bool(self._inventory and self._inventory.groups.get("vllm"))
        at = self.live.state.at
        return has_one and (time.time() - at > seconds or at < self.live.changed)

    def _read(self):
        newest = {name: self.ledger.latest(name) for name in ("probe", "swap", "stop_model", "gpu_lease")}
        probe = newest["probe"][0] if newest["probe"] else None
        jobs = [job for job in self.ledger.jobs() if not (job.background or job.check or job.operation == "probe")]
        running = tuple(job for job in jobs if not job.finished)
        serving, serving_known, _ = self._newest(newest, ("probe", "swap", "stop_model"), "serving")
        lease, _, told = self._newest(newest, ("probe", "gpu_lease", "swap", "stop_model"), "lease")
        if lease:
            # `expires` is by the head's clock, which need not be ours; how long it had left is true by any clock.
            lease = lease | {"expires": told + (lease.get("seconds_left") or 0)}
            # A job of ours that has ended holds nothing, nor does such a run by hand: it was kept from giving it back.
            holder = self.store.get(lease.get("id"))
            over = bool(holder and holder.finished) or processes.is_over(lease.get("run"))
            lease = None if over or lease["expires"] <= time.time() else lease
        return Facts(
            at=time.time(),
            inventory=self.inventory(wait=False),
            probe=probe,
            probe_error=self._probe_error,
            looking=self._probe_job is not None,
            serving=serving,
            serving_known=serving_known,
            lease=lease,
            live=self.live.state,
            running=running,
            last=next((job for job in jobs if job.finished), None),
        )

    @staticmethod
    def _newest(newest, operations, key):
        """(value, known, epoch of that knowledge) of a result's key from the newest job that carries it."""
        found = None
        for operation in operations:
            pair = newest[operation]
            if not pair or key not in pair[0]:
                continue
            at = pair[0].get("at") or pair[1].ended or 0
            if found is None or at > found[0]:
                found = (at, pair[0][key])
        return (found[1], True, found[0]) if found else (None, False, 0.0)

    # --- watching

    @contextlib.contextmanager
    def watching(self):
        """While somebody looks: live numbers every 5 s, a probe every 3 minutes."""
        self._watchers += 1
        self.start()
        self._wake.set()
        try:
            yield
        finally:
            self._watchers -= 1

    def look(self):
        """Ask for a probe as soon as none runs."""
        self._asked = True
        self._wake.set()

    def wake(self):
        """Have the background thread look now: something was started."""
        self._wake.set()

    def start(self):
        """Start the background thread, once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="cluster", daemon=True)
            self._thread.start()

    def ask_live(self, wait=0.0):
        """Have vLLM asked in the background; wait up to `wait` seconds for the answer. Returns the Live.

        Whoever asks meanwhile waits for the same answer. Nothing is asked before it is known whom.
        """
        if self._inventory is None:
            return self.live.state
        with self._asking_lock:
            if self._asking is None or not self._asking.is_alive():
                self._asking = threading.Thread(target=lambda: self.live.poll(self.url()), name="live", daemon=True)
                self._asking.start()
            asking = self._asking
        asking.join(wait)
        return self.live.state

    def _run(self):
        self.inventory()
        self.ask_live()  # the first time takes longest
        while True:
            try:
                self.tick()
            except Exception:
                log.exception("looking at the cluster")
                time.sleep(5)
            self._wake.wait(self.TICK if self._watchers or self._changing or self._probe_job else 4 * self.TICK)
            self._wake.clear()

    def tick(self):
        """One look: jobs, a probe if one is due, vLLM if somebody watches; tells the listeners."""
        self.inventory()
        facts = self.facts(fresh=True)
        self._probe(facts)
        self._see_strangers(facts)
        if self._watchers and self._is_old(LivePoller.EVERY, facts):
            self.ask_live()
        # A stream of pages says so later than a page that is opened: an answer that takes its time is no news.
        facts = replace(facts, old=self._is_old(3 * self.FRESH, facts))
        for listener in self.listeners:
            listener(facts)

    def _see_strangers(self, facts):
        """Have the Sparks looked at, once, where another model answers than the jobs say: somebody else started it."""
        known, models = (facts.serving or {}).get("served_name"), self.live.state.models
        if models and known not in models and models != self._stranger and not facts.running:
            self.look()
        self._stranger = models

    def _probe(self, facts):
        """Start a probe when one is due; take up the end of the one that runs."""
        if self._probe_job:
            job = self.store.get(self._probe_job)
            if job and not job.finished and time.time() - self._probe_started < 300:
                return
            self._probe_job = None
            result = job.result if job else None
            good = bool(result) and result.get("sparks") is not None
            self._probe_error = None if good else _why(job, result)
            self._recipes = stamp((result or {}).get("recipe_dirs") or ())
            self.facts(fresh=True)
        running = {job.id for job in facts.running}
        ended, self._changing = self._changing - running, running
        # A job that changed nothing leaves what the last probe saw.
        finished = [job for job in map(self.store.get, ended) if job and job.changed is not False]
        recipes = stamp((facts.probe or {}).get("recipe_dirs") or ())
        if self._recipes is None:
            self._recipes = recipes
        age = time.time() - max(facts.probed or 0, self._probe_started)
        due = (
            self._asked
            or finished
            or recipes != self._recipes
            or (age > self.PROBE_OLD and not self._probe_started)
            or (age > self.PROBE_EVERY and self._watchers)
        )
        if due and self.looks and not facts.inventory.error:
            self._asked, self._probe_started, self._recipes = False, time.time(), recipes
            self._probe_job = self.store.start("probe", {}, background=True, asked_by="page").id


def _why(job, result):
    if result and result.get("message"):
        return result["message"]
    try:
        told = job and (job.view().failed or job.view().message)
    except Exception:
        told = None
    return str(told) if told else "The last look at the Sparks ended without a result."
