"""Patches where they lie: ``<stamp>/PATCH-<stamp before>/``, a pack's files in a directory of their own.

Rules:
 * A patch is made in ``PATCH-<stamp before>_TEMP`` and renamed when it is whole and durable.
 * It goes with the revision it leads to, or alone where it is damaged: blocks are sent instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ted.content.blocks import BLOCKS_NAME, PACK_NAME, BlockList, PartialPack, block_bytes_for, root_of
from ted.content.durable import read_bounded, sync_directory, write_synced
from ted.content.opening.codecs import behaviour
from ted.content.patch.apply import PackOut, apply_patch, waiting_bytes
from ted.content.patch.create import create_patch
from ted.content.patch.opened import closing_codecs
from ted.content.patch.packages import CODECS
from ted.content.record import PackRef, RevisionRecord, is_stamp
from ted.content.revision import Revision
from ted.errors import DigestMismatchError, FormatError, MissingContentError, RepositoryError

PREFIX = "PATCH-"
TEMP_SUFFIX = "_TEMP"
MAX_PATCH_BYTES = 1 << 50
_DIGEST_BYTES = 32


def patch_place(revision: str, before: str) -> str:
    """Return where, below the distribution, the patch from ``before`` to ``revision`` lies."""
    return f"{revision}/{PREFIX}{before}"


def is_patch_name(name: str) -> bool:
    """Whether ``name`` may be a patch's directory."""
    return name.startswith(PREFIX) and is_stamp(name.removeprefix(PREFIX))


