"""Rates, classes, shares and slots, reckoned with a clock of the test's own."""

from __future__ import annotations

import asyncio
import heapq
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ted.transfer.gates import SO_MAX_PACING_RATE, UNPACED, fit_send_buffer
from ted.transfer.pacing import (
    LEAST_QUEUE_BYTES,
    MOST_QUEUE_BYTES,
    PLACE_KEPT_S,
    PRIORITIES,
    QUEUE_S,
    RESTED_QUEUE_BYTES,
    Bucket,
    OutputLimits,
    Pacer,
    Patience,
    Queue,
    Transfer,
    burst_bytes,
    piece_bytes,
    wire_factor,
)
from ted.transfer.server import _Stream

MB = 1_000_000


@dataclass
class Line:
    """A node that sends by a pacer: each transfer takes its pieces, as fast as its own receiver takes them."""

    limits: OutputLimits
    now_s: float = 0.0
    sent: list[tuple[float, str, int]] = field(default_factory=list)  # (when, key, bytes)
    left: dict[Transfer, int] = field(default_factory=dict)
    asked: dict[Transfer, int] = field(default_factory=dict)
    plans: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    slow: dict[str, float] = field(default_factory=dict)  # receivers with a rate of their own
    count: int = 0

    def __post_init__(self) -> None:
        self.pacer = Pacer(self.limits, self.now_s)

    def at(self, when_s: float, do: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.plans, (when_s, self.count, do))

    def add(self, priority: str, key: str, size_bytes: int, at_s: float = 0.0) -> None:
        def start() -> None:
            transfer = self.pacer.join(priority, key, self.now_s)
            self.left[transfer] = size_bytes
            self._ask(transfer)

        self.at(at_s, start)

    def change(self, at_s: float, **limits: int) -> None:
        def change() -> None:
            self.limits = replace(self.limits, **limits)
            self.pacer.change(self.limits, self.now_s)

        self.at(at_s, change)

    def _ask(self, transfer: Transfer) -> None:
        if self.left[transfer]:
            size = min(self.left[transfer], piece_bytes(self.limits.rate_bytes_s(transfer.priority)))
            self.asked[transfer] = size
            self.pacer.ask(transfer, size)
        else:
            self.pacer.leave(transfer, self.now_s, finished=True)

    def run(self, until_s: float = 1e9) -> None:
        while True:
            granted, look_at_s = self.pacer.grants(self.now_s)
            for transfer in granted:
                key = str(transfer.key)
                size = self.asked[transfer]
                self.left[transfer] -= size
                self.sent.append((self.now_s, key, size))
                self.pacer.sent(transfer, self.now_s)
                takes_s = size / self.slow.get(key, 1e9)
                self.at(self.now_s + takes_s, lambda transfer=transfer: self._ask(transfer))  # type: ignore[misc]
            if look_at_s is not None and (not self.plans or look_at_s <= self.plans[0][0]):
                self.now_s = max(self.now_s, look_at_s)
            elif self.plans:
                when_s, _, do = heapq.heappop(self.plans)
                self.now_s = max(self.now_s, when_s)
                do()
            else:
                return
            if self.now_s > until_s:
                return

    def bytes_of(self, key: str, since_s: float = 0.0, until_s: float = 1e9) -> int:
        return sum(size for at_s, name, size in self.sent if name.startswith(key) and since_s <= at_s < until_s)

    def first_s(self, key: str) -> float:
        return min(at_s for at_s, name, _ in self.sent if name.startswith(key))

    def last_s(self, key: str) -> float:
        return max(at_s for at_s, name, _ in self.sent if name.startswith(key))


def worst_window(sent: list[tuple[float, str, int]], window_s: float) -> int:
    worst = total = start = 0
    for at_s, _, size in sent:
        total += size
        while sent[start][0] <= at_s - window_s:
            total -= sent[start][2]
            start += 1
        worst = max(worst, total)
    return worst


def test_without_rates_nothing_waits() -> None:
    """PRI-1, PRI-2: the default is unlimited."""
    line = Line(OutputLimits())
    line.add("medium", "a", 100 * MB)
    line.run()
    assert (line.bytes_of("a"), line.now_s) == (100 * MB, pytest.approx(0.1))
    assert Bucket(None, 0.0).reserve(10**12, 5.0) == 5.0


