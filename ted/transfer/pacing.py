"""Who may send next, and when: the rates, classes, shares and slots of one node.

Rules:
 * A rate is one bucket for all that it governs. In any time t at most ``burst + rate * t`` bytes leave it. What counts
   is when they leave: while a piece that may go has not gone yet, nothing is saved up in its place, unless what it
   waits for is its reader or a disk.
 * Priorities are strict, piece by piece: while a transfer of a higher class has something to send, lower ones wait
   where they are. One whose own blocks are still to come rests, and holds nobody back.
 * Transfers of one class take turns in the order in which they ask: equal pieces, equal shares.
 * At most ``max_concurrent`` transfers send at a time, first come first served in their class. Spare slots stay
   empty while a higher class sends; with ``fill_spare_slots`` lower classes get them.
 * A transfer that comes back under the same key within ``PLACE_KEPT_S`` has its former place.

Pure: nothing here sends, sleeps or reads a clock; ``ted.transfer.gates`` does.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

PRIORITIES = ("high", "medium", "low")
LARGEST_PIECE_BYTES = 64 * 1024
UNLIMITED_PIECE_BYTES = 128 * 1024
SMALLEST_PIECE_BYTES = 512
PLACE_KEPT_S = 30.0
LEAST_QUEUE_BYTES, FAST_QUEUE_BYTES, MOST_QUEUE_BYTES = 32 * 1024, 128 * 1024, 4 * 1024 * 1024
RESTED_QUEUE_BYTES = 256 * 1024
QUEUE_S, QUEUE_JUDGED_S, QUEUES_JUDGED = 0.05, 0.1, 16
TLS_RECORD_BYTES, TLS_OVERHEAD_BYTES = 16 * 1024, 22
HEADER_BYTES = 66  # Ethernet 14, IPv4 20, TCP with time stamps 32


@dataclass(frozen=True, slots=True)
class OutputLimits:
    """What a node gives out: bytes per second for each class, and transfers at a time; ``None`` is unlimited."""

    high: int | None = None
    medium: int | None = None
    low: int | None = None
    max_concurrent: int | None = None
    fill_spare_slots: bool = False

    def rate_bytes_s(self, priority: str) -> int | None:
        """Return the rate of a class."""
        return {"high": self.high, "medium": self.medium, "low": self.low}[priority]


def burst_bytes(rate_bytes_s: float) -> float:
    """Return what a bucket may make up for: 64 KiB (less at low rates) and 20 ms of the rate.

    So no second has more than 2 % and 64 KiB above the rate.

    Where processors are busy a node comes late by 8 to 30 ms now and then; what is not made up for then is lost.
    """
    return max(1.0, min(LARGEST_PIECE_BYTES, rate_bytes_s / 4) + rate_bytes_s / 50)


def piece_bytes(rate_bytes_s: float | None) -> int:
    """Return the size of a write or read: 20 ms of the rate, 512 bytes to 64 KiB, within the burst; else 128 KiB."""
    if rate_bytes_s is None:
        return UNLIMITED_PIECE_BYTES
    wanted = max(SMALLEST_PIECE_BYTES, rate_bytes_s / 50)
    return max(1, int(min(LARGEST_PIECE_BYTES, wanted, burst_bytes(rate_bytes_s) / 2)))


def wire_factor(segment_bytes: int, *, tls: bool) -> float:
    """Return what one byte costs on the line, with the headers of TLS, TCP, IP and Ethernet."""
    return (1 + HEADER_BYTES / max(1, segment_bytes)) * (1 + tls * TLS_OVERHEAD_BYTES / TLS_RECORD_BYTES)


class Bucket:
    """A rate in bytes per second, shared by all who take from it; ``None`` is unlimited."""

    def __init__(self, rate_bytes_s: float | None, now_s: float) -> None:
        self.rate_bytes_s = rate_bytes_s
        self._level_bytes = 0.0 if rate_bytes_s is None else burst_bytes(rate_bytes_s)
        self._held_bytes = 0.0
        self._at_s = now_s

    def change(self, rate_bytes_s: float | None, now_s: float) -> None:
        """Take another rate from now on; what was saved under the old one stays as far as the new burst allows."""
        if rate_bytes_s == self.rate_bytes_s:
            return
        self._fill(now_s)
        self.rate_bytes_s = rate_bytes_s
        self._level_bytes = 0.0 if rate_bytes_s is None else min(self._level_bytes, self._room_bytes())

    def take(self, size_bytes: float, now_s: float) -> bool:
        """Take ``size_bytes`` if they are there."""
        if self.rate_bytes_s is None:
            return True
        if self.ready_at_s(size_bytes, now_s) > now_s:
            return False
        self._level_bytes -= size_bytes
        return True

    def hold(self, size_bytes: float) -> None:
        """Say that ``size_bytes`` were taken and have not left yet."""
        self._held_bytes += size_bytes

    def let_go(self, size_bytes: float, now_s: float) -> None:
        """Say that ``size_bytes`` that were held have left."""
        self._fill(now_s)
        self._held_bytes = max(0.0, self._held_bytes - size_bytes)

    def drain(self, size_bytes: float, now_s: float) -> None:
        """Lose ``size_bytes`` of what was saved up, as far as there is something."""
        if self.rate_bytes_s is None:
            return
        self._fill(now_s)
        self._level_bytes = min(self._level_bytes, max(0.0, self._level_bytes - size_bytes))

    def reserve(self, size_bytes: float, now_s: float) -> float:
        """Take ``size_bytes`` whether they are there or not; return when they will be."""
        if self.rate_bytes_s is None:
            return now_s
        self._fill(now_s)
        self._level_bytes -= size_bytes
        return now_s + max(0.0, -self._level_bytes / self.rate_bytes_s)

    def ready_at_s(self, size_bytes: float, now_s: float) -> float:
        """Return when ``size_bytes`` can be taken (more than the burst: when it is full)."""
        if self.rate_bytes_s is None:
            return now_s
        self._fill(now_s)
        lacking = min(size_bytes, burst_bytes(self.rate_bytes_s)) - self._level_bytes
        return now_s if lacking <= 1e-6 else now_s + lacking / self.rate_bytes_s

    def _fill(self, now_s: float) -> None:
        passed_s, self._at_s = max(0.0, now_s - self._at_s), max(now_s, self._at_s)
        if self.rate_bytes_s is not None:
            level = self._level_bytes + passed_s * self.rate_bytes_s
            self._level_bytes = max(self._level_bytes, min(level, self._room_bytes()))

    def _room_bytes(self) -> float:
        """Return how much may be saved up beside what is held."""
        return burst_bytes(self.rate_bytes_s or 0) - self._held_bytes


class Transfer:
    """One block stream to one receiver."""

    __slots__ = ("asks_bytes", "held_bytes", "key", "number", "priority")

    def __init__(self, priority: str, key: Hashable, number: int) -> None:
        self.priority = priority
        self.key = key
        self.number = number
        self.asks_bytes: float | None = None
        self.held_bytes = 0.0


class Pacer:
    """Decides for all transfers that leave one node."""

    def __init__(self, limits: OutputLimits, now_s: float) -> None:
        self.limits = limits
        self._buckets = {name: Bucket(limits.rate_bytes_s(name), now_s) for name in PRIORITIES}
        self._active: dict[str, set[Transfer]] = {name: set() for name in PRIORITIES}
        self._asking: dict[str, deque[Transfer]] = {name: deque() for name in PRIORITIES}
        self._numbers = itertools.count()
        self._left: dict[Hashable, tuple[int, float]] = {}

    def change(self, limits: OutputLimits, now_s: float) -> None:
        """Take other limits from now on."""
        self.limits = limits
        for name, bucket in self._buckets.items():
            bucket.change(limits.rate_bytes_s(name), now_s)

    def join(self, priority: str, key: Hashable, now_s: float) -> Transfer:
        """Return a new transfer; it rests until it asks."""
        for old, (_, left_at_s) in list(self._left.items()):
            if now_s - left_at_s > PLACE_KEPT_S:
                del self._left[old]
        number, _ = self._left.pop(key, (None, 0.0))
        return Transfer(priority, key, next(self._numbers) if number is None else number)

    def leave(self, transfer: Transfer, now_s: float, *, finished: bool) -> None:
        """End a transfer; one that is not finished keeps its place for a while."""
        self.sent(transfer, now_s)
        self.rest(transfer)
        if not finished:
            self._left[transfer.key] = (transfer.number, now_s)

    def sent(self, transfer: Transfer, now_s: float) -> None:
        """Say that the piece that was granted is out, or waits for something else than its turn."""
        if transfer.held_bytes:
            self._buckets[transfer.priority].let_go(transfer.held_bytes, now_s)
            transfer.held_bytes = 0.0

    def ask(self, transfer: Transfer, size_bytes: float) -> None:
        """Say that ``size_bytes`` are ready to be sent; the former piece was ``sent``."""
        transfer.asks_bytes = size_bytes
        self._active[transfer.priority].add(transfer)
        self._asking[transfer.priority].append(transfer)

    def rest(self, transfer: Transfer) -> None:
        """Say that there is nothing to send now: the transfer gives up its slot, not its place."""
        self._active[transfer.priority].discard(transfer)
        if transfer.asks_bytes is not None:
            transfer.asks_bytes = None
            self._asking[transfer.priority].remove(transfer)

    def spend(self, priority: str, size_bytes: float, now_s: float) -> None:
        """Count what was sent without asking (small answers); what follows waits for it."""
        self._buckets[priority].reserve(size_bytes, now_s)

    @property
    def is_asked(self) -> bool:
        """Whether anybody asks for something that was not granted yet."""
        return any(self._asking.values())

    def grants(self, now_s: float) -> tuple[list[Transfer], float | None]:
        """Return who may send what it asked for now, and when to look again if nobody asks before."""
        granted: list[Transfer] = []
        look_at_s: float | None = None
        slots = self.limits.max_concurrent
        for priority in PRIORITIES:
            bucket, admitted = self._buckets[priority], self._admitted(priority, slots)
            held: deque[Transfer] = deque()
            queue = self._asking[priority]
            while queue:
                transfer = queue.popleft()
                assert transfer.asks_bytes is not None
                if admitted is not None and transfer not in admitted:
                    held.append(transfer)
                elif bucket.take(transfer.asks_bytes, now_s):
                    self._drain_others(priority, transfer.asks_bytes, now_s)
                    bucket.hold(transfer.asks_bytes)
                    transfer.held_bytes += transfer.asks_bytes
                    transfer.asks_bytes = None
                    granted.append(transfer)
                else:
                    ready_at_s = bucket.ready_at_s(transfer.asks_bytes, now_s)
                    look_at_s = ready_at_s if look_at_s is None else min(look_at_s, ready_at_s)
                    held.append(transfer)
                    break
            held.extend(queue)
            self._asking[priority] = held
            if self._active[priority] and not self.limits.fill_spare_slots:
                break
            if slots is not None:
                slots = max(0, slots - len(self._active[priority]))
        return granted, look_at_s

    def _drain_others(self, priority: str, size_bytes: float, now_s: float) -> None:
        """What a class sends, the others cannot save up: they share its line."""
        if not self.limits.fill_spare_slots:
            for other in PRIORITIES:
                if other != priority:
                    self._buckets[other].drain(size_bytes, now_s)

    def _admitted(self, priority: str, slots: int | None) -> set[Transfer] | None:
        """Return those of a class that have a slot; ``None``: all."""
        active = self._active[priority]
        if slots is None or len(active) <= slots:
            return None
        return set(sorted(active, key=lambda transfer: transfer.number)[:slots])


class Queue:
    """How much of one transfer the system may hold unsent: what the line takes in ``QUEUE_S``, in powers of two.

    What is there no other transfer can overtake, and every time it runs low costs a wake-up. Slow lines, and transfers
    at a rate, have ``LEAST_QUEUE_BYTES``, these as much as a piece where that is more. A transfer that waits for its
    own blocks (``rested``) says nothing of its line by that; more than a block or two at a time it does not need.
    """

    def __init__(self, now_s: float) -> None:
        self.size_bytes = LEAST_QUEUE_BYTES
        self._since_s = now_s
        self._moved_bytes = 0
        self._has_rested = False

    def rested(self, for_s: float) -> None:
        """There was nothing to write for so long."""
        self._since_s += for_s
        self._has_rested = True

    def moved(self, size_bytes: int, now_s: float) -> bool:
        """Count what was written; return whether ``size_bytes`` is another now."""
        self._moved_bytes += size_bytes
        passed_s = now_s - self._since_s
        if passed_s < QUEUE_JUDGED_S and self._moved_bytes < QUEUES_JUDGED * self.size_bytes:
            return False
        before_bytes, wanted_bytes = self.size_bytes, int(self._moved_bytes / max(passed_s, 1e-6) * QUEUE_S)
        most_bytes = RESTED_QUEUE_BYTES if self._has_rested else MOST_QUEUE_BYTES
        self._moved_bytes, self._since_s, self._has_rested = 0, now_s, False
        self.size_bytes = LEAST_QUEUE_BYTES
        if wanted_bytes >= FAST_QUEUE_BYTES:
            self.size_bytes = min(most_bytes, 1 << (wanted_bytes.bit_length() - 1))
        return self.size_bytes != before_bytes


class Patience:
    """Judges whether the other side moves enough: at least a rate, on average over a window of waiting.

    Only the time spent waiting for the other side counts, never what this node's own limits take.
    """

    def __init__(self, least_bytes_s: float, window_s: float) -> None:
        self._least_bytes_s = least_bytes_s
        self._window_s = window_s
        self._moved_bytes = 0
        self._waited_s = 0.0

    def longest_s(self, size_bytes: int) -> float:
        """Return how long one piece may take at most."""
        return self._window_s + size_bytes / self._least_bytes_s

    def enough(self, size_bytes: int, waited_s: float) -> bool:
        """Count a piece; return false at the end of a window in which too little moved."""
        self._moved_bytes += size_bytes
        self._waited_s += waited_s
        if self._waited_s < self._window_s:
            return True
        enough = self._moved_bytes >= self._least_bytes_s * self._waited_s
        self._moved_bytes, self._waited_s = 0, 0.0
        return enough