def patch_ref(revision: str, before: str, size: int, root: str) -> PackRef:
    """Return the patch as what is fetched and served: ``revision`` of the reference is its place."""
    block_bytes = block_bytes_for(size)
    blocks = -(-size // block_bytes)
    return PackRef(patch_place(revision, before), size, block_bytes, blocks, root, ((0, blocks),))


def patches_of(directory: Path) -> dict[str, PackRef]:
    """Return the patches that were made in a revision's directory, by the stamp they start from."""
    found = {}
    for name in sorted(os.listdir(directory)) if directory.is_dir() else ():
        if not is_patch_name(name):
            continue
        path = directory / name / PACK_NAME
        size = path.stat().st_size if path.is_file() else 0
        blocks = -(-size // block_bytes_for(size)) if size else 0
        digests = None
        with suppress(FormatError):  # a damaged one is none
            digests = read_bounded(directory / name / BLOCKS_NAME, max(blocks, 1) * _DIGEST_BYTES)
        if size and digests is not None and len(digests) == blocks * _DIGEST_BYTES:
            root = root_of(digests, block_bytes_for(size), size).hex()
            before = name.removeprefix(PREFIX)
            found[before] = patch_ref(directory.name, before, size, root)
    return found


def closed_by(directory: Path, patch: PackRef) -> tuple[str, ...]:
    """Return the compressors that a patch was proved with (``behaviour`` of each); none where it closes nothing."""
    return tuple(behaviour(codec) for codec in sorted(closing_codecs(directory / patch.revision / PACK_NAME)))


def waits(directory: Path, patch: PackRef) -> int:
    """Return how many bytes wait on the disk while a patch that is here as a whole is applied.

    Raises:
        FormatError: It is no patch.
    """
    return waiting_bytes(directory / patch.revision / PACK_NAME)


def make_patch(
    directory: Path, old: RevisionRecord, new: RevisionRecord, mode: str, open_packages: str = "fast"
) -> int | None:
    """Make the patch from one revision to the next beside the next one's pack; return its bytes.

    Args:
        directory: The distribution's.
        old: The revision before.
        new: The revision.
        mode: ``small``, ``fast``, or ``auto``, which decides by the size of the new content.
        open_packages: ``none``, ``fast`` (what is quickly made again) or ``all``.

    Returns:
        ``None`` when a patch is not worth it.
    """
    place = directory / patch_place(new.revision, old.revision)
    temporary = place.with_name(place.name + TEMP_SUFFIX)
    for left in _left_overs(place.parent):
        shutil.rmtree(left)
    if place.is_dir():
        return (place / PACK_NAME).stat().st_size
    temporary.mkdir()
    try:
        with Revision(directory, old).open() as before, Revision(directory, new).open() as after:
            small = None if mode == "auto" else mode == "small"
            size = create_patch(before, after, temporary / PACK_NAME, small=small, codecs=CODECS[open_packages])
        if size is None:
            return None
        write_synced(temporary / BLOCKS_NAME, BlockList.of_pack(temporary / PACK_NAME).digests)
        sync_directory(temporary)
        temporary.rename(place)
        sync_directory(place.parent)
        return size
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def was_cut_short(revision: Path) -> bool:
    """Return whether whoever made a patch in a revision's directory was killed before its end."""
    return bool(_left_overs(revision))


def _left_overs(revision: Path) -> list[Path]:
    return list(revision.glob(f"{PREFIX}*{TEMP_SUFFIX}"))


def damaged_patches(directory: Path, revision: str, signed: Mapping[str, PackRef]) -> dict[str, str]:
    """Return the patches in a revision's directory that are damaged: by the stamp they start from, what is wrong.

    Args:
        directory: The distribution's.
        revision: Where the patches lead to.
        signed: The patches as the catalog tells them, by the stamp before; one it does not tell is held against its own
            block list.
    """
    own = patches_of(directory / revision)
    found = {}
    for name in sorted(os.listdir(directory / revision)):
        before, place = name.removeprefix(PREFIX), directory / revision / name
        if is_patch_name(name) and any((place / part).exists() for part in (PACK_NAME, BLOCKS_NAME)):
            problem = _what_is_wrong(place, signed.get(before, own.get(before)))
            if problem is not None:
                found[before] = problem
    return found


def _what_is_wrong(place: Path, ref: PackRef | None) -> str | None:
    if ref is None:
        return f"{place}: {PACK_NAME} and {BLOCKS_NAME} do not fit each other"
    try:
        BlockList.load(place, ref)
        pack = PartialPack(place, ref)
        try:
            damaged = pack.damaged()
        finally:
            pack.close()
    except (RepositoryError, OSError) as error:
        return str(error)
    return f"block {damaged[0][0]} of {pack.path} is damaged" if damaged else None


def drop_patch(revision: Path, before: str, *, again: bool = False) -> None:
    """Remove a patch; with ``again`` what is left says that it was cut short, and the next build makes it again."""
    place = revision / f"{PREFIX}{before}"
    gone = place.with_name(place.name + TEMP_SUFFIX)
    shutil.rmtree(gone, ignore_errors=True)
    place.rename(gone)
    sync_directory(revision)
    shutil.rmtree(gone)
    if again:
        gone.mkdir()


class RebuiltPack(PackOut):
    """Puts the bytes of a rebuilt pack into a pack that is coming in, block by block, each checked.

    Args:
        pack: Where they go; blocks that are here stay as they are.
    """

    def __init__(self, pack: PartialPack) -> None:
        self._pack = pack
        self._buffer = bytearray()
        self._block = 0

    def write(self, data: bytes, /) -> None:
        """Take the next bytes; raises ``DigestMismatchError`` when they are not those that were signed."""
        self._buffer += data
        while self._block < self._pack.ref.blocks and len(self._buffer) >= self._pack.block_size(self._block):
            size = self._pack.block_size(self._block)
            self._pack.write(self._block, self._buffer[:size])
            self.came()
            del self._buffer[:size]
            self._block += 1
        if self._block == self._pack.ref.blocks and self._buffer:
            raise DigestMismatchError("the rebuilt pack is longer than the one that was signed")

    def came(self) -> None:
        """Called for each block that is here now."""

    def read(self, offset: int, count: int) -> bytes:
        """Return bytes that were written before."""
        size = self._pack.ref.block_bytes
        data = bytearray()
        for block in range(offset // size, min((offset + count - 1) // size + 1, self._block)):
            data += self._pack.read(block)
        data += self._buffer
        start = offset - offset // size * size if offset // size < self._block else offset - self._block * size
        if len(data) < start + count:
            raise MissingContentError("the rebuilt pack is shorter than it should be")
        return bytes(data[start : start + count])


__all__ = [
    "RebuiltPack", "apply_patch", "closed_by", "damaged_patches", "drop_patch", "is_patch_name", "make_patch",
    "patch_place", "patch_ref", "patches_of", "waits", "was_cut_short",
]  # fmt: skip
