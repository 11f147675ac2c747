"""Turns at the gate out: what one that waits for its reader does to the others, and what one that is late does."""

from __future__ import annotations

import asyncio

import pytest

from ted.transfer import gates
from ted.transfer.gates import OutputGate, Turn
from ted.transfer.pacing import OutputLimits, burst_bytes

RATE = 1_000_000
PIECE = 20_000


def turns_of(gate: OutputGate, priority: str, *peers: str) -> list[Turn]:
    return [gate.join(priority, peer, peer) for peer in peers]


async def use_up(gate: OutputGate, turn: Turn) -> None:
    """Send until the gate lets nothing more go at once."""
    while await turn.take(PIECE, 0.001):
        turn.sent()


def test_whoever_has_its_turn_while_it_waits_for_its_reader_holds_nobody_back() -> None:
    async def run() -> None:
        gate = OutputGate(OutputLimits(high=RATE, low=RATE))
        (urgent,) = turns_of(gate, "high", "u")
        stuck = turns_of(gate, "low", *"abcdefgh")
        (healthy,) = turns_of(gate, "low", "z")
        await use_up(gate, urgent)
        for turn in stuck:
            assert not await turn.take(PIECE, 0.001), "a higher class sends; a sign of life is due"
        urgent.rest()
        async with asyncio.timeout(2.0):  # they get their turns, one after another, while their readers do not read
            assert await healthy.take(PIECE, 10)

    asyncio.run(run())


class Clock:
    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


def test_while_a_piece_is_late_nothing_is_saved_up_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(gates, "time", clock)

    async def others_send(*, is_late: bool) -> int:
        """Return how many pieces another may send after a while in which one had its turn, and went or did not."""
        gate = OutputGate(OutputLimits(high=RATE))
        one, other = turns_of(gate, "high", "a", "b")
        assert await one.take(PIECE, 10)
        if not is_late:
            one.sent()
        clock.now_s += 2 * burst_bytes(RATE) / RATE
        count = 0
        while await other.take(PIECE, 0.001):
            other.sent()
            count += 1
        return count

    whole = int(burst_bytes(RATE) // PIECE)
    assert asyncio.run(others_send(is_late=False)) == whole
    assert asyncio.run(others_send(is_late=True)) == whole - 1