@pytest.mark.parametrize("rate", [1, 700, 64_000, MB, 50 * MB, 2000 * MB])
def test_an_input_rate_bounds_all_that_come_together(rate: int) -> None:
    """PRI-1, PRI-10: many readers share one bucket, and no second has more than the rate and a burst."""
    bucket, now_s, sent = Bucket(rate, 0.0), 0.0, []
    readers = [(0.0, number) for number in range(7)]
    size = piece_bytes(rate)
    for _ in range(3000):
        now_s, number = heapq.heappop(readers)
        ready_s = bucket.reserve(size, now_s)
        sent.append((ready_s, str(number), size))
        heapq.heappush(readers, (ready_s, number))
    assert worst_window(sent, 1.0) <= 1.02 * rate + 64 * 1024
    assert sum(size for _, _, size in sent) >= 0.98 * rate * sent[-1][0]
    shares = Counter(key for _, key, _ in sent)
    assert max(shares.values()) - min(shares.values()) <= 1 + burst_bytes(rate) / size, "the first has the burst"


@pytest.mark.parametrize("priority", PRIORITIES)
def test_each_priority_has_its_own_output_rate(priority: str) -> None:
    """PRI-2, PRI-12: a rate for each class, on its own."""
    line = Line(OutputLimits(high=4 * MB, medium=2 * MB, low=MB))
    line.add(priority, "a", 20 * MB)
    line.run()
    assert line.now_s == pytest.approx(20 * MB / {"high": 4 * MB, "medium": 2 * MB, "low": MB}[priority], rel=0.02)


def test_high_goes_before_medium_before_low() -> None:
    """PRI-3, PRI-4, PRI-5: strict order of classes."""
    line = Line(OutputLimits(high=MB, medium=MB, low=MB))
    for number in range(3):
        for priority in ("low", "medium", "high"):
            line.add(priority, f"{priority}{number}", MB, at_s={"high": 0.0, "medium": 0.001, "low": 0.002}[priority])
    line.run()
    assert line.last_s("high") <= line.first_s("medium")
    assert line.last_s("medium") <= line.first_s("low")


def test_what_is_urgent_overtakes_within_one_piece_and_the_bulk_goes_on() -> None:
    """PRI-3: an urgent transfer waits for no more than the piece under way; the bulk keeps its place and its bytes."""
    line = Line(OutputLimits(high=MB, low=MB))
    line.add("low", "bulk", 10 * MB)
    line.add("high", "urgent", MB, at_s=3.0)
    line.run()
    assert line.first_s("urgent") == pytest.approx(3.0, abs=0.021)
    assert line.bytes_of("bulk", line.first_s("urgent"), line.last_s("urgent")) <= piece_bytes(MB)
    assert line.bytes_of("bulk") == 10 * MB
    assert line.now_s == pytest.approx(11.0, rel=0.02), "no time was lost"


@pytest.mark.parametrize(("first", "then"), [("low", "high"), ("high", "low")])
def test_who_comes_after_another_class_brings_no_burst_into_its_line(first: str, then: str) -> None:
    line = Line(OutputLimits(high=MB, low=MB))
    line.add(first, "first", 3 * MB)
    line.add(then, "then", MB, at_s=1.0)
    line.run()
    piece = piece_bytes(MB)
    for start_s in (1.0, 2.0, 3.0):
        came = sum(size for when_s, _, size in line.sent if start_s <= when_s < start_s + 0.5)
        assert came <= 0.5 * MB + 2 * piece


def test_a_transfer_whose_blocks_are_still_to_come_holds_nobody_back() -> None:
    """PRI-3: strict order is for what can be sent; a relay's line is not left idle."""
    pacer = Pacer(OutputLimits(), 0.0)
    urgent, bulk = pacer.join("high", "urgent", 0.0), pacer.join("low", "bulk", 0.0)
    pacer.ask(urgent, 10)
    pacer.ask(bulk, 10)
    assert pacer.grants(0.0) == ([urgent], None)
    pacer.rest(urgent)
    assert pacer.grants(0.0) == ([bulk], None)


