"""What a Spark's kernel and docker daemon do unasked: memory comes back when a process ends, a container whose PID 1
ended goes, a log line gets its time.

One process a simulated host, five looks a second. `docker` also looks at each call, so nothing depends on this one
being quick.
"""

import contextlib
import fcntl
import os
import signal
import sys
import time

import sim_containers
from sim_host import ENV_HOST, ENV_ROOT, Host

INTERVAL = 0.2


def main(host_folder, _program, _arguments):
    host = Host(host_folder)
    with open(host.path("hostd.lock"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        signal.signal(signal.SIGTERM, lambda *_unused: sys.exit(0))
        while os.path.exists(host.path("host.json")):
            with contextlib.suppress(OSError, ValueError):
                for container in sim_containers.containers(host):
                    sim_containers.note_log_time(container)
                sim_containers.reap(host)
                host.refresh_memory()
            time.sleep(INTERVAL)
    return 0


def running(host):
    """Does this host's daemon run?"""
    with open(host.path("hostd.lock"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def start(host, python=None):
    """Start the daemon in a session of its own, unless it runs. Returns whether it was started."""
    import subprocess

    if running(host):
        return False
    subprocess.Popen(
        [python or sys.executable, "-SE", os.path.join(host.root, "lib", "run.py"), host.folder, "hostd"],
        env={"PATH": "/usr/bin:/bin", ENV_HOST: host.folder, ENV_ROOT: host.root},
        cwd=host.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 10
    while not running(host) and time.monotonic() < deadline:
        time.sleep(0.02)
    return True
