"""What several files here share."""

from tests.unit.web_project import web_project

__all__ = ["web_project"]
