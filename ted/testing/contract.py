"""The contract suite as pytest tests: one for each promise.

``pytest --ted-type NAME`` collects this file. A package's own tests may have it too::

    from ted.testing.contract import suite

    test_contract = suite("notes")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ted.testing.promise import BrokenPromiseError, put_to_the_test
from ted.testing.promises import PROMISES


def suite(type_name: str, *, without: tuple[str, ...] = ()) -> Callable[..., None]:
    """Return a test function with one case for each promise of a type.

    Args:
        type_name: The type, as inventories write it.
        without: Promises that are left out.
    """

    @pytest.mark.parametrize("promise", [name for name in PROMISES if name not in without])
    def test_keeps_its_promise(promise: str) -> None:
        _told(type_name, promise)

    return test_keeps_its_promise


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make the cases of the types that the command line names."""
    if "ted_promise" in metafunc.fixturenames:
        cases = [(name, promise) for name in metafunc.config.getoption("ted_types") for promise in PROMISES]
        metafunc.parametrize(("ted_type", "ted_promise"), cases, ids=["-".join(case) for case in cases])


def test_promise(ted_type: Any, ted_promise: Any) -> None:
    """A type keeps a promise."""
    _told(ted_type, ted_promise)


def _told(type_name: str, promise: str) -> None:
    """Put a promise to the test; one that is broken is told without the lines of the suite."""
    broken = None
    try:
        put_to_the_test(type_name, promise)
    except BrokenPromiseError as error:
        broken = str(error)
    if broken is not None:
        pytest.fail(broken, pytrace=False)