def test_no_more_than_the_set_number_send_at_a_time() -> None:
    """PRI-6, PRI-7: a relay may be asked for any number of transfers, and passes on so many at a time."""
    line = Line(OutputLimits(max_concurrent=2), slow=dict.fromkeys("abcde", float(MB)))
    for key in "abcde":
        line.add("medium", key, MB)
    line.run()
    assert [line.first_s(key) for key in "abcde"] == pytest.approx([0.0, 0.0, 1.0, 1.0, 2.0], abs=0.1)


def test_one_receiver_has_the_whole_rate_and_two_have_half_each() -> None:
    """PRI-8: fair shares of one bucket."""
    line = Line(OutputLimits(medium=MB))
    line.add("medium", "a", 20 * MB)
    line.add("medium", "b", 20 * MB, at_s=5.0)
    line.run(until_s=15.0)
    assert line.bytes_of("a", 1.0, 5.0) == pytest.approx(4 * MB, rel=0.02)
    assert line.bytes_of("a", 5.5, 14.5) == pytest.approx(line.bytes_of("b", 5.5, 14.5), rel=0.01)


def test_what_a_slow_receiver_leaves_of_its_share_goes_to_the_others() -> None:
    """PRI-8: shares are of what is asked for."""
    line = Line(OutputLimits(medium=MB), slow={"slow": 100_000.0})
    line.add("medium", "slow", 10 * MB)
    line.add("medium", "fast", 10 * MB)
    line.run(until_s=8.0)
    assert line.bytes_of("fast", 1.0, 8.0) == pytest.approx(7 * 900_000, rel=0.03)


def test_the_slowest_rate_of_a_transfer_is_the_rate_by_the_number_of_slots() -> None:
    """PRI-9: output rate divided by maximum concurrency."""
    line = Line(OutputLimits(medium=MB, max_concurrent=4))
    for number in range(12):
        line.add("medium", f"t{number:02}.", MB)
    line.run()
    for number in range(12):
        key = f"t{number:02}."
        assert line.last_s(key) - line.first_s(key) <= MB / (MB / 4) * 1.02


def test_both_ways_to_prioritise_work_together() -> None:
    """PRI-13: the priority orders, the rate of the priority slows."""
    line = Line(OutputLimits(high=2 * MB, low=100_000))
    line.add("low", "low", 5 * MB)
    line.add("high", "high", 8 * MB, at_s=1.0)
    line.run()
    assert (line.first_s("high"), line.last_s("high")) == pytest.approx((1.0, 5.0), rel=0.03)
    assert line.now_s == pytest.approx(4.0 + 50.0, rel=0.03)


def test_every_hop_has_its_own_rates() -> None:
    """PRI-14: the class of a transfer is the same everywhere, what it means is each node's own."""
    times = []
    for rate in (MB, 4 * MB):
        line = Line(OutputLimits(high=rate))
        line.add("high", "a", 8 * MB)
        line.run()
        times.append(line.now_s)
    assert times == pytest.approx([8.0, 2.0], rel=0.03)


def started_together(line: Line) -> list[list[str]]:
    """Return who started when, in groups: one for each moment."""
    first: dict[str, float] = {}
    for at_s, key, _ in line.sent:
        first.setdefault(key, at_s)
    groups: dict[float, list[str]] = {}
    for key, at_s in first.items():
        groups.setdefault(round(at_s), []).append(key)
    return [sorted(groups[at_s]) for at_s in sorted(groups)]


def names(priority: str, count: int) -> list[str]:
    return [f"{priority}{number:02}" for number in range(count)]


def loaded(high: int, **limits: bool) -> Line:
    keys = names("high", high), names("medium", 8), names("low", 4)
    line = Line(OutputLimits(max_concurrent=10, **limits), slow={key: float(MB) for keys in keys for key in keys})
    for priority, these in zip(PRIORITIES, keys, strict=True):
        for number, key in enumerate(these):
            line.add(priority, key, MB * (2 if number % 2 else 1))
    return line


def test_free_slots_are_not_filled_with_a_lower_class() -> None:
    """PRI-15: limit 10 with 5 high, 8 medium, 4 low: the 5 run, then the 8, then the 4."""
    line = loaded(5)
    line.run()
    assert started_together(line) == [names("high", 5), names("medium", 8), names("low", 4)]
    assert line.last_s("high") < line.first_s("medium")
    assert line.last_s("medium") < line.first_s("low")


