"""Every built-in type keeps every promise of a type."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ted.plugins import KnownType, types
from ted.testing.contract import suite
from ted.testing.promises import PROMISES

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


def built_in() -> Iterator[KnownType]:
    """Yield the built-in types."""
    for known in types():
        if getattr(known.plugin, "__name__", "").startswith("ted_plugins."):
            yield known


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("name", [known.info.name for known in built_in()])
def test_a_built_in_type_keeps_its_promises(name: str, promise: str) -> None:
    suite(name)(promise)


def test_all_of_them_are_put_to_the_test_and_none_is_left_out_for_want_of_a_program() -> None:
    assert [known.info.name for known in built_in()] == ["deb", "desktop", "file", "ftp", "http", "rpm"]
    assert {known.info.name: known.info.available() for known in built_in()} == dict.fromkeys(
        ["deb", "desktop", "file", "ftp", "http", "rpm"]
    ), "scripts/test-packages installs what they need"
