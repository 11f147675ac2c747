"""A routing slip is believed only as the Distributor signed it, for this node, by this way."""

from __future__ import annotations

import hashlib
import hmac
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ted.errors import SlipError
from ted.transfer.slip import Hop, RoutingSlip, slip_header

NOW = datetime(2026, 1, 2, tzinfo=UTC)
KEY = b"the distributor's key"


def sign(payload: bytes) -> list[dict[str, str]]:
    return [{"keyid": "k", "sig": hmac.new(KEY, payload, hashlib.sha256).hexdigest()}]


def verify(payload: bytes, signatures: object) -> None:
    if list(signatures) != sign(payload):  # type: ignore[call-overload]
        raise SlipError("signature")


def tree() -> Hop:
    leaves = tuple(Hop(f"e{n:02}", f"10.0.0.{n}", 7465, True) for n in range(1, 8))
    relay = Hop("s01", "10.0.0.251", 7465, False, leaves)
    return Hop("hq", "10.0.0.250", 7465, False, (relay, Hop("s02", "::1", 1, True)))


def signed(hop: Hop | None = None) -> RoutingSlip:
    header = slip_header(
        send="1", distributor="hq", distribution="dat", revision="20260101T000000000000Z", channel="av",
        priority="high", catalog_version=3, now=NOW,
    )  # fmt: skip
    return RoutingSlip.sign(header, hop or tree(), sign)


def received(*way: str) -> RoutingSlip:
    """The slip as the last node of ``way`` gets it, over the wire at each hop."""
    slip = signed()
    for name in way:
        slip = next(child for child in slip.for_children() if child.hop.name == name)
        slip = RoutingSlip.decode(slip.encode())
    return slip


def check(slip: RoutingSlip, me: str, sender: str, now: datetime = NOW) -> None:
    slip.check(me=me, sender=sender, now=now, verify=verify)


def test_the_end_of_the_window_is_signed_and_travels_along() -> None:
    header = slip_header(
        send="1", distributor="hq", distribution="dat", revision="20260101T000000000000Z", channel="av",
        priority="high", catalog_version=3, now=NOW, ends_at=NOW + timedelta(hours=3),
    )  # fmt: skip
    slip = next(RoutingSlip.sign(header, tree(), sign).for_children())
    slip = RoutingSlip.decode(slip.encode())
    check(slip, "s01", "hq")
    assert slip.left_s(NOW + timedelta(hours=1)) == 7200
    assert slip.left_s(NOW + timedelta(hours=4)) == 0
    assert received("s01").left_s(NOW) == math.inf
    with pytest.raises(SlipError, match="signature"):
        check(replace(slip, header=replace(slip.header, ends_at=NOW + timedelta(hours=9))), "s01", "hq")


@pytest.mark.parametrize("leaf", [f"e{n:02}" for n in range(1, 8)])
def test_every_leaf_can_check_its_own_subtree(leaf: str) -> None:
    check(received("s01", leaf), leaf, "s01")


def test_a_relay_sees_only_what_lies_below_it() -> None:
    slip = received("s01")
    check(slip, "s01", "hq")
    assert {hop.name for hop in slip.hop.walk()} == {"s01", *(f"e{n:02}" for n in range(1, 8))}


def test_a_leaf_cannot_be_made_a_target_on_the_way() -> None:
    slip = received("s01")
    with pytest.raises(SlipError, match="not the one that was signed"):
        check(replace(slip, hop=replace(slip.hop, target=True)), "s01", "hq")


def test_a_child_cannot_be_added_on_the_way() -> None:
    slip = received("s01")
    more = (*slip.hop.children, Hop("evil", "10.6.6.6", 7465, True))
    with pytest.raises(SlipError, match="not the one that was signed"):
        check(replace(slip, hop=replace(slip.hop, children=more)), "s01", "hq")


def test_an_address_cannot_be_changed_on_the_way() -> None:
    slip = received("s01", "e03")
    with pytest.raises(SlipError, match="not the one that was signed"):
        check(replace(slip, hop=replace(slip.hop, address="10.6.6.6")), "e03", "s01")


def test_a_slip_for_another_node_is_refused() -> None:
    with pytest.raises(SlipError, match="is for e01, this node is e02"):
        check(received("s01", "e01"), "e02", "s01")


def test_a_slip_by_another_way_is_refused() -> None:
    with pytest.raises(SlipError, match="came from s02"):
        check(received("s01", "e01"), "e01", "s02")


def test_an_expired_slip_is_refused_and_says_when() -> None:
    with pytest.raises(SlipError, match="expired at 2026-01-09"):
        check(received("s02"), "s02", "hq", NOW + timedelta(days=8))


def test_a_slip_from_the_future_is_refused() -> None:
    with pytest.raises(SlipError, match="in the future"):
        check(received("s02"), "s02", "hq", NOW - timedelta(hours=1))


def test_a_changed_header_breaks_the_signature() -> None:
    slip = received("s02")
    with pytest.raises(SlipError, match="signature"):
        check(replace(slip, header=replace(slip.header, revision="20270101T000000000000Z")), "s02", "hq")


@pytest.mark.parametrize(
    "data", [None, {}, [], {"payload": "{}"}, {"payload": "[" * 10000}, {"payload": '{"format": 9}', "signatures": []}]
)
def test_what_is_not_a_slip_is_a_slip_error(data: object) -> None:
    with pytest.raises(SlipError):
        RoutingSlip.decode(data)


def test_a_slip_deeper_than_the_limit_is_refused() -> None:
    data = signed().encode()
    hop = ["x", "a", 1, True, []]
    for _ in range(100):
        hop = ["x", "a", 1, True, [hop]]
    with pytest.raises(SlipError, match="tiers"):
        RoutingSlip.decode(data | {"hop": hop})


def test_a_proof_for_one_of_forty_children_stays_small() -> None:
    leaves = tuple(Hop(f"e{n:02}", "10.0.0.1", 7465, True) for n in range(40))
    child = next(signed(Hop("hq", "10.0.0.250", 7465, False, leaves)).for_children())
    assert len(child.ancestors[0].proof) <= 6
