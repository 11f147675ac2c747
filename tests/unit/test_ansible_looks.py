"""When a task looks at a send: often at first, and seldom where nobody sees a line redrawn."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2] / "collections"
ACTION = ROOT / "ansible_collections/ted/distribution/plugins/action/send.py"


class FakeTime:
    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, pause_s: float) -> None:
        self.now_s += pause_s


@pytest.fixture
def action(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    spec = importlib.util.spec_from_file_location("ted_send_action", ACTION)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "time", FakeTime())
    monkeypatch.setattr(module.display, "display", lambda *_, **__: None)
    return module


def waits_of(action: Any, monkeypatch: pytest.MonkeyPatch, done_after_s: float, **options: Any) -> list[float]:
    """Return how long each look at a send waited that is done after so many seconds."""
    news = {"send": "1", "distribution": "app", "distributor": "hq", "channel": "pos", "revision": "R1", "edges": [],
            "states": {}, "bytes": 0}  # fmt: skip
    clock, waits = action.time, []

    def look(_self: object, _result: object, _names: object, wait_s: float) -> list[dict[str, Any]]:
        began_s = clock.now_s
        clock.now_s = min(began_s + wait_s, max(done_after_s, began_s))
        waits.append(clock.now_s - began_s)
        return [news | {"done": clock.now_s >= done_after_s}]

    monkeypatch.setattr(action.ActionModule, "_look", look)
    plugin = action.ActionModule.__new__(action.ActionModule)
    sends, trouble = plugin._follow({}, [news | {"done": False}], options)
    assert trouble is None
    assert sends[0]["done"]
    return waits


@pytest.mark.parametrize(
    ("terminal", "options", "expected"),
    [
        (True, {}, [0.5, 1, 2, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 2.5]),
        (False, {}, [0.5, 1, 2, 4, 8, 16, 20, 3.5]),
        (False, {"interval": 5}, [0.5, 1, 2, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 2.5]),
        (True, {"interval": 30}, [0.5, 1, 2, 4, 8, 16, 23.5]),
    ],
)  # fmt: skip
def test_looks_are_as_seldom_as_who_watches_can_bear_and_the_end_is_seen_at_once(
    action: Any, monkeypatch: pytest.MonkeyPatch, terminal: bool, options: dict[str, Any], expected: list[float]
) -> None:
    monkeypatch.setattr(action, "on_terminal", lambda: terminal)
    assert waits_of(action, monkeypatch, 55.0, **options) == expected
