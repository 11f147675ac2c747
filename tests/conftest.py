"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet import CountingProxy, Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Yield an empty fleet; its agents end with the test."""
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.close()


@pytest.fixture
def meter() -> Iterator[Callable[[Fleet, str], CountingProxy]]:
    """Yield a function that puts a meter before a node of a fleet: others then reach it through the meter."""
    proxies: list[CountingProxy] = []

    def put(fleet: Fleet, name: str) -> CountingProxy:
        own = fleet.hostvars[name]
        proxy = CountingProxy(own["ted_port"])
        fleet.listens[name] = own["ted_port"]
        own["ted_port"] = proxy.port
        proxies.append(proxy)
        return proxy

    yield put
    for proxy in proxies:
        proxy.close()
