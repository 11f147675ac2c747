"""Fixtures of all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet import CountingProxy, Fleet

LONGEST = (
    "test_transfer_kill.py", "test_lab_trees.py", "test_ansible_playbooks.py", "test_transfer_tiers.py",
    "test_ansible_modules.py", "test_lab_priorities.py", "test_transfer_pacing.py", "test_transfer_patches.py",
    "test_mutants.py", "test_lab_systemd.py", "test_types_contract.py", "test_packages_playbooks.py", "test_demo.py",
)  # fmt: skip
LEFT_OUT = pytest.StashKey[int]()


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes longest; leave the lab out where this is not root, and say so."""
    first = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path.name, len(first)))
    if os.geteuid() == 0:
        return
    lab = [item for item in items if item.get_closest_marker("lab")]
    if lab:
        items[:] = [item for item in items if item not in lab]
        config.hook.pytest_deselected(items=lab)
        config.stash[LEFT_OUT] = len(lab)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say loudly what was left out."""
    if count := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"LEFT OUT: {count} lab tests need root: sudo make lab-test", red=True)
