"""What a playbook run says of a send, to a person."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

PLUGINS = Path(__file__).parents[2] / "collections/ansible_collections/ted/distribution/plugins"


@pytest.fixture(scope="module")
def progress() -> Any:
    spec = importlib.util.spec_from_file_location("ted_progress", PLUGINS / "plugin_utils" / "progress.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def send(**told: Any) -> dict[str, Any]:
    """Return a send over two links; ``told`` is what the case is about."""
    edges = [{"sender": "hq", "receiver": "s01", "bytes": 7}, {"sender": "s01", "receiver": "e01", "bytes": 9}]
    return {
        "send": "1", "distributor": "hq", "distribution": "app", "channel": "pos", "revision": "R1", "edges": edges,
        "bytes": 16, "changed": True, "states": {"s01": "extracted", "e01": "received"},
    } | told  # fmt: skip


def test_a_table_tells_what_crossed_each_link(progress: Any) -> None:
    lines = progress.table(send())
    assert lines[0] == "app R1 on pos: 16 B over 2 links"
    assert [line.split() for line in lines[3:]] == [
        ["1", "hq", "s01", "7", "B", "extracted"],
        ["2", "s01", "e01", "9", "B", "received"],
    ]


def test_a_check_tells_who_would_be_sent_what_is_still_to_be_built(progress: Any) -> None:
    states = {"s01": "pending", "e01": "pending"}
    lines = progress.table(send(send=None, revision=None, states=states))
    assert lines[0] == "app a new revision on pos: at most 9 B over each link"
    assert [line.endswith("would be sent") for line in lines[3:]] == [True, True]


def test_a_send_in_which_nothing_moved_is_one_line(progress: Any) -> None:
    nothing = send(changed=False, bytes=0, edges=[edge | {"bytes": 0} for edge in send()["edges"]])
    assert progress.table(nothing) == ["app R1 on pos: nothing to send, everybody has it"]
    late = nothing | {"states": {"s01": "extracted", "e01": "pending"}, "incomplete": ["e01"]}
    assert progress.table(late)[3:] != []
