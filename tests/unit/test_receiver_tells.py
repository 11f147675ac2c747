"""How often a receiver reports how far it is, and how long silence is no failure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ted.agent import receiver
from ted.agent.node import Node
from ted.agent.receiver import _Transfer


def test_a_transfer_is_told_soon_at_first_and_then_every_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, told_at_s = 1000.0, []
    monkeypatch.setattr(receiver, "time", SimpleNamespace(monotonic=lambda: now_s))
    journal = SimpleNamespace(report=lambda *_args, **_more: told_at_s.append(now_s - 1000))
    anything: Any = SimpleNamespace()
    node: Any = SimpleNamespace(journal=journal)

    transfer = _Transfer(node, ("hq", "app", "r"), anything, anything, anything, bytes_done=0)
    transfer._tell(force=True)
    for _ in range(500):
        now_s += 0.1
        transfer._tell()
    assert told_at_s[:6] == pytest.approx([0, 2, 5, 9.5, 14.5, 19.5], abs=0.35)
    assert len(told_at_s) == 12


@pytest.mark.parametrize(("retry_for", "timeout", "silent_for_s"), [(1800, 300, 3900), (1, 2, 15)])
def test_nobody_is_given_up_who_is_only_not_told_of(retry_for: float, timeout: float, silent_for_s: float) -> None:
    node: Any = SimpleNamespace(config=SimpleNamespace(retry_for=retry_for, timeout=timeout))
    fget: Any = Node.silent_for_s
    assert fget.fget(node) == silent_for_s
