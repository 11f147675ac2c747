"""Fetching a revision from a sender: metadata, record, block lists, blocks.

Rules:
 * Order of writes: signed record verified -> REVISION.TED -> BLOCKS.TED whose root the record names -> blocks, each
   verified before it is written -> bits, after the data are on the disk -> DISTSTATUS.TED, last of all.
 * What is already here is not asked for again; one request asks for all that lacks of a pack.
 * Everything here blocks and belongs into a worker thread.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path

from ted.content.blocks import BLOCKS_NAME, BlockList, PartialPack
from ted.content.durable import read_bounded
from ted.content.record import PackRef
from ted.errors import DigestMismatchError, NoSpaceError, TransferError
from ted.transfer.client import Connection, Peer, Pool
from ted.transfer.packs import Run, blocks_of, runs_bytes
from ted.transfer.saver import Saver

MAX_METADATA_BYTES = 8 * 1024 * 1024
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

    def _get(self, path: str, max_bytes: int) -> bytes:
        return self.pool.call(self.peer, "GET", path, max_bytes=max_bytes)


def prepare_pack(source: Source, distribution: str, ref: PackRef, directory: Path) -> PartialPack:
    """Return the pack as far as it is here, its block list fetched and verified.

    Raises:
        DigestMismatchError: The sender's block list is not the one that was signed.
    """
    digests = read_bounded(directory / BLOCKS_NAME, ref.blocks * 32) if directory.is_dir() else None
    if digests is not None:
        with suppress(DigestMismatchError):
            BlockList.from_bytes(digests, ref)
            return PartialPack(directory, ref)
    return PartialPack.prepare(directory, ref, source.block_digests(distribution, ref))


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
    floor = max(min_free_bytes or 0, SPARE_BYTES)
    if missing_bytes and missing_bytes + floor > free:
        raise NoSpaceError(
            f"{directory}: {missing_bytes} bytes to receive, {free} are free and {floor} must stay free",
            hint="free space there, run `ted purge`, or lower ted_min_free",
        )


def fetch_blocks(
    source: Source, distribution: str, ref: PackRef, pack: PartialPack, *,
    on_open: Callable[[Connection | None], None], on_block: Callable[[int], None], cancelled: Callable[[], bool],
) -> None:  # fmt: skip
    """Fetch every live block that lacks, in one request.

    Args:
        source: Where from.
        distribution: Whose pack it is.
        ref: The pack, as signed.
        pack: Where to; what it has already is not asked for.
        on_open: Called with the connection before the first block (closing it ends the transfer), and with ``None``
            before it goes back to the pool, where it is another's.
        on_block: Called with the size in bytes of each block that was verified and written.
        cancelled: Asked between blocks; true ends the transfer without an error.

    Raises:
        UnreachableError: The connection broke; what came is kept.
        DigestMismatchError: A block was not what was signed; it was not written.
    """
    runs = pack.missing()
    if not runs:
        return
    path = f"/v1/pack/{source.distributor}/{distribution}/{ref.revision}"
    try:
        with Saver(pack) as saver, source.pool.lend(source.peer) as connection:
            on_open(connection)
            try:
                answer = connection.request("POST", path, _wanted(ref, runs))
                _write_blocks(connection, answer, ref, runs, pack, saver, on_block=on_block, cancelled=cancelled)
            finally:
                on_open(None)
    except _CancelledError:
        return


def _wanted(ref: PackRef, runs: list[Run]) -> dict[str, object]:
    return {"bytes": ref.bytes, "block_bytes": ref.block_bytes, "runs": runs}


def _write_blocks(
    connection: Connection, answer: HTTPResponse, ref: PackRef, runs: list[Run], pack: PartialPack, saver: Saver,
    *, on_block: Callable[[int], None], cancelled: Callable[[], bool],
) -> None:  # fmt: skip
    """Write each block of an answer as it comes."""
    if answer.length != runs_bytes(ref, runs):
        raise TransferError(f"{connection.peer} announces {answer.length} bytes for {len(runs)} runs of blocks")
    buffer = memoryview(bytearray(ref.block_bytes))
    for block in blocks_of(runs):
        if cancelled():
            raise _CancelledError
        size = pack.block_size(block)
        connection.read_into(answer, buffer[:size])
        saver.check()
        pack.write(block, buffer[:size])
        on_block(size)


class _CancelledError(Exception):
    """Leaves the connection closed: the rest of the answer was not read."""
