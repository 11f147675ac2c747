"""The gates of a node: every block that leaves or comes in passes one, and waits there for its turn.

Rules:
 * Waits are reckoned (``ted.transfer.pacing``), never polled.
 * The gate out belongs to the event loop, the gate in to the threads that fetch.
 * Changed limits hold from the next piece on.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from ted.transfer.pacing import Bucket, OutputLimits, Pacer, Transfer, piece_bytes

HELD_FROM_S = 0.05
SO_MAX_PACING_RATE, UNPACED = 47, -1  # linux/socket.h; the module socket has no name for it
SMALL_BUFFER_BYTES = 128 * 1024
LARGE_BUFFER_BYTES = 4 * 1024 * 1024


def segment_bytes(sock: socket.socket | None) -> int:
    """Return the size of a full segment on a connected socket's line."""
    with suppress(OSError, AttributeError):
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)  # type: ignore[union-attr]
    return 1448


class OutputGate:
    """What leaves this node, in the order and at the rates of its limits; for the event loop only."""

    def __init__(self, limits: OutputLimits) -> None:
        self._pacer = Pacer(limits, time.monotonic())
        self._turns: dict[Transfer, Turn] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def limits(self) -> OutputLimits:
        """The limits that hold now."""
        return self._pacer.limits

    def change(self, limits: OutputLimits) -> None:
        """Take other limits from now on."""
        self._pacer.change(limits, time.monotonic())
        self.move()

    def join(self, priority: str, peer: str, key: Hashable) -> Turn:
        """Return the turn of a new transfer; use it as a context.

        Args:
            priority: Its class.
            peer: Who receives.
            key: The same for a transfer that goes on after a break: it has its former place.
        """
        turn = Turn(self, self._pacer, self._pacer.join(priority, (peer, key), time.monotonic()), peer)
        self._turns[turn.transfer] = turn
        return turn

    def leave(self, turn: Turn, *, finished: bool) -> None:
        """End a transfer."""
        self._turns.pop(turn.transfer, None)
        self._pacer.leave(turn.transfer, time.monotonic(), finished=finished)
        self.move()

    def spend(self, priority: str, size_bytes: float) -> None:
        """Count a small answer that did not wait."""
        self._pacer.spend(priority, size_bytes, time.monotonic())

    def holds_back(self, peer: str, within_s: float) -> bool:
        """Return whether, ``within_s`` seconds back from now, this node itself let ``peer`` wait."""
        now_s = time.monotonic()
        return any(turn.held_at_s(now_s) > now_s - within_s for turn in self._turns.values() if turn.peer == peer)

    def move(self) -> None:
        """Let go whoever may send now, and look again when the next one may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._pacer.is_asked:
            return
        granted, look_at_s = self._pacer.grants(time.monotonic())
        for transfer in granted:
            self._turns[transfer].go()
        if look_at_s is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, look_at_s - time.monotonic()), self.move)


class Turn:
    """One transfer's place at the gate out."""

    def __init__(self, gate: OutputGate, pacer: Pacer, transfer: Transfer, peer: str) -> None:
        self.transfer = transfer
        self.peer = peer
        self.finished = False
        self._gate = gate
        self._pacer = pacer
        self._may = asyncio.Event()
        self._is_waiting = False
        self._asked_at_s: float | None = None
        self._held_until_s = -1e9

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._gate.leave(self, finished=self.finished)

    @property
    def rate_bytes_s(self) -> int | None:
        """The rate of this transfer's class."""
        return self._gate.limits.rate_bytes_s(self.transfer.priority)

    @property
    def piece_bytes(self) -> int:
        """How much to ask for at a time."""
        return piece_bytes(self.rate_bytes_s)

    def held_at_s(self, now_s: float) -> float:
        """Return when this transfer was last held back by this node for longer than a moment."""
        waits = self._asked_at_s is not None and now_s - self._asked_at_s > HELD_FROM_S
        return now_s if waits else self._held_until_s

    async def take(self, size_bytes: float, within_s: float) -> bool:
        """Wait until ``size_bytes`` may be sent; false when that takes longer than ``within_s``: then call again.

        Say when they are ``sent``, before the next ones.
        """
        self._is_waiting = True
        try:
            if self._asked_at_s is None:
                self._may.clear()
                self._asked_at_s = time.monotonic()
                self._pacer.ask(self.transfer, size_bytes)
                self._gate.move()
            with suppress(TimeoutError):
                if not self._may.is_set():
                    async with asyncio.timeout(within_s):
                        await self._may.wait()
            if self._may.is_set():
                self._asked_at_s = None
        finally:
            self._is_waiting = False
        return self._asked_at_s is None

    def sent(self) -> None:
        """The piece is out, or waits for its reader or a disk: what others may send does not hang on it any more."""
        self._pacer.sent(self.transfer, time.monotonic())

    def rest(self) -> None:
        """Nothing to send now; others may."""
        self._asked_at_s = None
        self.sent()
        self._pacer.rest(self.transfer)
        self._gate.move()

    def go(self) -> None:
        """Let it send (the gate says so)."""
        now_s = time.monotonic()
        if self._asked_at_s is not None and now_s - self._asked_at_s > HELD_FROM_S:
            self._held_until_s = now_s
        self._may.set()
        if not self._is_waiting:  # between two waits it gives its reader a sign of life, for as long as that takes
            self.sent()


