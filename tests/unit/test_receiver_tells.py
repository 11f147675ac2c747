"""How often a receiver reports how far it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ted.agent import receiver
from ted.agent.receiver import _Transfer


def test_a_transfer_is_told_soon_at_first_and_then_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert told_at_s == pytest.approx([0, 2, 5, 9.5, 16.25, 26.25, 36.25, 46.25], abs=0.6)
