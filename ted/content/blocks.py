"""Blocks of a pack: their list, and a pack that is still coming in.

Rules:
 * A block is written only after its digest matched the list, the list only believed when its root matched the record.
 * The bitmap never promises a block whose data is not durable: data is synced first, then the bitmap replaced.
 * ``BITMAP.TED`` is there before ``DISTFILE.TED`` is; a pack without a bitmap is whole.
 * A bitmap that is not whole counts as empty; one for another pack is refused, and nothing is removed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ted.content.durable import read_bounded, reads_as, replace_file, sync_directory
from ted.content.record import MAX_BLOCK_BYTES, MAX_RUNS, MIN_BLOCK_BYTES, PackRef, Run
from ted.errors import HOW_TO_MEND, DigestMismatchError, FormatError, MissingContentError, RepositoryError

PACK_NAME = "DISTFILE.TED"
BLOCKS_NAME = "BLOCKS.TED"
BITMAP_NAME = "BITMAP.TED"

_DIGEST_BYTES = 32
_BITMAP_HEADER = struct.Struct("<8sH2xIQ32s")
_BITMAP_MAGIC = b"TEDBITS\0"
_BITMAP_VERSION = 1


def block_bytes_for(pack_bytes: int) -> int:
    """Return the size of the blocks of a pack: a power of two that grows with the root of the pack's size.

    It balances the cost of each block on a slow link against the delay that each tier adds: cut-through
    forwards a block when it is whole.
    """
    power = (max(1024 * pack_bytes, 1).bit_length() - 1) // 2
    return min(max(1 << power, MIN_BLOCK_BYTES), MAX_BLOCK_BYTES)


def root_of(digests: bytes, block_bytes: int, pack_bytes: int) -> bytes:
    """Return the root of a block list."""
    head = b"ted blocks 1\0" + struct.pack("<IQ", block_bytes, pack_bytes)
    return hashlib.sha256(head + digests).digest()


class BlockList:
    """The digests of a pack's blocks."""

    def __init__(self, digests: bytes, block_bytes: int, pack_bytes: int) -> None:
        self.digests = digests
        self.block_bytes = block_bytes
        self.pack_bytes = pack_bytes

    def __len__(self) -> int:
        return len(self.digests) // _DIGEST_BYTES

    @property
    def root(self) -> bytes:
        """The root that the record pins."""
        return root_of(self.digests, self.block_bytes, self.pack_bytes)

    @classmethod
    def of_pack(cls, path: Path, block_bytes: int | None = None) -> BlockList:
        """Return the list for the pack at ``path``, with blocks of the size that suits it or is forced.

        Two threads, each with one half, so that at most two blocks are in memory.
        """
        with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(2, thread_name_prefix="ted-blocks") as threads:
            size = os.fstat(file.fileno()).st_size
            length = block_bytes or block_bytes_for(size)

            def digests(blocks: range) -> bytes:
                read = (os.pread(file.fileno(), length, block * length) for block in blocks)
                return b"".join(hashlib.sha256(data).digest() for data in read)

            count = -(-size // length)
            halves = (range(count // 2), range(count // 2, count))
            return cls(b"".join(threads.map(digests, halves)), length, size)

    @classmethod
    def from_bytes(cls, data: bytes, ref: PackRef) -> BlockList:
        """Return the list in ``data``, checked against the signed record.

        Raises:
            DigestMismatchError: It is not the list that the record pins.
        """
        if len(data) != ref.blocks * _DIGEST_BYTES or root_of(data, ref.block_bytes, ref.bytes).hex() != ref.root:
            raise DigestMismatchError(
                f"the block list of pack {ref.revision} is not the one that was signed",
                hint=HOW_TO_MEND,
            )
        return cls(data, ref.block_bytes, ref.bytes)

    @classmethod
    def load(cls, directory: Path, ref: PackRef) -> BlockList:
        """Return the list in a revision's directory.

        Raises:
            MissingContentError: There is none.
            DigestMismatchError: It is not the list that the record pins.
        """
        data = read_bounded(directory / BLOCKS_NAME, ref.blocks * _DIGEST_BYTES)
        if data is None:
            raise MissingContentError(f"{directory}: no {BLOCKS_NAME}", hint=HOW_TO_MEND)
        return cls.from_bytes(data, ref)

    def digest(self, block: int) -> bytes:
        """Return the digest of one block."""
        return self.digests[block * _DIGEST_BYTES : (block + 1) * _DIGEST_BYTES]

    def matches(self, block: int, data: bytes | bytearray | memoryview) -> bool:
        """Whether ``data`` is block number ``block``."""
        return hashlib.sha256(data).digest() == self.digest(block)


def is_sound(directory: Path, ref: PackRef) -> bool:
    """Read a pack that should be here as a whole; return whether it and its block list are what was signed."""
    try:
        BlockList.load(directory, ref)
        return BlockList.of_pack(directory / PACK_NAME, ref.block_bytes).root.hex() == ref.root
    except (RepositoryError, OSError):
        return False


class Bitmap:
    """One bit a block. Reading and setting single bits is safe from several threads."""

    def __init__(self, blocks: int, bits: bytes | None = None) -> None:
        self.blocks = blocks
        self._bits = bytearray(bits if bits is not None else bytes(-(-blocks // 8)))

    @classmethod
    def full(cls, blocks: int) -> Bitmap:
        """Return a bitmap with every bit set."""
        bitmap = cls(blocks)
        bitmap.set_runs([(0, blocks)])
        return bitmap

    def __contains__(self, block: int) -> bool:
        return 0 <= block < self.blocks and bool(self._bits[block >> 3] >> (block & 7) & 1)

    def add(self, block: int) -> None:
        """Set one bit."""
        self._bits[block >> 3] |= 1 << (block & 7)

    def discard(self, block: int) -> None:
        """Clear one bit."""
        self._bits[block >> 3] &= ~(1 << (block & 7))

    def set_runs(self, runs: Iterable[Run]) -> None:
        """Set the bits of ``runs``."""
        for first, count in runs:
            for block in range(first, first + count):
                self.add(block)

    def runs(self, within: Iterable[Run] | None = None, *, held: bool = True) -> list[Run]:
        """Return the runs of set bits (or of clear ones) within the given runs, in order."""
        found: list[Run] = []
        for first, count in within if within is not None else ((0, self.blocks),):
            for start, length in self._same(first, first + count, held):
                if found and sum(found[-1]) == start:
                    found[-1] = (found[-1][0], found[-1][1] + length)
                else:
                    found.append((start, length))
        return found

    def count(self) -> int:
        """Return the number of set bits."""
        return int.from_bytes(self._bits, "little").bit_count()

    def to_bytes(self) -> bytes:
        """Return the bits, lowest first."""
        return bytes(self._bits)

    def _same(self, start: int, stop: int, held: bool) -> Iterator[Run]:
        begin = None
        block = start
        whole, none = (0xFF, 0x00) if held else (0x00, 0xFF)
        while block < stop:
            byte = self._bits[block >> 3]
            if not block & 7 and block + 8 <= stop and byte in {whole, none}:
                step, same = 8, byte == whole
            else:
                step, same = 1, bool(byte >> (block & 7) & 1) is held
            if same and begin is None:
                begin = block
            elif not same and begin is not None:
                yield begin, block - begin
                begin = None
            block += step
        if begin is not None:
            yield begin, stop - begin


def bounded_runs(runs: list[Run], limit: int = MAX_RUNS) -> list[Run]:
    """Return ``runs`` with the smallest gaps closed until there are at most ``limit``."""
    if len(runs) <= limit:
        return runs
    gaps = sorted((runs[i + 1][0] - sum(runs[i]), i) for i in range(len(runs) - 1))
    closed = {i for _, i in gaps[: len(runs) - limit]}
    joined: list[Run] = []
    for number, (first, count) in enumerate(runs):
        if number - 1 in closed:
            start = joined[-1][0]
            joined[-1] = (start, first + count - start)
        else:
            joined.append((first, count))
    return joined


class PartialPack:
    """A pack in its revision's directory, whole or still coming in.

    One thread may write while others read. Opening changes nothing; ``make``, or the first ``write``, makes the files.
    The caller has checked the space; the file is made at its full size, as a hole.

    Args:
        directory: ``<working directory>/<distributor>/<distribution>/<stamp of the pack>``.
        ref: From a record whose signature holds.

    Raises:
        FormatError: What lies there belongs to another pack, or is of a version this ted does not know.
    """

    def __init__(self, directory: Path, ref: PackRef) -> None:
        self.directory = directory
        self.ref = ref
        self.path = directory / PACK_NAME
        self._lock = threading.Lock()
        self._fd = -1
        self._writable = False
        self._list: BlockList | None = None
        self._dirty = False
        self._partial, self._bits = self._load()

    @classmethod
    def prepare(cls, directory: Path, ref: PackRef, block_list: bytes) -> PartialPack:
        """Put ``BLOCKS.TED`` in place, checked against the record, and return the pack, ready to be written to.

        Raises:
            DigestMismatchError: ``block_list`` is not the list that the record pins.
        """
        BlockList.from_bytes(block_list, ref)
        directory.mkdir(parents=True, exist_ok=True)
        if not reads_as(directory / BLOCKS_NAME, block_list):
            replace_file(directory / BLOCKS_NAME, block_list)
        return cls(directory, ref)

    def close(self) -> None:
        """Close the file. Not a flush: blocks since the last one are fetched again."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1
            self._writable = False

    def has(self, block: int) -> bool:
        """Whether the block is here, verified. It may not be durable yet."""
        return block in self._bits

    @property
    def held_blocks(self) -> int:
        """Number of blocks that are here."""
        return self._bits.count()

    def block_size(self, block: int) -> int:
        """Return the bytes of ``block``; the last one may be shorter."""
        return min(self.ref.block_bytes, self.ref.bytes - block * self.ref.block_bytes)

    def missing(self, live: Iterable[Run] | None = None) -> list[Run]:
        """Return the runs of blocks not here among ``live`` (by default what the record calls live)."""
        with self._lock:
            return self._bits.runs(self.ref.live if live is None else live, held=False)

    def complete(self, live: Iterable[Run] | None = None) -> bool:
        """Whether all of ``live`` (by default what the record calls live) is here."""
        return not self.missing(live)

    def read(self, block: int) -> bytes:
        """Return the bytes of a block that is here.

        Raises:
            MissingContentError: It is not.
        """
        if not self.has(block):
            raise MissingContentError(f"{self.path}: block {block} is not here", hint="`ted receive` fetches it")
        with self._lock:
            self._open(write=False)
            data = os.pread(self._fd, self.block_size(block), block * self.ref.block_bytes)
        if len(data) != self.block_size(block):
            raise MissingContentError(f"{self.path}: ends before block {block}", hint=HOW_TO_MEND)
        return data

    def write(self, block: int, data: bytes | bytearray | memoryview) -> None:
        """Store a block; a block that is here already is left alone.

        Raises:
            DigestMismatchError: ``data`` is not that block; nothing was written.
            MissingContentError: There is no ``BLOCKS.TED`` to check it against.
        """
        if not 0 <= block < self.ref.blocks:
            raise FormatError(f"{self.path}: there is no block {block}")
        if self.has(block):
            return
        if len(data) != self.block_size(block) or not self._block_list().matches(block, data):
            raise DigestMismatchError(
                f"{self.path}: block {block} arrived as something else", hint="what it came from is damaged"
            )
        with self._lock:
            self._open(write=True)
            self._put(block, data)
            self._bits.add(block)
            self._dirty = True

    def _put(self, block: int, data: bytes | bytearray | memoryview) -> None:
        """Write a block, also over sectors that cannot be read."""
        offset = block * self.ref.block_bytes
        try:
            _write_at(self._fd, data, offset)
        except OSError as error:
            if error.errno != errno.EIO or offset + len(data) != self.ref.bytes:
                raise
            # It ends within a page, and the system reads what is there before it writes a part: have it forget that.
            os.ftruncate(self._fd, offset)
            os.ftruncate(self._fd, self.ref.bytes)
            _write_at(self._fd, data, offset)

    def make(self) -> None:
        """Make the files of a pack that lacks blocks, so that others can open it before the first one comes."""
        with self._lock:
            self._open(write=True)

    def reclaim(self) -> int:
        """Take up what a killed process wrote and had not recorded: blocks with data that match the list.

        Holes are not read, so this costs the reading of what is there. What cannot be read is not taken up. Nothing is
        durable before the next ``flush``.

        Returns:
            Blocks that need not be fetched again.
        """
        found = 0
        if not self._partial or not self.path.exists():
            return found
        for first, count in self.missing([(0, self.ref.blocks)]):
            for block in self._with_data(first, first + count):
                if self._is_sound(self._block_list(), block):
                    with self._lock:
                        self._bits.add(block)
                        self._dirty = True
                    found += 1
        return found

    def _with_data(self, first: int, end: int) -> Iterator[int]:
        """Yield the blocks from ``first`` up to ``end`` of which something is in the file."""
        with self._lock:
            self._open(write=True)
        size = self.ref.block_bytes
        while first < end:
            try:
                first = max(first, os.lseek(self._fd, first * size, os.SEEK_DATA) // size)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data from here on
                    return
                raise
            if first < end:
                yield first
            first += 1

    def flush(self) -> None:
        """Make every block written so far durable: data first, then the bitmap."""
        with self._lock:
            if not self._dirty:
                return
            bits = self._bits.to_bytes()
            self._dirty = False
            fd = os.dup(self._fd) if self._fd >= 0 else os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fdatasync(fd)
            self._save(bits)
        except BaseException:
            self._dirty = True
            raise
        finally:
            os.close(fd)

    @classmethod
    def doubted(cls, directory: Path, ref: PackRef) -> PartialPack:
        """Return the pack with nothing in it, durably, whatever lies there; ``reclaim`` finds what is sound of it."""
        _save_bits(directory, ref, Bitmap(ref.blocks).to_bytes())
        return cls(directory, ref)

    def recheck(self) -> list[Run]:
        """Read every block that should be here; those that are damaged count as missing from now on, durably.

        Returns:
            The runs of blocks that were damaged.
        """
        damaged = self.damaged()
        if damaged:
            self._forget(damaged)
        return damaged

    def damaged(self) -> list[Run]:
        """Read every block that should be here; return the runs of those that are not what was signed."""
        bad = Bitmap(self.ref.blocks)
        blocks = self._block_list()
        held = self._bits.runs()
        if held:
            with self._lock:
                self._open(write=False)
        for first, count in held:
            for block in range(first, first + count):
                if not self._is_sound(blocks, block):
                    bad.add(block)
        return bad.runs()

    def _is_sound(self, blocks: BlockList, block: int) -> bool:
        """Whether what lies in the open file is what was signed; a sector that cannot be read is written anew."""
        try:
            data = os.pread(self._fd, self.block_size(block), block * self.ref.block_bytes)
        except OSError:
            return False
        return blocks.matches(block, data)

    def _forget(self, runs: list[Run]) -> None:
        with self._lock:
            for first, count in runs:
                for block in range(first, first + count):
                    self._bits.discard(block)
            self._partial = True
            bits = self._bits.to_bytes()
        self._save(bits)

    def _block_list(self) -> BlockList:
        if self._list is None:
            self._list = BlockList.load(self.directory, self.ref)
        return self._list

    def _open(self, *, write: bool) -> None:
        if self._fd >= 0 and (self._writable or not write):
            return
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if write:
            self._make()
        try:
            flags = os.O_RDWR if write else os.O_RDONLY
            self._fd = os.open(self.path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise MissingContentError(f"{self.path}: cannot be opened: {error.strerror}") from error
        self._writable = write

    def _make(self) -> None:
        # The bitmap first: a pack without one would read as whole, and one from before a lost pack would lie.
        fits = self.path.exists() and self.path.stat().st_size == self.ref.bytes
        if not fits or not (self.directory / BITMAP_NAME).exists():
            self._save(self._bits.to_bytes())
        self._partial = True
        if fits:
            return
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            os.ftruncate(fd, self.ref.bytes)
            os.fsync(fd)
        finally:
            os.close(fd)
        sync_directory(self.directory)

    def _save(self, bits: bytes) -> None:
        _save_bits(self.directory, self.ref, bits)

    def _load(self) -> tuple[bool, Bitmap]:
        size = -(-self.ref.blocks // 8)
        path = self.directory / BITMAP_NAME
        data = read_bounded(path, _BITMAP_HEADER.size + size + _DIGEST_BYTES)
        pack_bytes = self.path.stat().st_size if self.path.exists() else None
        if data is None:
            if pack_bytes is None:
                return True, Bitmap(self.ref.blocks)
            if pack_bytes != self.ref.bytes:
                raise FormatError(
                    f"{self.path}: has {pack_bytes} bytes, the record says {self.ref.bytes}",
                    hint=HOW_TO_MEND,
                )
            return False, Bitmap.full(self.ref.blocks)
        bits = self._parse(data, size)
        return True, Bitmap(self.ref.blocks, bits if pack_bytes == self.ref.bytes else None)

    def _parse(self, data: bytes, size: int) -> bytes | None:
        body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
        if len(body) < _BITMAP_HEADER.size or hashlib.sha256(body).digest() != digest:
            return None
        magic, version, block_bytes, pack_bytes, root = _BITMAP_HEADER.unpack_from(body)
        where = self.directory / BITMAP_NAME
        if magic != _BITMAP_MAGIC or version != _BITMAP_VERSION:
            raise FormatError(
                f"{where}: bitmap format version {version}; this ted knows version {_BITMAP_VERSION}",
                hint="install a newer ted on this node; nothing was changed",
            )
        other_root = bool(self.ref.root) and root.hex() != self.ref.root
        if other_root or (block_bytes, pack_bytes) != (self.ref.block_bytes, self.ref.bytes):
            raise FormatError(f"{where}: belongs to another pack", hint="remove that revision's directory")
        bits = body[_BITMAP_HEADER.size :]
        return bits if len(bits) == size else None


def _write_at(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        offset, view = offset + written, view[written:]


def _save_bits(directory: Path, ref: PackRef, bits: bytes) -> None:
    head = _BITMAP_HEADER.pack(_BITMAP_MAGIC, _BITMAP_VERSION, ref.block_bytes, ref.bytes, bytes.fromhex(ref.root))
    replace_file(directory / BITMAP_NAME, head + bits + hashlib.sha256(head + bits).digest())
