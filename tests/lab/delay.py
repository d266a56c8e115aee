"""An ssh ProxyCommand with a slow link in it: `python delay.py MILLISECONDS HOST PORT`, half of the time each way.

For machines whose kernel has no `tc netem`. The bandwidth stays; each piece of data comes later.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time


def relay(read, write, seconds: float) -> None:
    """Pass on what `read` gives, each piece `seconds` later, until it gives nothing."""
    pieces: queue.Queue = queue.Queue()

    def deliver() -> None:
        while True:
            due, data = pieces.get()
            time.sleep(max(0.0, due - time.monotonic()))
            if not data:
                os._exit(0)
            write(data)

    threading.Thread(target=deliver, daemon=True).start()
    while True:
        data = read(65536)
        pieces.put((time.monotonic() + seconds, data))
        if not data:
            threading.Event().wait()


def main() -> None:
    """Relay standard input and output to HOST."""
    seconds = float(sys.argv[1]) / 2000
    far = socket.create_connection((sys.argv[2], int(sys.argv[3])), 10)
    far.settimeout(None)
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    there = threading.Thread(target=relay, args=(lambda size: os.read(0, size), far.sendall, seconds), daemon=True)
    there.start()
    relay(far.recv, lambda data: os.write(1, data), seconds)


if __name__ == "__main__":
    main()
