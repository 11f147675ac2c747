"""How soon an agent's threads hand the interpreter over."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ted.agent.service import hand_over_in_time
from ted.topology.model import OutputRates


@pytest.fixture(autouse=True)
def interval_s() -> Iterator[float]:
    before_s = sys.getswitchinterval()
    yield before_s
    sys.setswitchinterval(before_s)


def test_threads_hand_over_sooner_while_there_are_rates_to_keep(interval_s: float) -> None:
    for rates, expected_s in ((OutputRates(low=100_000), 0.0005), (OutputRates(), interval_s)):
        hand_over_in_time(cast("Any", SimpleNamespace(output_rates=rates)))
        assert sys.getswitchinterval() == pytest.approx(expected_s)
