"""What the page's sentences say, from facts alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from webui.cluster import Inventory
from webui.core import overview
from webui.watch import Facts, Live


def facts(operation=None, answers=False, **variables) -> Facts:
    """Qwen serves by the last probe; `operation` runs; vLLM answers or not."""
    serving = {
        "model": "qwen",
        "title": "Qwen",
        "served_name": "qwen",
        "mode": "solo",
        "nodes": ["spark1"],
        "since": 1.0,
    }
    recipes = [{"name": "qwen", "title": "Qwen"}, {"name": "gemma", "title": "Gemma 4"}]
    running = (SimpleNamespace(operation=operation, variables=variables),) if operation else ()
    live = Live(at=1.0, answers=answers, models=["qwen"] if answers else [])
    probe = {"sparks": [], "recipes": recipes, "serving": serving}
    return Facts(
        at=2.0, inventory=Inventory(), probe=probe, serving=serving, serving_known=True, live=live, running=running
    )


@pytest.mark.parametrize(
    ("known", "lead", "title"),
    [
        (facts(), "does not answer", "Qwen"),
        (facts(answers=True), "Serving", "Qwen"),
        (facts("swap", answers=True, model="gemma"), "Serving", "Qwen"),
        (facts("swap", model="gemma"), "Starting", "Gemma 4"),
        (facts("stop_model"), "Stopping", "Qwen"),
        (facts("gpu_lease"), "does not answer", "Qwen"),
    ],
    ids=["silent", "well", "not yet stopped", "between two models", "being stopped", "another job"],
)
def test_the_biggest_sentence(known, lead, title):
    told = overview.serving(known)
    assert (told.lead, told.title) == (lead, title)


def test_between_two_models_none_is_marked_as_serving_and_nothing_is_wrong():
    known = facts("swap", model="gemma")
    assert overview.serving(known).details == ("in place of Qwen",)
    assert overview.served_title(known) == (None, None)
    assert [notice.state for notice in overview.notices(known, 3.0)] == ["good"]