def test_each_high_transfer_that_ends_lets_one_more_in() -> None:
    """PRI-15: with 15 high, 10 run, and each end admits one more until all high are done."""
    line = loaded(15)
    line.run()
    high = started_together(line)[:2]
    assert high == [names("high", 10), names("high", 15)[10:]]
    assert line.last_s("high") < line.first_s("medium")


def test_spare_slots_are_filled_where_that_is_wanted() -> None:
    """PRI-15: the option ``fill_spare_slots``."""
    line = loaded(5, fill_spare_slots=True)
    line.run()
    assert started_together(line)[0] == sorted(names("high", 5) + names("medium", 5))


def test_each_target_of_a_distribution_takes_a_slot() -> None:
    """PRI-16: one distribution to three receivers is three transfers."""
    pacer = Pacer(OutputLimits(max_concurrent=2), 0.0)
    transfers = [pacer.join("medium", (receiver, "app"), 0.0) for receiver in ("e01", "e02", "e03")]
    for transfer in transfers:
        pacer.ask(transfer, 10)
    assert pacer.grants(0.0)[0] == transfers[:2]
    pacer.leave(transfers[0], 0.0, finished=True)
    assert pacer.grants(0.0)[0] == [transfers[2]]


def test_few_slots_spread_the_same_bytes_over_more_time() -> None:
    """PRI-17: concurrency also spreads the traffic."""
    ends = []
    for slots in (1, 4):
        line = Line(OutputLimits(max_concurrent=slots), slow=dict.fromkeys("abcd", float(MB)))
        for key in "abcd":
            line.add("low", key, MB)
        line.run()
        ends.append(line.now_s)
        assert sum(size for _, _, size in line.sent) == 4 * MB
    assert ends == pytest.approx([4.0, 1.0], rel=0.1)


def test_a_transfer_that_comes_back_soon_has_its_place_again() -> None:
    pacer = Pacer(OutputLimits(max_concurrent=1), 0.0)
    first, second = pacer.join("low", "first", 0.0), pacer.join("low", "second", 0.0)
    pacer.ask(second, 10)
    pacer.leave(first, 1.0, finished=False)
    again = pacer.join("low", "first", 2.0)
    pacer.ask(again, 10)
    assert pacer.grants(2.0)[0] == [again]
    pacer.leave(again, 3.0, finished=False)
    late = pacer.join("low", "first", 3.0 + PLACE_KEPT_S + 1)
    assert late.number > second.number


@pytest.mark.parametrize(("before", "after"), [(MB, 200_000), (200_000, MB), (MB, 10 * MB)])
def test_a_changed_rate_holds_from_the_next_piece_on(before: int, after: int) -> None:
    line = Line(OutputLimits(medium=before))
    for key in "abcdefghij":
        line.add("medium", key, 20 * MB)
    line.change(3.0, medium=after)
    line.run(until_s=9.0)
    assert line.bytes_of("", 1.0, 3.0) == pytest.approx(2 * before, rel=0.03)
    assert line.bytes_of("", 3.5, 8.5) == pytest.approx(5 * after, rel=0.03)


def test_small_answers_count_and_delay_what_follows() -> None:
    line = Line(OutputLimits(high=100_000))
    line.pacer.spend("high", 200_000, 0.0)
    line.add("high", "a", 100_000)
    line.run()
    assert line.now_s == pytest.approx((300_000 - burst_bytes(100_000)) / 100_000, rel=0.05)


def test_a_piece_is_never_more_than_half_the_burst() -> None:
    for rate in (1, 10, 1000, 50_000, MB, 100 * MB, 10_000 * MB):
        assert 1 <= piece_bytes(rate) <= max(1, burst_bytes(rate) / 2)
        assert burst_bytes(rate) <= 64 * 1024 + 0.02 * rate


def test_a_byte_costs_what_its_headers_cost() -> None:
    assert wire_factor(1448, tls=False) == pytest.approx(1514 / 1448)
    assert wire_factor(1448, tls=True) == pytest.approx(1514 / 1448 * (16406 / 16384))


def test_patience_ends_with_a_window_in_which_too_little_moved() -> None:
    patience = Patience(1000, 30.0)
    assert patience.enough(100_000, 29.0)
    assert patience.enough(100, 2.0), "on average enough"
    assert patience.enough(10_000, 29.0)
    assert not patience.enough(10_000, 2.0)
    assert patience.longest_s(64_000) == 30.0 + 64.0


