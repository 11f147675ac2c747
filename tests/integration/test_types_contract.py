"""Every built-in type that can work here keeps every promise of a type."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ted.plugins import KnownType, types
from ted.testing.contract import suite
from ted.testing.promises import PROMISES

pytestmark = pytest.mark.timeout(300)


def built_in() -> Iterator[KnownType]:
    """Yield the built-in types that bring a sample and can work on this machine."""
    for known in types():
        ours = getattr(known.plugin, "__name__", "").startswith("ted_plugins.")
        if ours and hasattr(known.plugin, "ted_sample") and known.info.available() is None:
            yield known


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("name", [known.info.name for known in built_in()])
def test_a_built_in_type_keeps_its_promises(name: str, promise: str) -> None:
    suite(name)(promise)


def test_the_file_type_is_among_them() -> None:
    assert "file" in [known.info.name for known in built_in()]
