"""Laws of the buckets and of the turns, whatever comes in whatever order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ted.transfer.pacing import PRIORITIES, Bucket, OutputLimits, Pacer, Transfer, burst_bytes, piece_bytes

rates = st.integers(1, 10**10)
waits = st.lists(st.floats(0, 5, allow_nan=False), min_size=1, max_size=60)


@given(rate=rates, steps=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 64 * 1024)), min_size=1, max_size=80))
def test_no_window_has_more_than_the_burst_and_its_time_at_the_rate(rate: int, steps: list[tuple[float, int]]) -> None:
    bucket, now_s, taken = Bucket(rate, 0.0), 0.0, []
    for pause_s, wanted in steps:
        size = min(wanted, piece_bytes(rate))
        now_s += pause_s
        now_s = max(now_s, bucket.ready_at_s(size, now_s))
        assert bucket.take(size, now_s)
        taken.append((now_s, size))
    for first, (start_s, _) in enumerate(taken):
        total = 0
        for at_s, size in taken[first:]:
            total += size
            assert total <= (burst_bytes(rate) + rate * (at_s - start_s)) * (1 + 1e-9) + 1e-3


@given(
    rate=rates,
    steps=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 64 * 1024), st.floats(0, 0.5)), min_size=1, max_size=80),
)
def test_it_holds_for_when_they_leave_however_late_that_is(rate: int, steps: list[tuple[float, int, float]]) -> None:
    """Each piece leaves late; one may go while others that may have not gone yet."""
    bucket, now_s = Bucket(rate, 0.0), 0.0
    going: list[tuple[float, int]] = []
    left: list[tuple[float, int]] = []

    def leave(until_s: float) -> None:
        for at_s, size in sorted(going):
            if at_s <= until_s:
                going.remove((at_s, size))
                bucket.let_go(size, at_s)
                left.append((at_s, size))

    for pause_s, wanted, late_s in steps:
        size = min(wanted, piece_bytes(rate))
        now_s += pause_s
        leave(now_s)
        if not bucket.take(size, now_s):  # a held piece keeps others from saving up: all leave, then it is reckoned
            leave(1e9)
            now_s = max([now_s, *(at_s for at_s, _ in left)])
            now_s = max(now_s, bucket.ready_at_s(size, now_s))
            assert bucket.take(size, now_s)
        bucket.hold(size)
        going.append((now_s + late_s, size))
    leave(1e9)
    left.sort()
    for first, (start_s, _) in enumerate(left):
        total = 0
        for at_s, size in left[first:]:
            total += size
            assert total <= (burst_bytes(rate) + rate * (at_s - start_s)) * (1 + 1e-9) + 1e-3


@given(rate=rates, count=st.integers(2, 300))
def test_one_who_always_asks_gets_the_whole_rate(rate: int, count: int) -> None:
    bucket, now_s, size = Bucket(rate, 0.0), 0.0, piece_bytes(rate)
    for _ in range(count):
        now_s = bucket.ready_at_s(size, now_s)
        assert bucket.take(size, now_s)
    assert count * size >= rate * now_s * (1 - 1e-9)


@given(rate=rates, late=waits)
def test_what_lateness_loses_is_made_up_for_as_far_as_the_burst_allows(rate: int, late: list[float]) -> None:
    """Coming late by less than the burst, less a piece, takes nothing from the rate."""
    bucket, now_s, size, count = Bucket(rate, 0.0), 0.0, piece_bytes(rate), 0
    most_s = (burst_bytes(rate) - size) / rate
    for pause_s in late:
        now_s = bucket.ready_at_s(size, now_s) + min(pause_s, most_s)
        while bucket.take(size, now_s):
            count += 1
    assert (count + 1) * size >= rate * now_s * (1 - 1e-6)


@given(rate=rates, changes=st.lists(st.tuples(st.floats(0, 2), st.one_of(st.none(), rates)), max_size=20))
def test_no_change_of_the_rate_gives_more_than_the_burst_of_the_new_one(
    rate: int, changes: list[tuple[float, int | None]]
) -> None:
    bucket, now_s = Bucket(rate, 0.0), 0.0
    for pause_s, other in changes:
        now_s += pause_s
        bucket.change(other, now_s)
        if other is not None:
            assert bucket.ready_at_s(burst_bytes(other) * 0.5, now_s) <= now_s + burst_bytes(other) / other
            now_s = max(now_s, bucket.reserve(burst_bytes(other), now_s))
            assert bucket.ready_at_s(burst_bytes(other), now_s) >= now_s


asks = st.lists(st.tuples(st.sampled_from(["ask", "rest", "leave", "join"]), st.integers(0, 30)), max_size=80)


@given(slots=st.one_of(st.none(), st.integers(1, 5)), fill=st.booleans(), acts=asks)
def test_whoever_is_let_go_has_a_slot_and_nobody_above_has_a_say(
    slots: int | None, fill: bool, acts: list[tuple[str, int]]
) -> None:
    pacer = Pacer(OutputLimits(max_concurrent=slots, fill_spare_slots=fill), 0.0)
    known: list[Transfer] = []
    active: set[Transfer] = set()
    for what, number in acts:
        if what == "join" or not known:
            known.append(pacer.join(PRIORITIES[number % 3], len(known), 0.0))
            continue
        one = known[number % len(known)]
        if what == "ask" and one.asks_bytes is None:
            pacer.ask(one, 1)
            active.add(one)
        elif what == "rest":
            pacer.rest(one)
            active.discard(one)
        elif what == "leave":
            pacer.leave(one, 0.0, finished=True)
            active.discard(one)
            known.remove(one)
        granted, look_at_s = pacer.grants(0.0)
        assert look_at_s is None, "without rates nobody waits for a time"
        order = sorted(active, key=lambda one: (PRIORITIES.index(one.priority), one.number))
        for one in granted:
            if slots is not None:
                assert order.index(one) < slots
            if not fill:
                assert one.priority == order[0].priority
        free = order if slots is None else order[:slots]
        admitted = [one for one in free if fill or one.priority == order[0].priority]
        assert all(one.asks_bytes is None for one in admitted), "nobody with a slot is left waiting"
