"""The packs a node can serve, whole ones and those still coming in.

Rules:
 * A block is served once this node itself has verified it, and not before; a reader of a pack that is still
   coming in waits for the block it wants (cut-through).
 * A pack that stops coming in wakes its readers with the error, so that none hangs. Where it stopped because the sender
   stores it damaged, those who ask later hear that as well: it does not come by itself.
 * The sizes a peer names are checked against the file before they are believed. A file that is not as long as
   this node's own records say is damaged.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ted.content.blocks import PartialPack
from ted.content.record import PackRef
from ted.content.working import read_record, record_stamps
from ted.errors import BusyError, DamagedError, MissingContentError, RepositoryError

log = logging.getLogger("ted.packs")

PackKey = tuple[str, str, str]
"""(distributor, distribution, revision whose pack it is)."""

Run = tuple[int, int]
"""(first block, count)."""


def blocks_of(runs: Iterable[Run]) -> Iterator[int]:
    """Yield the block numbers of ``runs`` in the order asked."""
    for first, count in runs:
        yield from range(first, first + count)


def runs_bytes(ref: PackRef, runs: Iterable[Run]) -> int:
    """Return the bytes of the blocks in ``runs``."""
    total = 0
    for first, count in runs:
        total += min((first + count) * ref.block_bytes, ref.bytes) - first * ref.block_bytes
    return total


def _is_on_record(directory: Path, ref: PackRef) -> bool:
    """Whether a record that is here, of any revision that needs this pack, says that it is as long as ``ref`` does."""
    for stamp in record_stamps(directory.parent):
        with suppress(RepositoryError, OSError):
            packs = read_record(directory.parent / stamp)[0].packs
            if any((each.revision, each.bytes) == (directory.name, ref.bytes) for each in packs):
                return True
    return False


class UnreadableError(RepositoryError):
    """The disk cannot read a block that is here."""


def damaged_at(node: str, key: PackKey, what: str) -> DamagedError:
    """Return the error for ``what`` of a pack a node stores and is not what was signed: where it is, what mends it."""
    distributor, distribution, revision = key
    mend = f"`ted build --force {distribution}`" if node == distributor else "`ted verify --stored --repair`"
    return DamagedError(f"{what} of {distribution} {revision} is damaged at {node}",
                        hint=f"run {mend} on {node}, and send again; what came stays")  # fmt: skip


class Incoming:
    """A pack that is coming in; shared by the thread that writes it and the tasks that serve it."""

    def __init__(self, pack: PartialPack, loop: asyncio.AbstractEventLoop) -> None:
        self.pack = pack
        self._loop = loop
        self._waiting: dict[asyncio.Future[bool], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._error: Exception | None = None

    def advanced(self) -> None:
        """Say (from any thread) that a block has come; where nobody waits for one, nobody is woken."""
        if self._waiting:
            self._loop.call_soon_threadsafe(self._wake)

    def stop(self, error: Exception) -> None:
        """Say that no more will come; those who wait get ``error``."""
        self._error = error
        self._wake()
        if self._timer is not None:
            self._timer.cancel()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(True)

    async def available(self, block: int, timeout_s: float) -> None:
        """Return when ``block`` is there.

        Raises:
            DamagedError: It will not come, since it is damaged where it comes from.
            MissingContentError: It will not come.
            BusyError: Nothing came for ``timeout_s`` seconds.
        """
        while not self.pack.has(block):
            if isinstance(self._error, DamagedError):
                raise _again(self._error)
            if self._error is not None:
                raise MissingContentError(f"block {block} will not come: {self._error}") from self._error
            waiter: asyncio.Future[bool] = self._loop.create_future()
            self._waiting[waiter] = until_s = self._loop.time() + timeout_s
            try:
                if self.pack.has(block):  # what is written after this look wakes it
                    return
                self._look_at(until_s)
                if not await waiter:
                    raise BusyError(f"nothing came in for {timeout_s:g} s")
            finally:
                self._waiting.pop(waiter, None)

    def _look_at(self, until_s: float) -> None:
        """See to it that nobody waits for longer; one timer for all, since each would wait anew for every block."""
        if self._timer is not None and self._timer.when() > until_s:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(until_s, self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        for waiter, until_s in self._waiting.items():
            if until_s <= now_s and not waiter.done():
                waiter.set_result(False)
        if later := [until_s for until_s in self._waiting.values() if until_s > now_s]:
            self._look_at(min(later))


class ServedPack:
    """An open pack file from which verified blocks are read."""

    def __init__(
        self, path: Path, ref: PackRef, incoming: Incoming | None, partial: PartialPack | None,
        damage: DamagedError | None = None,
    ) -> None:  # fmt: skip
        self._ref = ref
        self._damage = damage
        self._incoming = incoming
        self._partial = partial
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._flags_at_once: int | None = os.RWF_NOWAIT
        self.size = os.fstat(self._fd).st_size

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def block_size(self, block: int) -> int:
        """Return the bytes of ``block``; the last one is shorter."""
        return min(self._ref.block_bytes, self._ref.bytes - block * self._ref.block_bytes)

    def has(self, block: int) -> bool:
        """Return whether ``block`` need not be waited for."""
        held = self._partial if self._incoming is None else self._incoming.pack
        return held is None or held.has(block)

    async def available(self, block: int, timeout_s: float) -> None:
        """Return when ``block`` can be read; see ``Incoming.available``."""
        if self._incoming is not None:
            await self._incoming.available(block, timeout_s)
        elif self._partial is not None and not self._partial.has(block):
            if self._damage is not None:
                raise _again(self._damage)
            raise MissingContentError(f"block {block} is not on this node")

    def read(self, block: int, start: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``start`` in ``block``; for a worker thread.

        Raises:
            MissingContentError: The file is shorter than it should be.
            UnreadableError: The disk cannot read it.
        """
        try:
            whole = self._read(block, start, buffer, 0)
        except OSError as error:
            raise UnreadableError(f"block {block} cannot be read: {error.strerror}") from error
        if not whole:
            raise MissingContentError(f"block {block}: the pack on this node is shorter than it should be")

    def read_cached(self, block: int, start: int, buffer: memoryview) -> bool:
        """As ``read`` when that needs no disk: most of what is forwarded has just come. Else return false, at once."""
        if self._flags_at_once is None:
            return False
        try:
            return self._read(block, start, buffer, self._flags_at_once)
        except OSError as error:  # EAGAIN: not in memory
            if error.errno == errno.EOPNOTSUPP:
                self._flags_at_once = 0 if _is_memory(os.fstat(self._fd).st_dev) else None
            return False

    def _read(self, block: int, start: int, buffer: memoryview, flags: int) -> bool:
        return os.preadv(self._fd, [buffer], block * self._ref.block_bytes + start, flags) == len(buffer)


