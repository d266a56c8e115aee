"""What the simulated server asks of its container, inside a real one: every path is already its own."""

from __future__ import annotations

import os


class Container:
    """The real container that this process is in."""

    def __init__(self, host, container_id):
        self.host, self.id = host, container_id

    def path(self, *parts):
        return os.path.join("/tmp", *parts)

    def host_path(self, path):
        return path

    def untranslate(self, text):
        return text
