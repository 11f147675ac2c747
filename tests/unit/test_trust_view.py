"""A receiver's view of a catalog, under the attacks that The Update Framework names."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ted.errors import (
    DigestMismatchError,
    MissingContentError,
    RefusedError,
    ReplayError,
    SlipError,
    TedError,
    TrustError,
    UnknownNameError,
    UnreachableError,
    UntrustedDistributorError,
)
from ted.trust import chain
from ted.trust.anchors import TrustStore
from ted.trust.catalog import Catalog, Lifetimes
from ted.trust.chain import read_metadata
from ted.trust.names import target_path, utc_now
from ted.trust.signing import SlipSigner
from ted.trust.tuf_api import TargetFile, Targets
from ted.trust.view import CatalogView, KeptChain

FIRST = "20261122T125447123456Z"
SECOND = "20261123T010203000001Z"


class Sender:
    """Serves a ``.catalog`` and the records beside it, honestly unless told otherwise."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked: list[str] = []
        self.lies: dict[str, bytes | TedError] = {}

    def fetch(self, name: str, max_bytes: int) -> bytes:
        self.asked.append(name)
        data = self.lies.get(name) or self.honest(name)
        if isinstance(data, TedError):
            raise data
        if data is None:
            raise MissingContentError(f"no {name}")
        return data[: max_bytes + 1]

    def honest(self, name: str) -> bytes | None:
        if "/" not in name:
            return read_metadata(self.directory, name)
        path = self.directory.parent / name
        return path.read_bytes() if path.is_file() else None

    def requests(self) -> list[str]:
        asked, self.asked = self.asked, []
        return asked


class Depot(Sender):
    """A Distributor with its keys."""

    def __init__(self, base: Path, name: str = "hq", **options: object) -> None:
        self.base, self.name = base, name
        self.catalog = Catalog(base / "wd" / name / ".catalog", base / "keys", **options)  # type: ignore[arg-type]
        self.catalog.create(name)
        super().__init__(self.catalog.directory)

    def publish(self, distribution: str, **records: bytes) -> None:
        named = {{"first": FIRST, "second": SECOND}[key]: data for key, data in records.items()}
        for stamp, data in named.items():
            path = self.directory.parent / target_path(distribution, stamp)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.catalog.publish(distribution, named)


class Receiver(Sender):
    """A node that trusts ``hq`` and, being a relay, serves what it received."""

    def __init__(self, base: Path, sender: Sender, root: bytes | None) -> None:
        self.base = base
        self.trust = TrustStore(base / "trust")
        if root is not None:
            self.trust.import_root(root)
        super().__init__(base / "wd/hq/.catalog")
        self.sender = sender

    def view(self, kept: KeptChain | None = None) -> CatalogView:
        return CatalogView("hq", self.trust.path("hq"), self.directory, self.sender.fetch, node="s01", kept=kept)

    def served(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.directory.iterdir() if path.is_file()}


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    made = Depot(tmp_path / "hq")
    made.publish("dat", first=b"record one")
    made.publish("pos", first=b"record of pos")
    return made


@pytest.fixture
def receiver(depot: Depot, tmp_path: Path) -> Receiver:
    made = Receiver(tmp_path / "s01", depot, depot.catalog.root_bytes())
    made.view().refresh()
    depot.requests()
    return made


# -- the normal course


def test_a_first_refresh_brings_everything_the_distributor_signed(depot: Depot, receiver: Receiver) -> None:
    view = receiver.view()
    assert view.distributions == ("dat", "pos")
    assert view.revisions("dat") == [FIRST]
    assert view.revisions("unknown") == []
    assert view.timestamp_version == depot.catalog.timestamp_version()
    assert view.record("dat", FIRST) == b"record one"
    assert depot.requests() == ["dat/" + FIRST + "/REVISION.TED"]


def test_a_refresh_with_nothing_new_asks_for_the_timestamp_only(depot: Depot, receiver: Receiver) -> None:
    before = receiver.served()
    assert receiver.view().refresh() is False
    assert depot.requests() == ["timestamp.json"]
    assert len(depot.honest("timestamp.json") or b"") < 500
    assert receiver.served() == before


