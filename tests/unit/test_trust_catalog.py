"""A Distributor's keys and catalog."""

from __future__ import annotations

import os
import shutil
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ted.errors import ConfigError, FormatError, RepositoryError, TrustError, UnknownNameError
from ted.trust.catalog import Catalog, Lifetimes
from ted.trust.chain import KEPT_VERSIONS, read_metadata
from ted.trust.keys import KeyStore

FIRST = "20261122T125447123456Z"
SECOND = "20261123T010203000001Z"


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    made = Catalog(tmp_path / "wd/hq/.catalog", tmp_path / "config/keys")
    made.create("hq")
    return made


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_creating_twice_changes_nothing(catalog: Catalog) -> None:
    catalog.publish("dat", {FIRST: b"one"})
    before = contents(catalog.directory), contents(catalog.keys.directory)
    assert catalog.create("hq") is False
    assert (contents(catalog.directory), contents(catalog.keys.directory)) == before


def test_private_keys_are_the_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        catalog = Catalog(tmp_path / "c", tmp_path / "keys")
        catalog.create("hq")
    finally:
        os.umask(former)
    assert mode(tmp_path / "keys") == 0o700
    keys = list((tmp_path / "keys").glob("*.pem"))
    assert {mode(path) for path in keys} == {0o600}
    assert sorted(path.name.split(".")[0] for path in keys) == ["root", "snapshot", "targets", "timestamp"]
    assert mode(tmp_path / "c/root.json") == 0o644


def test_keys_that_others_can_read_are_refused(catalog: Catalog) -> None:
    key = next(catalog.keys.directory.glob("timestamp.*.pem"))
    key.chmod(0o640)
    with pytest.raises(ConfigError, match="others may read") as caught:
        catalog.publish("dat", {FIRST: b"one"})
    assert caught.value.hint == f"chmod u=rw,go= {key}"


def test_a_key_file_that_holds_another_key_is_refused(catalog: Catalog) -> None:
    snapshot, targets = (next(catalog.keys.directory.glob(f"{role}.*")) for role in ("snapshot", "targets"))
    snapshot.write_bytes(targets.read_bytes())
    with pytest.raises(ConfigError, match="holds another key"):
        catalog.publish("dat", {FIRST: b"one"})


def test_publishing_replaces_the_whole_list_and_the_same_list_is_no_change(catalog: Catalog) -> None:
    assert catalog.publish("dat", {FIRST: b"one"}) is True
    assert catalog.publish("dat", {FIRST: b"one", SECOND: b"two"}) is True
    version = catalog.timestamp_version()
    assert catalog.publish("dat", {SECOND: b"two", FIRST: b"one"}) is False
    assert catalog.timestamp_version() == version
    assert catalog.revisions("dat") == [FIRST, SECOND]
    assert catalog.publish("dat", {SECOND: b"two"}) is True
    assert catalog.revisions("dat") == [SECOND]


def test_a_publication_touches_its_own_role_snapshot_and_timestamp_only(catalog: Catalog) -> None:
    catalog.publish("dat", {FIRST: b"one"})
    catalog.publish("pos", {FIRST: b"one"})
    before = set(contents(catalog.directory))
    catalog.publish("dat", {FIRST: b"one", SECOND: b"two"})
    assert set(contents(catalog.directory)) - before == {"2.d.dat.json", "4.snapshot.json"}


@pytest.mark.parametrize("name", ["root", "targets", "snapshot", "timestamp", "root.json", "d.dat", "a+b@c_-."])
def test_a_distribution_may_have_any_lawful_name(catalog: Catalog, name: str) -> None:
    catalog.publish("dat", {SECOND: b"other"})
    catalog.publish(name, {FIRST: b"one"})
    assert catalog.distributions() == tuple(sorted({"dat", name}))
    assert catalog.revisions(name) == [FIRST]
    assert catalog.revisions("dat") == [SECOND]


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a b", "x" * 129, "nöt", "a\n", "*"])
def test_an_unlawful_name_is_refused(catalog: Catalog, name: str) -> None:
    with pytest.raises(UnknownNameError):
        catalog.publish(name, {})


def test_a_stamp_or_record_that_is_none_is_refused(catalog: Catalog) -> None:
    with pytest.raises(FormatError, match="time stamp"):
        catalog.publish("dat", {"../../etc": b""})
    with pytest.raises(FormatError, match="1 MiB"):
        catalog.publish("dat", {FIRST: b"x" * ((1 << 20) + 1)})


def test_a_removed_distribution_can_come_back(catalog: Catalog) -> None:
    catalog.publish("dat", {FIRST: b"one"})
    assert catalog.remove("dat") is True
    assert catalog.remove("dat") is False
    assert catalog.distributions() == ()
    catalog.publish("dat", {SECOND: b"two"})
    assert catalog.revisions("dat") == [SECOND]


def test_only_the_last_few_versions_stay(catalog: Catalog) -> None:
    for number in range(12):
        catalog.publish("dat", {FIRST: bytes([number])})
    kept = [name for name in contents(catalog.directory) if name.endswith(".d.dat.json")]
    assert sorted(kept) == sorted(f"{version}.d.dat.json" for version in range(13 - KEPT_VERSIONS, 13))
    assert sum(name.endswith(".snapshot.json") for name in contents(catalog.directory)) == KEPT_VERSIONS


