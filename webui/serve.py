"""Serve the pages, the JSON twin and the gateway: gunicorn, one process, 448 threads (made as they are needed)."""

import errno
import logging
import os
import resource
import socket
import sys

from webui import arrivals, worker

# 128 open pages, 192 requests through the gateway, 64 long bodies that arrive, and some to answer everybody else.
THREADS = 448
FILES = 4096  # open at once: a connection is one, and so is each that the gateway opens for it
PORT = 9999


def main(host="0.0.0.0", port=PORT, state_dir=None, *, access_log=False, config=None):
    """Serve until SIGTERM or SIGINT. Returns never; exits 1 with a plain sentence when the port is taken."""
    from webui import guard

    guard.rules(guard.from_environment() | (config or {}))  # what is wrong with them is told now, and once
    listener = listen(host, port)
    more_files()
    from gunicorn.app.base import BaseApplication

    class Worker(worker.PollingWorker):
        """Ends its streams when it is told to stop, so that an open page does not hold it up."""

        def handle_exit(self, sig, frame):
            extensions = getattr(self.wsgi, "extensions", {})
            if "streams" in extensions:
                extensions["streams"].closing.set()
                extensions["hub"].wake()
            if "gateway" in extensions:
                extensions["gateway"].close()
            super().handle_exit(sig, frame)

        handle_quit = handle_exit

    class Server(BaseApplication):
        def load_config(self):
            settings = {
                "bind": f"fd://{listener.fileno()}",
                "worker_class": Worker,
                "workers": 1,
                "threads": THREADS,
                "graceful_timeout": 1,
                "timeout": 60,
                "accesslog": "-" if access_log else None,
                "loglevel": "warning",
                "limit_request_line": arrivals.LINE,
                "forwarder_headers": "",  # no header of a caller's is a path of ours
                "proc_name": "spark-control",
                "control_socket_disable": True,
            }
            for key, value in settings.items():
                self.cfg.set(key, value)

        def load(self):
            # In the worker: threads don't survive a fork.
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
            logging.getLogger("httpx").setLevel(logging.WARNING)
            from webui.app import create_app

            app = create_app({"STATE_DIR": state_dir, **(config or {})} if state_dir else config)
            app.extensions["jobs"].reconcile()
            app.extensions["cluster"].start()
            app.extensions["search"].ingests.resume()
            return app

    where = f"http://{'127.0.0.1' if host in ('0.0.0.0', '') else host}:{listener.getsockname()[1]}"
    print(f"Spark Control is on {where}", flush=True)
    Server().run()


def more_files():
    """Let this process have FILES open at once, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def listen(host, port):
    """A listening socket that gunicorn inherits, bound here so that a taken port is told in plain words."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            other = f"spark-control serve --port {port + 1}"
            sys.exit(f"Port {port} is in use by another program. Stop that one, or choose another: {other}")
        reason = os.strerror(error.errno) if error.errno else error
        sys.exit(f"Spark Control cannot listen on {host}, port {port}: {reason}.")
    listener.listen(512)
    return listener