def test_an_update_fetches_what_changed_and_nothing_else(depot: Depot, receiver: Receiver) -> None:
    depot.publish("dat", first=b"record one", second=b"record two")
    assert receiver.view().refresh() is True
    assert depot.requests() == ["timestamp.json", "2.root.json", "4.snapshot.json", "2.d.dat.json"]
    assert receiver.view().revisions("dat") == [FIRST, SECOND]


def test_a_removed_distribution_is_gone_from_the_view(depot: Depot, receiver: Receiver) -> None:
    depot.catalog.remove("pos")
    view = receiver.view()
    view.refresh()
    assert view.distributions == ("dat",)
    with pytest.raises(UnknownNameError, match="no revision"):
        view.record("pos", FIRST)


def test_a_relay_serves_on_exactly_what_it_verified(depot: Depot, receiver: Receiver, tmp_path: Path) -> None:
    leaf = Receiver(tmp_path / "s02", receiver, depot.catalog.root_bytes())
    leaf.view().refresh()
    depot.catalog.rotate("timestamp")
    depot.publish("dat", second=b"record two")
    for node in (receiver, leaf):
        assert node.view().refresh() is True
    assert leaf.served()["timestamp.json"] == depot.honest("timestamp.json")
    assert leaf.view().revisions("dat") == [SECOND]
    assert depot.honest("3.d.dat.json") is None
    for name in ("root.json", "1.root.json", "2.root.json", "2.d.dat.json", "1.d.pos.json"):
        assert leaf.served()[name] == depot.honest(name)


def test_a_record_kept_beside_the_catalog_is_not_fetched_again(depot: Depot, receiver: Receiver) -> None:
    path = receiver.directory.parent / target_path("dat", FIRST)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"record one")
    assert receiver.view().record("dat", FIRST) == b"record one"
    assert depot.requests() == []
    path.write_bytes(b"tampered!!")
    assert receiver.view().record("dat", FIRST) == b"record one"
    assert depot.requests() == [target_path("dat", FIRST)]


def test_a_view_without_a_sender_reads_what_is_here_even_if_it_expired(tmp_path: Path) -> None:
    depot = Depot(tmp_path / "hq", lifetimes=Lifetimes(timestamp=timedelta(seconds=2)))
    depot.publish("dat", first=b"record one")
    receiver = Receiver(tmp_path / "s01", depot, depot.catalog.root_bytes())
    receiver.view().refresh()
    time.sleep(2.1)
    alone = CatalogView("hq", receiver.trust.path("hq"), receiver.directory)
    assert alone.revisions("dat") == [FIRST]
    with pytest.raises(MissingContentError):
        alone.record("dat", FIRST)
    place = receiver.directory.parent / target_path("dat", FIRST)
    place.parent.mkdir(parents=True)
    place.write_bytes(b"tampered!!")
    with pytest.raises(DigestMismatchError, match=f"{place} is not what was signed") as caught:
        alone.record("dat", FIRST)
    assert "verify --stored --repair" in str(caught.value.hint)
    with pytest.raises(TrustError, match="expired"):
        receiver.view().refresh()


def test_the_distributor_itself_can_look_at_its_own_catalog(depot: Depot, tmp_path: Path) -> None:
    store = TrustStore(tmp_path / "trust")
    store.import_root(depot.catalog.root_bytes())
    before = set(depot.directory.iterdir())
    assert CatalogView("hq", store.path("hq"), depot.directory).record("dat", FIRST) == b"record one"
    assert set(depot.directory.iterdir()) == before


def test_nothing_received_yet_is_said_so(depot: Depot, tmp_path: Path) -> None:
    view = Receiver(tmp_path / "new", depot, depot.catalog.root_bytes()).view()
    assert view.timestamp_version == 0
    with pytest.raises(MissingContentError, match="no catalog received yet"):
        view.load()


# -- roots


def test_without_a_root_the_distributor_is_refused_by_name_and_the_mending_is_named(
    depot: Depot, tmp_path: Path
) -> None:
    view = Receiver(tmp_path / "s01", depot, None).view()
    for call in (view.refresh, view.load, lambda: view.revisions("dat")):
        with pytest.raises(UntrustedDistributorError, match="no root of Distributor hq") as caught:
            call()
        hint = caught.value.hint or ""
        assert "`ted trust import --distributor hq ROOT.json`" in hint
        assert "`ansible-playbook playbooks/install.yml --limit s01`" in hint
    assert caught.value.exit_code == 25
    assert view.timestamp_version == 0
    assert depot.requests() == []