def test_nothing_is_renewed_before_half_of_its_life_is_gone(tmp_path: Path) -> None:
    clock = [datetime(2026, 11, 22, tzinfo=UTC)]
    catalog = Catalog(tmp_path / "c", tmp_path / "k", now=lambda: clock[0])
    catalog.create("hq")
    catalog.publish("dat", {FIRST: b"one"})
    clock[0] += timedelta(days=14)
    assert catalog.refresh_timestamp() is False
    clock[0] += timedelta(days=2)
    assert catalog.refresh_timestamp() is True
    assert catalog.refresh_timestamp() is False
    roles = {role["role"]: role for role in catalog.describe()["roles"]}
    assert roles["timestamp"]["expires_at"] == roles["snapshot"]["expires_at"] == "2027-01-07T00:00:00+00:00"
    assert roles["targets"]["expires_at"] == "2027-11-22T00:00:00+00:00"


def test_a_year_of_renewals_lets_nothing_expire_root_included(tmp_path: Path) -> None:
    clock = [datetime(2026, 11, 22, tzinfo=UTC)]
    catalog = Catalog(tmp_path / "c", tmp_path / "k", now=lambda: clock[0])
    catalog.create("hq")
    catalog.publish("dat", {FIRST: b"one"})
    for _ in range(70):
        clock[0] += timedelta(days=7)
        catalog.refresh_timestamp()
        expiries = [datetime.fromisoformat(role["expires_at"]) for role in catalog.describe()["roles"]]
        assert min(expiries) > clock[0]
    assert catalog.describe()["roles"][0]["version"] == 3


def test_an_unchanged_publication_still_renews_what_is_due(tmp_path: Path) -> None:
    clock = [datetime(2026, 11, 22, tzinfo=UTC)]
    catalog = Catalog(tmp_path / "c", tmp_path / "k", now=lambda: clock[0])
    catalog.create("hq")
    catalog.publish("dat", {FIRST: b"one"})
    version = catalog.timestamp_version()
    clock[0] += timedelta(days=40)
    assert catalog.publish("dat", {FIRST: b"one"}) is False
    assert catalog.timestamp_version() == version + 1


def test_with_the_root_key_elsewhere_all_works_but_what_needs_it(tmp_path: Path) -> None:
    clock = [datetime(2026, 11, 22, tzinfo=UTC)]
    catalog = Catalog(tmp_path / "c", tmp_path / "k", now=lambda: clock[0])
    catalog.create("hq")
    root_key = next((tmp_path / "k").glob("root.*.pem"))
    shutil.move(root_key, tmp_path / root_key.name)
    catalog.publish("dat", {FIRST: b"one"})
    catalog.rotate("dat")
    clock[0] += timedelta(days=200)
    assert catalog.refresh_timestamp() is True
    with pytest.raises(TrustError, match="private key of role root") as caught:
        catalog.rotate("timestamp")
    assert root_key.name in (caught.value.hint or "")
    assert len(KeyStore(tmp_path / "k").signers("timestamp")) == 1


def test_rotating_a_key_deletes_the_old_private_key(catalog: Catalog) -> None:
    catalog.publish("dat", {FIRST: b"one"})
    for role in ("root", "targets", "snapshot", "timestamp", "d.dat"):
        (old,) = catalog.keys.signers(role)
        keyid = catalog.rotate(role)
        (new,) = catalog.keys.signers(role)
        assert new.public_key.keyid == keyid != old.public_key.keyid
    with pytest.raises(UnknownNameError):
        catalog.rotate("nothing")


def test_another_distributors_catalog_or_one_without_keys_is_not_taken_over(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="catalog of hq, not of branch"):
        catalog.create("branch")
    with pytest.raises(ConfigError, match="keys of this catalog"):
        Catalog(catalog.directory, tmp_path / "other keys").create("hq")


def test_a_missing_or_damaged_catalog_says_what_to_do(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="no catalog") as caught:
        Catalog(tmp_path / "nothing", tmp_path / "keys").publish("dat", {})
    assert "ted keys create" in (caught.value.hint or "")
    (catalog.directory / "1.targets.json").write_bytes(b"{}")
    with pytest.raises(RepositoryError, match="damaged"):
        catalog.publish("dat", {FIRST: b"one"})


def test_lifetimes_are_parameters(tmp_path: Path) -> None:
    now = datetime(2026, 11, 22, tzinfo=UTC)
    lives = Lifetimes(timestamp=timedelta(hours=2), root=timedelta(days=9))
    catalog = Catalog(tmp_path / "c", tmp_path / "k", lifetimes=lives, now=lambda: now)
    catalog.create("hq")
    expiry = {role["role"]: role["expires_at"] for role in catalog.describe()["roles"]}
    assert expiry["timestamp"] == "2026-11-22T02:00:00+00:00"
    assert expiry["root"] == "2026-12-01T00:00:00+00:00"


@pytest.mark.parametrize(
    "name",
    ["../config/keys", "1.root.json/", "/etc/passwd", ".lock", "", "01.root.json", "0.snapshot.json",
     "1.d..x.json", "1.d.a/b.json", "1.evil.json", "snapshot.json", "1.root.json\n", "1.d.dat.json\0"],
)  # fmt: skip
def test_only_the_names_a_catalog_serves_are_ever_opened(catalog: Catalog, name: str) -> None:
    assert read_metadata(catalog.directory, name) is None


def test_a_link_in_the_catalogs_directory_is_not_followed(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (catalog.directory / "7.root.json").symlink_to(tmp_path / "secret")
    assert read_metadata(catalog.directory, "7.root.json") is None
    assert read_metadata(catalog.directory, "1.root.json") == read_metadata(catalog.directory, "root.json")
