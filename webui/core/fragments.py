"""A part of a page for htmx, or a whole page: who asks, and how either is led on."""

from flask import make_response, redirect, request


def asked():
    """Whether htmx asks, which takes a part of a page. For its history it wants the whole page."""
    htmx = getattr(request, "htmx", None)  # a request that is refused early has none yet
    return bool(htmx) and not htmx.history_restore_request


def lead(address):
    """To another page after a change: htmx by its header, a browser by 303."""
    if not asked():
        return redirect(address, 303)
    response = make_response("", 204)
    response.headers["HX-Redirect"] = address
    return response
