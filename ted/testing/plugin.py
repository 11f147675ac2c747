"""The pytest plugin: ``--ted-type NAME``, and fixtures for the tests of a type.

It comes with ted, so every pytest in an environment of ted loads it: it imports nothing of ted until it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ted.testing import Bench, Distributor, HostileTarget, Subscriber, Tree


def pytest_addoption(parser: pytest.Parser) -> None:
    """Know ``--ted-type``."""
    group = parser.getgroup("ted", "distribution types of ted")
    group.addoption(
        "--ted-type", dest="ted_types", action="append", default=[], metavar="NAME",
        help="put the distribution type NAME to the test: the contract suite; may be given more than once",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Collect the contract suite, alone unless paths are named as well."""
    if not config.getoption("ted_types"):
        return
    contract = str(Path(__file__).with_name("contract.py"))
    named = config.args_source == pytest.Config.ArgsSource.ARGS
    config.args[:] = [*config.args, contract] if named else [contract]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse a type that is not known here, before anything is collected."""
    for name in session.config.getoption("ted_types"):
        from ted.errors import TedError
        from ted.plugins import type_named

        try:
            type_named(name)
        except TedError as error:
            hint = f" ({error.hint})" if error.hint else ""
            raise pytest.UsageError(f"--ted-type: {error.message}{hint}") from None


@pytest.fixture
def ted_bench() -> Iterator[Bench]:
    """A bench: directories for sources and a target, all watched."""
    from ted.testing.bench import new_bench

    with new_bench() as bench:
        yield bench


@pytest.fixture
def ted_distributor(ted_bench: Bench, request: pytest.FixtureRequest) -> Distributor:
    """A Distributor of the type that the test module's fixture ``ted_type`` names."""
    from ted.testing.machines import Distributor

    return Distributor(ted_bench.base / "machines", request.getfixturevalue("ted_type"))


@pytest.fixture
def ted_subscriber(ted_bench: Bench, ted_distributor: Distributor) -> Subscriber:
    """A Subscriber of ``ted_distributor``, whose ``%DEST_VOLUME%`` is the bench's target."""
    from ted.testing.machines import Subscriber

    return Subscriber(ted_bench.base / "machines", ted_distributor, {"DEST_VOLUME": str(ted_bench.target)})


@pytest.fixture
def ted_tree(ted_bench: Bench) -> Tree:
    """A Distributor and a Subscriber with real keys and catalogs."""
    from ted.testing.tree import Tree

    return Tree(ted_bench.base / "tree", variables={"DEST_VOLUME": str(ted_bench.target)})


@pytest.fixture
def ted_hostile_target(tmp_path: Path) -> HostileTarget:
    """A target in which links and files of others can be planted."""
    from ted.testing.hostile import HostileTarget

    return HostileTarget(tmp_path / "hostile")