class InputGate:
    """What comes in, whoever sends it, at one rate; safe for threads."""

    def __init__(self, rate_bytes_s: int | None) -> None:
        self._bucket = Bucket(rate_bytes_s, time.monotonic())
        self._lock = threading.Lock()
        self._open = 0

    @property
    def rate_bytes_s(self) -> float | None:
        """The rate that holds now."""
        return self._bucket.rate_bytes_s

    @property
    def piece_bytes(self) -> int | None:
        """How much to read at a time; ``None``: as much as there is."""
        rate_bytes_s = self._bucket.rate_bytes_s
        return None if rate_bytes_s is None else piece_bytes(rate_bytes_s)

    @property
    def window_bytes(self) -> int | None:
        """What the system may take in for one of the transfers before it is read; ``None``: what it likes.

        A tenth of a second for all together: enough for lines of that delay, and little beside the rate.
        """
        rate_bytes_s = self._bucket.rate_bytes_s
        if rate_bytes_s is None:
            return None
        return int(min(LARGE_BUFFER_BYTES, max(32 * 1024, rate_bytes_s / 10 / max(1, self._open))))

    @contextmanager
    def transfer(self) -> Iterator[None]:
        """Be counted as one of those who share the rate."""
        with self._lock:
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1

    def change(self, rate_bytes_s: int | None) -> None:
        """Take another rate from now on."""
        with self._lock:
            self._bucket.change(rate_bytes_s, time.monotonic())

    def take(self, size_bytes: float) -> None:
        """Wait until ``size_bytes`` may come in."""
        if self._bucket.rate_bytes_s is None:
            return
        with self._lock:
            now_s = time.monotonic()
            wait_s = self._bucket.reserve(size_bytes, now_s) - now_s
        if wait_s > 0:
            time.sleep(wait_s)


def limit_unsent(sock: socket.socket | None, queue_bytes: int) -> None:
    """Keep what is not on its way yet out of the system's queue: there nothing could overtake it any more."""
    _set(sock, socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, queue_bytes)


def fit_send_buffer(sock: socket.socket | None, rate_bytes_s: int | None) -> None:
    """Let a low rate's connection have little under way; a high one, or none, as much as its line needs.

    The system spreads what it is given over the time it should take: a burst that meets a line hardly faster than the
    rate would stand in its queue for seconds, and whatever is urgent behind it.
    """
    paced = rate_bytes_s is not None and rate_bytes_s < 1 << 31
    _set(sock, socket.SOL_SOCKET, SO_MAX_PACING_RATE, int(rate_bytes_s or 0) if paced else UNPACED)
    small = rate_bytes_s is not None and rate_bytes_s / 4 <= SMALL_BUFFER_BYTES
    _set(sock, socket.SOL_SOCKET, socket.SO_SNDBUF,
         max(16 * 1024, (rate_bytes_s or 0) // 4) if small else LARGE_BUFFER_BYTES)  # fmt: skip


def forget_rate(sock: socket.socket | None) -> None:
    """Take back the rate that an earlier transfer left on a connection that was kept."""
    if sock is None:
        return
    with suppress(OSError):  # it is closed: the next write says so
        if sock.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE) != UNPACED:
            fit_send_buffer(sock, None)


def fit_receive_buffer(sock: socket.socket | None, window_bytes: int | None) -> None:
    """Let the system take in about ``window_bytes`` before they are read; ``None``: as much as the line needs."""
    _set(sock, socket.SOL_SOCKET, socket.SO_RCVBUF, window_bytes or LARGE_BUFFER_BYTES)


def _set(sock: socket.socket | None, level: int, option: int, value: int) -> None:
    with suppress(OSError, AttributeError):
        sock.setsockopt(level, option, value)  # type: ignore[union-attr]