def test_the_root_of_another_distributor_is_not_believed_under_this_name(depot: Depot, tmp_path: Path) -> None:
    other = Depot(tmp_path / "branch", "branch")
    receiver = Receiver(tmp_path / "s01", depot, None)
    receiver.trust.path("hq").parent.mkdir(parents=True)
    receiver.trust.path("hq").write_bytes(other.catalog.root_bytes())
    with pytest.raises(TrustError, match="root of branch, not of hq"):
        receiver.view().refresh()


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp", "dat"])
def test_a_changed_key_is_followed_by_whoever_trusted_the_old_root(depot: Depot, receiver: Receiver, role: str) -> None:
    depot.catalog.rotate(role)
    depot.publish("dat", second=b"record two")
    view = receiver.view()
    assert view.refresh() is True
    assert view.revisions("dat") == [SECOND]
    assert receiver.trust.read("hq") == depot.honest("1.root.json")
    assert receiver.view().refresh() is False


def test_a_trusted_root_is_verified_once_and_one_that_does_not_hold_every_time(
    depot: Depot, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[bytes] = []
    real = chain.parse_root
    monkeypatch.setattr(chain, "parse_root", lambda data: verified.append(data) or real(data))
    good = depot.catalog.root_bytes()
    forged = good.replace(b'"consistent_snapshot":true', b'"consistent_snapshot":false')
    assert forged != good
    chain.parse_anchor.cache_clear()
    assert chain.parse_anchor(good) is chain.parse_anchor(good)
    for _ in range(2):
        with pytest.raises(chain.TufError):
            chain.parse_anchor(forged)
    assert verified == [good, forged, forged]


def test_ten_changes_of_keys_are_walked_through_by_a_node_that_slept(depot: Depot, receiver: Receiver) -> None:
    for role in ("root", "timestamp", "root", "snapshot", "targets") * 2:
        depot.catalog.rotate(role)
    assert receiver.view().refresh() is True
    assert receiver.served()["root.json"] == depot.catalog.root_bytes()
    assert receiver.view().chain.root.version == 11


def test_a_child_with_an_older_root_than_its_parents_can_follow(
    depot: Depot, receiver: Receiver, tmp_path: Path
) -> None:
    old_root = depot.catalog.root_bytes()
    depot.catalog.rotate("timestamp")
    depot.catalog.rotate("root")
    relay = Receiver(tmp_path / "new relay", depot, depot.catalog.root_bytes())
    relay.view().refresh()
    leaf = Receiver(tmp_path / "old leaf", relay, old_root)
    assert leaf.view().refresh() is True
    assert leaf.view().chain.root.version == 3


def test_a_root_signed_by_itself_only_does_not_replace_the_trusted_one(
    depot: Depot, receiver: Receiver, tmp_path: Path
) -> None:
    thief = Depot(tmp_path / "thief")
    thief.catalog.rotate("root")
    depot.publish("dat", second=b"record two")
    depot.lies["2.root.json"] = thief.honest("2.root.json") or b""
    before = receiver.served()
    with pytest.raises(TrustError, match="Distributor hq did not sign"):
        receiver.view().refresh()
    assert receiver.served() == before


def test_a_newly_imported_root_wins_over_what_was_received(depot: Depot, receiver: Receiver, tmp_path: Path) -> None:
    for role in ("root", "timestamp"):
        depot.catalog.rotate(role)
    receiver.view().refresh()
    reborn = Depot(tmp_path / "reborn")
    reborn.publish("dat", second=b"a new life")
    receiver.sender = reborn
    with pytest.raises(TrustError):
        receiver.view().refresh()
    receiver.trust.import_root(reborn.catalog.root_bytes(), force=True)
    assert receiver.view().timestamp_version == 0
    assert receiver.view().refresh() is True
    assert receiver.view().revisions("dat") == [SECOND]
    assert sorted(name for name in receiver.served() if "root" in name) == ["1.root.json", "root.json"]


# -- attacks


def test_an_older_timestamp_is_a_replay(depot: Depot, receiver: Receiver) -> None:
    old = depot.honest("timestamp.json")
    assert old is not None
    depot.publish("dat", second=b"record two")
    receiver.view().refresh()
    before = receiver.served()
    depot.lies["timestamp.json"] = old
    with pytest.raises(ReplayError, match="hq: older metadata") as caught:
        receiver.view().refresh()
    assert caught.value.exit_code == 26
    assert receiver.served() == before


def test_a_replay_is_refused_even_where_the_rest_of_the_state_was_lost(depot: Depot, receiver: Receiver) -> None:
    old = depot.honest("timestamp.json")
    assert old is not None
    depot.publish("dat", second=b"record two")
    receiver.view().refresh()
    for path in receiver.directory.glob("*.snapshot.json"):
        path.unlink()
    depot.lies["timestamp.json"] = old
    with pytest.raises(ReplayError):
        receiver.view().refresh()
    depot.lies.clear()
    assert receiver.view().refresh() is True


def test_a_frozen_catalog_is_refused_once_it_expired(tmp_path: Path) -> None:
    past = Depot(tmp_path / "hq", now=lambda: utc_now() - timedelta(days=31))
    receiver = Receiver(tmp_path / "s01", past, past.catalog.root_bytes())
    with pytest.raises(TrustError, match="hq: its catalog expired") as caught:
        receiver.view().refresh()
    assert "clock" in (caught.value.hint or "")
    assert "ted keys renew" in (caught.value.hint or "")
    Catalog(past.directory, past.base / "keys").refresh_timestamp()
    assert receiver.view().refresh() is True


def test_a_root_that_expired_is_refused(tmp_path: Path) -> None:
    past = Depot(tmp_path / "hq", now=lambda: utc_now() - timedelta(days=366))
    receiver = Receiver(tmp_path / "s01", past, past.catalog.root_bytes())
    with pytest.raises(TrustError, match=r"root\.json is expired"):
        receiver.view().refresh()


def test_old_and_new_metadata_cannot_be_mixed(depot: Depot, receiver: Receiver) -> None:
    old_snapshot, old_dat = depot.honest("3.snapshot.json"), depot.honest("1.d.dat.json")
    assert old_snapshot is not None
    assert old_dat is not None
    depot.publish("dat", second=b"record two")
    before = receiver.served()
    for name, lie in (("4.snapshot.json", old_snapshot), ("2.d.dat.json", old_dat)):
        depot.lies = {name: lie}
        with pytest.raises(TrustError):
            receiver.view().refresh()
        assert receiver.served() == before
    depot.lies.clear()
    assert receiver.view().refresh() is True


@pytest.mark.parametrize("name", ["timestamp.json", "2.root.json", "4.snapshot.json", "4.targets.json", "2.d.dat.json"])
def test_endless_data_is_cut_off(depot: Depot, receiver: Receiver, name: str) -> None:
    depot.publish("dat", second=b"record two")
    depot.publish("new", first=b"so that targets change")
    depot.publish("dat", first=b"record one")
    name = {"4.snapshot.json": "6.snapshot.json", "2.d.dat.json": "3.d.dat.json"}.get(name, name)
    depot.lies[name] = bytes(20 << 20)
    before = receiver.served()
    with pytest.raises(TrustError, match=r"longer than|more data"):
        receiver.view().refresh()
    assert receiver.served() == before


def test_an_endless_record_is_cut_off(depot: Depot, receiver: Receiver) -> None:
    depot.lies[target_path("dat", FIRST)] = bytes(20 << 20)
    with pytest.raises(TrustError, match="longer than"):
        receiver.view().record("dat", FIRST)


def test_another_distributors_signatures_are_not_this_ones(depot: Depot, receiver: Receiver, tmp_path: Path) -> None:
    thief = Depot(tmp_path / "thief")
    for number in range(9):
        thief.publish("dat", first=bytes([number]))
    receiver.sender = thief
    with pytest.raises(TrustError, match="Distributor hq did not sign") as caught:
        receiver.view().refresh()
    assert not isinstance(caught.value, ReplayError)
    assert receiver.view().revisions("dat") == [FIRST]


def test_a_tampered_record_is_refused(depot: Depot, receiver: Receiver) -> None:
    for lie in (b"record 0ne", b"record", b"record one and more"):
        depot.lies[target_path("dat", FIRST)] = lie
        with pytest.raises((DigestMismatchError, TrustError)):
            receiver.view().record("dat", FIRST)
    depot.lies[target_path("dat", FIRST)] = b"record 0ne"
    with pytest.raises(DigestMismatchError, match="hq: dat/"):
        receiver.view().record("dat", FIRST)


def test_one_distributions_role_cannot_stand_for_anothers(depot: Depot, receiver: Receiver) -> None:
    """``evi`` has the length of ``dat``, so that only its signature can give the swap away."""
    depot.publish("evi", first=b"record one")
    receiver.view().refresh()
    depot.publish("dat", second=b"record two")
    depot.publish("evi", second=b"record two")
    swapped = (depot.honest("2.d.evi.json") or b"").replace(b"evi/", b"dat/")
    for lie in (depot.honest("2.d.evi.json"), swapped):
        depot.lies["2.d.dat.json"] = lie or b""
        with pytest.raises(TrustError, match="did not sign"):
            receiver.view().refresh()


def test_a_role_that_lists_another_distributions_revision_is_not_asked_for_it(depot: Depot, receiver: Receiver) -> None:
    """The key of ``pos`` is stolen: it can spoil ``pos``, and nothing else."""
    catalog = depot.catalog
    stolen = target_path("dat", SECOND)
    bad = Targets(targets={stolen: TargetFile.from_data(stolen, b"evil")})
    catalog._advance(catalog._read(), delegated={"d.pos": bad})
    view = receiver.view()
    assert view.refresh() is True
    assert (view.revisions("dat"), view.revisions("pos")) == ([FIRST], [])
    with pytest.raises(UnknownNameError):
        view.record("dat", SECOND)
    assert view.record("dat", FIRST) == b"record one"


@pytest.mark.parametrize("garbage", [b"", b"{}", b"[" * 60_000, b"\xff\xfe", b'{"signed": {"_type": "timestamp"}}'])
def test_garbage_is_refused(depot: Depot, receiver: Receiver, garbage: bytes) -> None:
    depot.lies["timestamp.json"] = garbage or b" "
    with pytest.raises(TrustError):
        receiver.view().refresh()


def test_a_trusted_distributor_turned_hostile_makes_no_file_outside(depot: Depot, receiver: Receiver) -> None:
    catalog = depot.catalog
    chain = catalog._read()
    targets = deepcopy(chain.targets)
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    role = deepcopy(targets.delegations.roles["d.dat"])
    role.name = "d.../../../evil"
    targets.delegations.roles[role.name] = role
    catalog._advance(chain, targets=targets)
    view = receiver.view()
    view.refresh()
    assert view.distributions == ("dat", "pos")
    assert not list(receiver.base.rglob("*evil*"))


def test_a_version_no_file_name_can_hold_is_refused(depot: Depot, receiver: Receiver) -> None:
    catalog = depot.catalog
    chain = catalog._read()
    chain.snapshot.version = 10**12
    catalog._advance(chain)
    number = 10**12 + 1
    depot.lies[f"{number}.snapshot.json"] = (depot.directory / f"{number}.snapshot.json").read_bytes()
    before = receiver.served()
    with pytest.raises(TrustError, match="versions no catalog has"):
        receiver.view().refresh()
    assert receiver.served() == before


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_single_changed_byte_gets_through(depot: Depot, tmp_path: Path, data: st.DataObject) -> None:
    names = ["timestamp.json", "3.snapshot.json", "3.targets.json", "1.d.dat.json"]
    name = data.draw(st.sampled_from(names))
    original = depot.honest(name)
    assert original is not None
    place = data.draw(st.integers(0, len(original) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != original[place]))
    depot.lies = {name: original[:place] + bytes([byte]) + original[place + 1 :]}
    shutil.rmtree(tmp_path / "fresh", ignore_errors=True)
    receiver = Receiver(tmp_path / "fresh", depot, depot.catalog.root_bytes())
    view = receiver.view()
    try:
        view.refresh()
    except TrustError:
        assert not (receiver.directory / "timestamp.json").exists()
    else:  # white space, or the case of a hexadecimal digit
        assert view.revisions("dat") == view.revisions("pos") == [FIRST]
        assert view.timestamp_version == depot.catalog.timestamp_version()


# -- what a sender says


@pytest.mark.parametrize("name", ["timestamp.json", "4.snapshot.json", "2.d.dat.json"])
def test_a_senders_failure_passes_through_unchanged(depot: Depot, receiver: Receiver, name: str) -> None:
    depot.publish("dat", second=b"record two")
    for error in (UnreachableError("gone"), RefusedError("no"), MissingContentError("none")):
        depot.lies[name] = error
        with pytest.raises(type(error)) as caught:
            receiver.view().refresh()
        assert caught.value is error
    depot.lies.clear()
    assert receiver.view().refresh() is True


def test_no_newer_root_may_be_said_by_refusing(depot: Depot, receiver: Receiver) -> None:
    depot.publish("dat", second=b"record two")
    depot.lies["2.root.json"] = RefusedError("404")
    assert receiver.view().refresh() is True


@pytest.mark.parametrize("kept", [None, KeptChain()])
def test_damage_to_what_was_stored_is_repaired_by_the_next_refresh(
    depot: Depot, receiver: Receiver, kept: KeptChain | None
) -> None:
    for name in ("timestamp.json", "3.snapshot.json", "1.d.dat.json", "root.json", "1.root.json"):
        (receiver.directory / name).write_bytes(b"damaged")
        receiver.view(kept).refresh()
        view = receiver.view(kept)
        assert view.revisions("dat") == [FIRST]
    (receiver.directory / "1.d.dat.json").write_bytes(b"damaged")
    with pytest.raises(TrustError):
        receiver.view(kept).load()


@pytest.mark.parametrize("kept", [None, KeptChain()])
def test_several_threads_may_refresh_one_directory(depot: Depot, receiver: Receiver, kept: KeptChain | None) -> None:
    failures: list[BaseException] = []

    def run(job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
            failures.append(error)

    for number in range(5):
        depot.publish("dat", second=bytes([number]))
        jobs = [receiver.view(kept).refresh, receiver.view(kept).load, receiver.view(kept).refresh]
        threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert receiver.view().revisions("dat") == [SECOND]


# -- slips


def test_a_slip_signed_by_the_distributor_holds_and_any_other_does_not(
    depot: Depot, receiver: Receiver, tmp_path: Path
) -> None:
    slip = b'{"to": ["s01"]}'
    signatures = SlipSigner(depot.base / "keys").sign(slip)
    view = receiver.view()
    view.verify_slip_signature(slip, signatures)
    thief = Depot(tmp_path / "thief")
    forged = SlipSigner(thief.base / "keys").sign(slip)
    renamed = [{"keyid": signatures[0]["keyid"], "sig": forged[0]["sig"]}]
    for payload, given_signatures in ((slip + b" ", signatures), (slip, forged), (slip, renamed), (slip, [])):
        with pytest.raises(SlipError):
            view.verify_slip_signature(payload, given_signatures)


def test_slips_go_on_holding_when_the_key_changes(depot: Depot, receiver: Receiver) -> None:
    slip = b"slip"
    depot.catalog.rotate("timestamp")
    signatures = SlipSigner(depot.base / "keys").sign(slip)
    view = receiver.view()
    with pytest.raises(SlipError, match="did not sign") as caught:
        view.verify_slip_signature(slip, signatures)
    assert "refresh" in (caught.value.hint or "")
    view.refresh()
    view.verify_slip_signature(slip, signatures)


def test_a_timestamps_signature_is_no_slips_signature(depot: Depot, receiver: Receiver) -> None:
    metadata = json.loads(depot.honest("timestamp.json") or b"")
    canonical = receiver.view().chain.timestamp
    from tuf.api.serialization.json import CanonicalJSONSerializer

    with pytest.raises(SlipError):
        receiver.view().verify_slip_signature(CanonicalJSONSerializer().serialize(canonical), metadata["signatures"])


@given(
    signatures=st.one_of(
        st.none(),
        st.text(),
        st.lists(st.one_of(st.text(), st.dictionaries(st.sampled_from(["keyid", "sig"]), st.text())), max_size=20),
        st.lists(
            st.fixed_dictionaries(
                {"keyid": st.from_regex("[0-9a-f]{64}", fullmatch=True), "sig": st.text("0123456789abcdefg")}
            )
        ),
    )
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_signatures_of_any_shape_are_a_slip_error(depot: Depot, signatures: object) -> None:
    from ted.trust.signing import verify

    with pytest.raises(SlipError):
        verify(b"slip", signatures, depot.catalog.root_bytes())  # type: ignore[arg-type]


# -- what views share


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The directory of each catalog that is verified."""
    found: list[Path] = []
    read = chain.read_chain

    def noted(directory: Path, anchor: bytes) -> chain.Chain:
        found.append(directory)
        return read(directory, anchor)

    monkeypatch.setattr(chain, "read_chain", noted)
    return found


def test_what_one_view_verified_the_next_one_takes(depot: Depot, receiver: Receiver, verified: list[Path]) -> None:
    kept = KeptChain()
    first, second = receiver.view(kept), receiver.view(kept)
    assert first.revisions("dat") == second.revisions("dat") == [FIRST]
    assert not second.refresh()
    assert verified.count(receiver.directory) == 1
    depot.publish("dat", second=b"record two")
    assert second.refresh()
    assert verified.count(receiver.directory) == 2
    assert receiver.view(kept).revisions("dat") == [SECOND]
    assert verified.count(receiver.directory) == 2
    assert receiver.view().revisions("dat") == [SECOND]
    assert verified.count(receiver.directory) == 3


def test_what_changed_since_is_verified_again(receiver: Receiver, verified: list[Path]) -> None:
    kept = KeptChain()
    receiver.view(kept).load()
    os.utime(next(receiver.directory.glob("*.targets.json")), ns=(1, 1))
    receiver.view(kept).load()
    assert verified.count(receiver.directory) == 2
    parts = [path for path in receiver.directory.glob("*.json") if "root" not in path.name]
    assert len(parts) == 5
    for path in parts:
        good = path.read_bytes()
        path.write_bytes(good.replace(b"0", b"1"))
        with pytest.raises(TrustError):
            receiver.view(kept).load()
        path.unlink()
        with pytest.raises(MissingContentError):
            receiver.view(kept).load()
        path.write_bytes(good)
        assert receiver.view(kept).revisions("dat") == [FIRST]


def test_a_file_that_looks_like_the_one_before_but_for_its_change_is_verified_again(
    receiver: Receiver, verified: list[Path]
) -> None:
    kept = KeptChain()
    receiver.view(kept).load()
    path = next(receiver.directory.glob("*.snapshot.json"))
    good, looked = path.read_bytes(), path.stat()
    path.write_bytes(good.replace(b"0", b"1"))
    os.utime(path, ns=(looked.st_atime_ns, looked.st_mtime_ns))
    with pytest.raises(TrustError):
        receiver.view(kept).load()


def test_what_was_verified_is_verified_again_after_a_while(receiver: Receiver, verified: list[Path]) -> None:
    kept = KeptChain()
    receiver.view(kept).load()
    assert kept.found is not None
    kept.found = kept.found._replace(at_s=kept.found.at_s - 601)
    receiver.view(kept).load()
    assert verified.count(receiver.directory) == 2


def test_what_was_verified_and_expired_since_is_refused(tmp_path: Path) -> None:
    depot = Depot(tmp_path / "hq", lifetimes=Lifetimes(timestamp=timedelta(seconds=3)))
    depot.publish("dat", first=b"record one")
    receiver = Receiver(tmp_path / "s01", depot, depot.catalog.root_bytes())
    kept = KeptChain()
    receiver.view(kept).refresh()
    assert not receiver.view(kept).refresh()
    time.sleep(3.1)
    with pytest.raises(TrustError, match="expired"):
        receiver.view(kept).refresh()


def test_what_another_thread_puts_there_meanwhile_is_not_taken(receiver: Receiver, verified: list[Path]) -> None:
    """What is shared is read once: what fitted is what is taken."""
    receiver.view(kept := KeptChain()).load()
    found = kept.found
    assert found is not None

    reads: list[str] = []

    class Changing(KeptChain):
        """Gives what was verified for the root of trust and for the state, and nothing after that."""

        def __getattribute__(self, name: str) -> object:
            reads.append(name)
            return found if len(reads) <= 2 else None

    view = receiver.view(Changing())
    view.load()
    assert view.chain is found.chain


def test_another_root_of_trust_is_not_taken_for_the_one_before(receiver: Receiver, tmp_path: Path) -> None:
    kept = KeptChain()
    receiver.view(kept).load()
    receiver.trust.path("hq").write_bytes(Depot(tmp_path / "other").catalog.root_bytes())
    with pytest.raises(TrustError):
        receiver.view(kept).load()
    receiver.trust.path("hq").unlink()
    with pytest.raises(UntrustedDistributorError):
        receiver.view(kept).load()