# -- the system's queue


def queue_at(rate_bytes_s: float, queue: Queue, now_s: float, seconds: float) -> float:
    """Write at a rate for a while; return when that is over."""
    until_s = now_s + seconds
    while now_s < until_s:
        now_s += 65536 / rate_bytes_s
        queue.moved(65536, now_s)
    return now_s


def test_a_queue_holds_what_the_line_takes_in_a_moment() -> None:
    for rate_bytes_s in (5 * MB, 40 * MB, 70 * MB):
        queue = Queue(0.0)
        queue_at(rate_bytes_s, queue, 0.0, 1.0)
        assert rate_bytes_s * QUEUE_S / 2 < queue.size_bytes <= rate_bytes_s * QUEUE_S
    queue_at(1000 * MB, queue := Queue(0.0), 0.0, 0.1)
    assert queue.size_bytes == MOST_QUEUE_BYTES


def test_a_slow_line_keeps_its_queue_short() -> None:
    queue = Queue(0.0)
    now_s = queue_at(1.25 * MB, queue, 0.0, 5.0)
    assert queue.size_bytes == LEAST_QUEUE_BYTES
    now_s = queue_at(100 * MB, queue, now_s, 0.5)
    assert queue.size_bytes > LEAST_QUEUE_BYTES
    queue_at(1.25 * MB, queue, now_s, 0.5)
    assert queue.size_bytes == LEAST_QUEUE_BYTES


def test_a_transfer_that_waits_for_its_own_blocks_is_not_taken_for_a_slow_line() -> None:
    queue, now_s = Queue(0.0), 0.0
    for _ in range(20):  # one block every tenth of a second, and 3 ms to write it
        now_s += 0.1
        queue.rested(0.097)
        queue.moved(128 * 1024, now_s)
    assert queue.size_bytes == RESTED_QUEUE_BYTES
    queue_at(1.25 * MB, queue, now_s, 0.5)
    assert queue.size_bytes == LEAST_QUEUE_BYTES


def test_what_a_queue_takes_at_once_says_nothing_of_the_line() -> None:
    queue = Queue(0.0)
    assert not any(queue.moved(LEAST_QUEUE_BYTES, 0.001 * number) for number in range(10))
    assert queue.size_bytes == LEAST_QUEUE_BYTES


def test_a_connection_that_is_kept_keeps_no_rate_of_the_transfer_before() -> None:
    async def answered_on(sock: socket.socket) -> None:
        """Begin an answer, at no rate, where another went before."""
        transport = SimpleNamespace(get_extra_info={"socket": sock}.get)
        request = SimpleNamespace(transport=transport)
        _Stream(cast("Any", request), *cast("Any", [None] * 3), alive_every_s=1.0, executor=cast("Any", None))

    with socket.socket() as sock:
        own_bytes = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        asyncio.run(answered_on(sock))
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == own_bytes
        fit_send_buffer(sock, 125_000)
        assert sock.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE) == 125_000
        slow_bytes = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        asyncio.run(answered_on(sock))
        assert sock.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE) == UNPACED
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > slow_bytes


def test_a_piece_at_a_rate_has_room_in_the_systems_queue() -> None:
    """And where the rate changes, or is taken away, a transfer has the queue of that."""

    async def queues_on(sock: socket.socket, rates: list[int | None]) -> list[int]:
        transport = SimpleNamespace(get_extra_info={"socket": sock}.get)
        turn = SimpleNamespace(rate_bytes_s=None, piece_bytes=None)
        rest = cast("Any", [None, turn, None])
        request = cast("Any", SimpleNamespace(transport=transport))
        stream, found = _Stream(request, *rest, alive_every_s=1.0, executor=cast("Any", None)), []
        for rate in rates:
            turn.rate_bytes_s, turn.piece_bytes = rate, piece_bytes(rate)
            stream._fit_buffers()
            found.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT))
        return found

    with socket.socket() as sock:
        found = asyncio.run(queues_on(sock, [100_000, 8 * MB, None]))
    assert found == [LEAST_QUEUE_BYTES, 64 * 1024, LEAST_QUEUE_BYTES]