def _again(error: DamagedError) -> DamagedError:
    """Return the error anew: one that is raised more than once gathers tracebacks."""
    return DamagedError(error.message, hint=error.hint)


def _is_memory(device: int) -> bool:
    """Return whether a file system lives in memory: it cannot tell what would need a disk, and nothing does."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError, ValueError, IndexError), open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[2] == number:
                return fields[fields.index("-") + 1] in {"tmpfs", "ramfs"}
    return False


class PackStore:
    """All packs below one working directory, and those now coming in."""

    def __init__(self, working_directory: Path, node: str) -> None:
        self._root = working_directory
        self._node = node
        self._incoming: dict[PackKey, Incoming] = {}
        self._damage: dict[PackKey, DamagedError] = {}
        """Why a pack that is not whole came no further."""

    def announce(self, key: PackKey, incoming: Incoming) -> None:
        """Let readers wait for the blocks of a pack that is coming in."""
        self._incoming[key] = incoming
        self._damage.pop(key, None)

    def withdraw(self, key: PackKey, incoming: Incoming, error: Exception | None = None) -> None:
        """The pack no longer comes in by ``incoming``, because of ``error``."""
        if self._incoming.get(key) is incoming:
            del self._incoming[key]
            if isinstance(error, DamagedError):
                self._damage[key] = error

    @contextmanager
    def open(self, key: PackKey, ref: PackRef) -> Iterator[ServedPack]:
        """Open a pack for reading.

        Args:
            key: Names already checked by the caller.
            ref: Its sizes as the peer says; only ``bytes`` and ``block_bytes`` are used.

        Raises:
            MissingContentError: This node has not got it, or another one of that name is coming in.
            DamagedError: It is here, and neither whole nor on its way.
        """
        directory = self._root.joinpath(*key)
        path = directory / "DISTFILE.TED"
        incoming = self._incoming.get(key)
        partial = None
        known = None if incoming is None else incoming.pack.ref
        if known is not None and (known.bytes, known.block_bytes) != (ref.bytes, ref.block_bytes):
            raise MissingContentError(f"pack {'/'.join(key)} has other sizes here")
        if incoming is None and (directory / "BITMAP.TED").exists():
            partial = PartialPack(directory, ref)
        try:
            pack = ServedPack(path, ref, incoming, partial, self._damage.get(key))
        except FileNotFoundError as error:
            raise MissingContentError(f"pack {'/'.join(key)} is not on {self._node}") from error
        try:
            if pack.size != ref.bytes:
                if not _is_on_record(directory, ref):
                    raise MissingContentError(f"pack {'/'.join(key)} has other sizes here")
                log.error("pack %s has %d bytes here, not %d", "/".join(key), pack.size, ref.bytes)
                raise damaged_at(self._node, key, path.name)
            yield pack
        finally:
            pack.close()
            if partial is not None:
                partial.close()
