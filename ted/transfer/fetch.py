"""Fetching a revision from a sender: metadata, record, block lists, blocks.

Rules:
 * Order of writes: signed record verified -> REVISION.TED -> BLOCKS.TED whose root the record names -> blocks, each
   verified before it is written -> bits, after the data are on the disk -> DISTSTATUS.TED, last of all.
 * What is already here is not asked for again; one request asks for all that lacks of a pack.
 * Every piece passes the gate in before it is read. A sender that is slower than the least rate is left, unless it says
   that its own limits hold it up; the time at this node's own gate does not count.
 * At the end of a window no block is begun that would not be finished; the sender keeps to it too.
 * Everything here blocks and belongs into a worker thread.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path

from ted.content.blocks import BLOCKS_NAME, BlockList, PartialPack
from ted.content.record import PackRef
from ted.errors import (
    BusyError,
    DamagedError,
    DigestMismatchError,
    NoSpaceError,
    RepositoryError,
    TedError,
    TransferError,
    UnreachableError,
)
from ted.transfer.client import Connection, Peer, Pool
from ted.transfer.gates import InputGate
from ted.transfer.pacing import Patience
from ted.transfer.packs import Run, blocks_of, damaged_at, runs_bytes
from ted.transfer.saver import Saver

MAX_METADATA_BYTES = 8 * 1024 * 1024
ASK_EVERY_S = 0.5
PATIENT_BYTES = 256 * 1024  # read at a time where no rate is set
EARLY_S = 1.0  # before the end of a window that a sender may stop, beyond what a block takes
SPARE_BYTES = 1024 * 1024  # what a node needs beside the packs: lists, journal


@dataclass(frozen=True)
class Source:
    """A sender, and how it is asked."""

    pool: Pool
    peer: Peer
    distributor: str

    def metadata(self, name: str, max_bytes: int) -> bytes:
        """Return a file of the catalog; ``name`` as the catalog's view asks for it."""
        if "/" in name:
            distribution, revision, _ = name.split("/")
            return self._get(f"/v1/record/{self.distributor}/{distribution}/{revision}", max_bytes)
        return self._get(f"/v1/catalog/{self.distributor}/{name}", max_bytes)

    def block_digests(self, distribution: str, ref: PackRef) -> bytes:
        """Return the block list of a pack, unverified."""
        return self._get(f"/v1/blocks/{self.distributor}/{distribution}/{ref.revision}", ref.blocks * 32)

    def damaged(self, distribution: str, revision: str, what: str) -> DamagedError:
        """Return the error for what came from the sender and is not what was signed: where it is, and what mends it."""
        return damaged_at(self.peer.name, (self.distributor, distribution, revision), what)

    def held(self) -> bool:
        """Return whether the sender says that its own limits hold this node's transfers up."""
        try:
            said = json.loads(self.pool.call(self.peer, "GET", "/v1/ping", max_bytes=4096))
        except (TedError, ValueError):
            return False
        return isinstance(said, dict) and said.get("held") is True

    def _get(self, path: str, max_bytes: int) -> bytes:
        return self.pool.call(self.peer, "GET", path, max_bytes=max_bytes)


def prepare_pack(source: Source, distribution: str, ref: PackRef, directory: Path) -> PartialPack:
    """Return the pack as far as it is here, its block list fetched and verified.

    Raises:
        DamagedError: The sender's block list is not the one that was signed.
    """
    if _has_list(directory, ref):
        return PartialPack(directory, ref)
    try:
        return PartialPack.prepare(directory, ref, source.block_digests(distribution, ref))
    except DigestMismatchError as error:
        raise source.damaged(distribution, ref.revision, BLOCKS_NAME) from error


def _has_list(directory: Path, ref: PackRef) -> bool:
    with suppress(RepositoryError):
        BlockList.load(directory, ref)
        return True
    return False


def receive_lock(distributor: str, distribution: str) -> str:
    """Return the name of the lock (``WorkingDirectory.lock``) of whoever receives a distribution."""
    return "receive-" + hashlib.sha256(f"{distributor}/{distribution}".encode()).hexdigest()


def check_space(directory: Path, missing_bytes: int, min_free_bytes: int | None) -> None:
    """Refuse before the first byte when the disk would be filled beyond the floor.

    Raises:
        NoSpaceError: There is not room; names the figures.
    """
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    floor = (min_free_bytes or 0) + SPARE_BYTES
    if missing_bytes and missing_bytes + floor > free:
        raise NoSpaceError(
            f"{directory}: {missing_bytes} bytes to receive, {free} are free and {floor} must stay free",
            hint="free space there, or run `ted purge`" + (", or lower ted_min_free" if floor > SPARE_BYTES else ""),
        )


