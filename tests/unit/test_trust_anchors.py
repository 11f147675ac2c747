"""A root that is held gives way only to one that its own keys signed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ted.errors import TrustError, UntrustedDistributorError
from ted.trust.anchors import TrustStore
from ted.trust.catalog import Catalog


def catalog(directory: Path, name: str = "hq") -> Catalog:
    made = Catalog(directory / "var" / name / ".catalog", directory / "keys")
    made.create(name)
    return made


def test_a_stranger_of_the_same_name_does_not_replace_the_root_that_is_held(tmp_path: Path) -> None:
    ours, strangers = catalog(tmp_path / "ours"), catalog(tmp_path / "strangers")
    store = TrustStore(tmp_path / "trust")
    assert store.import_root(ours.root_bytes()).changed
    with pytest.raises(UntrustedDistributorError, match="another identity"):
        store.import_root(strangers.root_bytes())
    assert not store.import_root(ours.root_bytes()).changed
    assert store.import_root(strangers.root_bytes(), force=True).changed


def test_a_rotated_root_takes_the_place_of_its_former_one(tmp_path: Path) -> None:
    ours = catalog(tmp_path / "ours")
    store = TrustStore(tmp_path / "trust")
    store.import_root(ours.root_bytes())
    ours.rotate("root")
    assert store.import_root(ours.root_bytes()).changed


@pytest.mark.parametrize("data", [b'{"some": "JSON"}', b"[]", b"no JSON"])
def test_what_is_no_root_at_all_is_said_to_be_none(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(TrustError, match=r"^mine\.json: not a root that holds: it is no root metadata$"):
        TrustStore(tmp_path / "trust").import_root(data, source="mine.json")


@pytest.mark.parametrize("damage", [b"{}", b"no JSON", b"of another"])
def test_a_damaged_root_is_named_and_gives_way_to_whoever_insists(tmp_path: Path, damage: bytes) -> None:
    ours, store = catalog(tmp_path / "ours"), TrustStore(tmp_path / "trust")
    store.import_root(ours.root_bytes())
    held = store.path("hq")
    damaged = catalog(tmp_path / "others", "north").root_bytes() if damage == b"of another" else damage
    held.write_bytes(damaged)
    with pytest.raises(TrustError) as caught:
        store.import_root(ours.root_bytes())
    assert str(held) in caught.value.message
    assert caught.value.hint is not None
    assert "--force" in caught.value.hint
    assert held.read_bytes() == damaged
    assert store.import_root(ours.root_bytes(), force=True, check=True).changed
    assert held.read_bytes() == damaged
    assert store.import_root(ours.root_bytes(), force=True).changed
    assert held.read_bytes() == ours.root_bytes().strip()