def fetch_blocks(
    source: Source, distribution: str, ref: PackRef, pack: PartialPack, *,
    gate: InputGate, patience: Patience, on_open: Callable[[Connection | None], None],
    on_news: Callable[[int], None], cancelled: Callable[[], bool], left_s: Callable[[], float],
) -> bool:  # fmt: skip
    """Fetch every live block that lacks, in one request; return false when the window did not leave the time.

    Args:
        source: Where from.
        distribution: Whose pack it is.
        ref: The pack, as signed.
        pack: Where to; what it has already is not asked for.
        gate: What comes in passes it.
        patience: Judges the sender.
        on_open: Called with the connection before the first block (closing it ends the transfer), and with ``None``
            before it goes back to the pool, where it is another's.
        on_news: Called with the size in bytes of each block that was verified and written, and with 0 when the
            sender is alive and nothing more.
        cancelled: Asked between blocks; true ends the transfer without an error.
        left_s: Returns the seconds until the window ends, infinite without one.

    Raises:
        UnreachableError: The connection broke; what came is kept.
        DamagedError: A block was not what was signed; it was not written.
    """
    runs = pack.missing()
    if not runs:
        return True
    path = f"/v1/pack/{source.distributor}/{distribution}/{ref.revision}"
    try:
        with Saver(pack) as saver, source.pool.lend(source.peer) as connection, gate.transfer():
            on_open(connection)
            try:
                fetch = _Fetch(source, distribution, connection, gate, patience, on_news, cancelled, left_s,
                               runs_bytes(ref, runs))  # fmt: skip
                fetch.write_blocks(fetch.ask(path, _wanted(ref, runs)), ref, runs, pack, saver)
            finally:
                on_open(None)
    except _CancelledError:
        return True
    except _WindowOverError:
        return False
    return True


def _wanted(ref: PackRef, runs: list[Run]) -> dict[str, object]:
    return {"bytes": ref.bytes, "block_bytes": ref.block_bytes, "runs": runs}


@dataclass
class _Fetch:
    """One request for blocks.

    What the system takes in before it is read is paid for at the gate before it is asked for, the rest piece by piece:
    so no more is on the line than was paid for, however many transfers begin together.
    """

    source: Source
    distribution: str
    connection: Connection
    gate: InputGate
    patience: Patience
    on_news: Callable[[int], None]
    cancelled: Callable[[], bool]
    left_s: Callable[[], float]
    unpaid_bytes: int
    paid_window_bytes: int = 0
    block_s: float = 0.0
    """How long the last block took."""

    def ask(self, path: str, wanted: dict[str, object]) -> HTTPResponse:
        """Return the answer's head; a sender that is busy is asked again for as long as it says so."""
        self._pay(0)
        while True:
            self._unless_cancelled()
            asked_at_s, left_s = time.monotonic(), self._left_s()
            try:
                return self.connection.request(
                    "POST", path, wanted if math.isinf(left_s) else wanted | {"for_s": round(left_s, 3)}
                )
            except BusyError:
                self.on_news(0)
                time.sleep(max(0.0, ASK_EVERY_S - (time.monotonic() - asked_at_s)))

    def write_blocks(
        self, answer: HTTPResponse, ref: PackRef, runs: list[Run], pack: PartialPack, saver: Saver
    ) -> None:
        """Write each block of an answer as it comes."""
        peer = self.connection.peer
        if answer.length != runs_bytes(ref, runs):
            raise TransferError(f"{peer} announces {answer.length} bytes for {len(runs)} runs of blocks")
        buffer = memoryview(bytearray(ref.block_bytes))
        for block in blocks_of(runs):
            size = pack.block_size(block)
            self._left_s()
            began_at_s = time.monotonic()
            self._read(answer, buffer[:size])
            self.block_s = time.monotonic() - began_at_s
            saver.check()
            try:
                pack.write(block, buffer[:size])
            except DigestMismatchError as error:
                what = f"block {block} of {pack.path.name}"
                raise self.source.damaged(self.distribution, ref.revision, what) from error
            self.on_news(size)

    def _left_s(self) -> float:
        """Return what is left of the window.

        Raises:
            _WindowOverError: Nothing is.
        """
        left_s = self.left_s()
        if not left_s:
            raise _WindowOverError
        return left_s

    def _pay(self, size_bytes: int) -> None:
        """Pay for a piece, and for what the system may take in more than before."""
        window_bytes = self.connection.limit_window(self.gate.window_bytes)
        grown_bytes = max(0, window_bytes - self.paid_window_bytes)
        self.paid_window_bytes += grown_bytes
        size_bytes = min(size_bytes + grown_bytes, self.unpaid_bytes)
        self.gate.take(size_bytes * self.connection.line_factor)
        self.unpaid_bytes -= size_bytes

    def _read(self, answer: HTTPResponse, buffer: memoryview) -> None:
        """Fill ``buffer``, at this node's own rate."""
        done = 0
        while done < len(buffer):
            self._unless_cancelled()
            piece = buffer[done : done + (self.gate.piece_bytes or PATIENT_BYTES)]
            self._pay(len(piece))
            before_s = time.monotonic()
            try:
                self.connection.read_into(answer, piece)
            except UnreachableError:
                if not done and self.left_s() < 2 * self.block_s + EARLY_S:
                    raise _WindowOverError from None  # the sender began no other block
                raise
            done += len(piece)
            if not self.patience.enough(len(piece), time.monotonic() - before_s):
                if not self.source.held():
                    raise UnreachableError(f"{self.connection.peer} sends less than ted_min_rate",
                                           hint="it is tried again; is the line to it in order?")  # fmt: skip
                self.on_news(0)

    def _unless_cancelled(self) -> None:
        if self.cancelled():
            raise _CancelledError


class _WindowOverError(Exception):
    """The window leaves no time for another block."""


class _CancelledError(Exception):
    """Leaves the connection closed: the rest of the answer was not read."""
