"""Build a revision: from sources on this machine to a pack, its block list and its record.

Rules:
 * One builder a distribution at a time, by a lock that ends with its process.
 * Everything is made below ``<stamp>_TEMP`` and renamed at the very end; a build that fails leaves the former revision
   as it is, one that finds nothing new returns the former revision.
 * The same input gives the same frames and the same manifest, whatever the machine is doing meanwhile.
 * If all sources look as they did before the last build (names, inodes, sizes, times: ``SourceTree.look``), it is not
   repeated.
 * Memory does not depend on how large or how many the files are.
"""

from __future__ import annotations

import hashlib
import heapq
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from ted.content.blocks import BLOCKS_NAME, PACK_NAME, BlockList, is_sound
from ted.content.cache import CacheReader, CacheWriter, Look
from ted.content.durable import sync_directory, write_synced
from ted.content.entry import components, path_problem, printable
from ted.content.frame import DEFAULT_LEVEL, frame_digest
from ted.content.gather import Gatherer, Given
from ted.content.interpreter import interpreter_for_building
from ted.content.manifest import ManifestWriter
from ted.content.pack import PackReader
from ted.content.record import (
    MAX_BLOCK_BYTES,
    MIN_BLOCK_BYTES,
    SETTINGS,
    PackRef,
    RevisionRecord,
    canonical_json,
    is_name,
    next_stamp,
)
from ted.content.revision import RevisionReader
from ted.content.store import EarlierPack, FrameStore
from ted.content.walk import Excludes, Item, SourceTree
from ted.content.working import RECORD_NAME, TEMP_SUFFIX, BuildLock, clean_temporary, read_record, record_stamps, stamps
from ted.errors import BuildError, EmptySourceError, RepositoryError, UsageError

_DIRECTORY_MODE = 0o755
_RULES = 1
"""Raised when a build makes something else of the same source: what was noted of it is then forgotten."""
_UNLIKE_ANYTHING = Look(b"", 1 << 62)


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What a build did. ``changed`` is false if the former revision is still the newest one.

    ``bytes_new`` and ``frames_new`` are the new pack's; ``files`` counts files and hard links of the whole tree.
    """

    record: RevisionRecord
    record_bytes: bytes
    changed: bool
    bytes_new: int
    frames_new: int
    files: int
    duration_s: float


def _utc_now() -> datetime:
    return datetime.now(UTC)


class RevisionBuilder:
    """Builds one revision of one distribution.

    Use it as a context manager: add sources, then call ``finish`` once. Leaving without ``finish`` leaves no trace.

    Args:
        directory: ``<working directory>/<distributor>/<distribution>``; made if it is not there.
        distributor: Name of this node.
        distribution: Name of what is built.
        type: Its type.
        settings: What travels with it: keys of ``record.SETTINGS``.
        options: The type's own options, as JSON; a change makes a new revision.
        level: zstd level.
        now: Gives the time of the stamp, aware.
        cache: File that remembers what this build finds, for the next one; ``None``: read every file.
        block_bytes: Forces the block size: a power of two, 64 KiB to 4 MiB.
        allow_empty: Build even if a source holds nothing.

    Raises:
        BuildError: Another build of this distribution is running.
    """

    def __init__(
        self,
        directory: Path,
        distributor: str,
        distribution: str,
        type: str,  # noqa: A002 -- the record's word
        settings: Mapping[str, Any],
        options: Mapping[str, Any],
        *,
        level: int = DEFAULT_LEVEL,
        now: Callable[[], datetime] = _utc_now,
        cache: Path | None = None,
        block_bytes: int | None = None,
        allow_empty: bool = False,
    ) -> None:
        _check_arguments((distributor, distribution, type), settings, options, block_bytes)
        self.directory = directory
        self._names = (distributor, distribution, type)
        self._settings = dict(settings)
        self._options = dict(options)
        self._level = level
        self._now = now
        self._cache_path = cache
        self._block_bytes = block_bytes
        self._allow_empty = allow_empty
        self._trees: list[SourceTree] = []
        self._given: list[Given] = []
        self._places: set[bytes] = set()
        self.damaged: list[str] = []
        """The revisions whose packs a forced build found damaged: what they held is packed anew."""
        self._keep = False
        self._resources = ExitStack()
        self._temporary: Path | None = None
        self._stamp = ""

    def __enter__(self) -> RevisionBuilder:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def add_tree(
        self,
        source: Path,
        at: str,
        *,
        exclude: Sequence[str] = (),
        contents_only: bool = False,
        outside_links: str = "refuse",
    ) -> None:
        """Add what lies at ``source``; it is read by ``finish``.

        Args:
            source: A directory, file or link.
            at: Place in the content tree.
            exclude: Patterns, see ``Excludes``.
            contents_only: ``source`` was written with a trailing slash: the directory itself is mapped to ``at``,
                a link to a directory is followed. Else ``source`` goes below ``at`` under its own name.
            outside_links: ``refuse`` symbolic links that are absolute or leave the source, or ``keep`` them.

        Raises:
            EmptySourceError: There is nothing at ``source``.
            UsageError: ``at`` is no place in the content tree.
        """
        place = _place(at)
        try:
            tree = SourceTree(
                source, place, Excludes(exclude), contents_only=contents_only, outside_links=outside_links
            )
        except OSError as error:
            raise _unreachable(source, error) from error
        self._add(tree, place)

    def add_file(self, path: str, source: Path) -> None:
        """Add the file ``source`` (a link to one is followed) as ``path``; it is read by ``finish``.

        Raises:
            EmptySourceError: There is no such file.
            UsageError: ``path`` is no place in the content tree.
        """
        place = _place(path)
        try:
            tree = SourceTree.of_file(source, place)
        except OSError as error:
            raise _unreachable(source, error) from error
        self._add(tree, place.rpartition(b"/")[0])

    def add_bytes(self, path: str, data: bytes, mode: int = 0o644, mtime_ns: int = 0) -> None:
        """Add a file that holds ``data``, owned by root.

        Raises:
            UsageError: ``path`` is no place in the content tree.
        """
        place = _place(path)
        self._given.append(Given(place, components(place), data, mode & 0o7777, mtime_ns))
        self._note_place(place.rpartition(b"/")[0])

    def former_options(self) -> Mapping[str, Any] | None:
        """Return the type's own options the current revision was built with; ``None`` when none is here as a whole."""
        for record, _ in self._former_records()[:1]:
            with ExitStack() as stack:
                if not _is_whole(record, self._open_packs([record], stack)):
                    return None
                with suppress(RepositoryError), RevisionReader(self.directory, record) as former:
                    return former.options
        return None

    def keep_former(self) -> None:
        """Make no revision: what was added does not count, and the current one stays.

        Raises:
            UsageError: There is none to keep (``former_options`` is ``None``).
        """
        if self.former_options() is None:
            raise UsageError(f"{self._names[1]}: there is no revision to keep", hint="build one first")
        self._keep = True

    def finish(self, *, force: bool = False, check: bool = False) -> BuildResult:
        """Read all sources and make the revision.

        Args:
            force: Make a new revision even if nothing changed, and refer to no pack that is damaged.
            check: Find out what would be made, and make nothing.

        Raises:
            EmptySourceError: A source holds nothing.
            SourceChangedError: Something changed while it was read.
            UnsupportedFileError: A source holds what cannot be sent.
            BuildError: Anything else; the former revision stays as it is.
        """
        started_s = time.monotonic()
        self._begin()
        try:
            with interpreter_for_building():
                return self._build(force=force, check=check, started_s=started_s)
        except OSError as error:
            where = error.filename or self.directory
            raise BuildError(
                f"{where}: {error.strerror or error}", hint="the former revision is unchanged; build again once mended"
            ) from error
        finally:
            self._end()

    # begin and end

    def _begin(self) -> None:
        if self._temporary is not None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self._resources.enter_context(BuildLock(self.directory))
        clean_temporary(self.directory)
        self._stamp = next_stamp(self._now(), max(stamps(self.directory), default=None))
        self._temporary = self.directory / f"{self._stamp}{TEMP_SUFFIX}"
        self._temporary.mkdir()

    def _end(self) -> None:
        for tree in self._trees:
            tree.close()
        self._trees.clear()
        if self._temporary is not None:
            with suppress(FileNotFoundError):
                shutil.rmtree(self._temporary)
        self._resources.close()
        self._temporary = None

    def _add(self, tree: SourceTree, place: bytes) -> None:
        self._trees.append(tree)
        self._note_place(place)

    def _note_place(self, place: bytes) -> None:
        while place:
            self._places.add(place)
            place = place.rpartition(b"/")[0]

    # the build

    def _build(self, *, force: bool, check: bool, started_s: float) -> BuildResult:
        temporary = self._temporary
        assert temporary is not None
        records = self._former_records()
        with ExitStack() as stack:
            earlier = self._open_packs([record for record, _ in records], stack)
            if force:
                earlier = self._sound([record for record, _ in records], earlier)
            former = records[0] if records and not force and _is_whole(records[0][0], earlier) else None
            if self._keep and former is None:
                raise BuildError(f"{self._names[1]}: the revision to keep is not whole, or a new one is wanted",
                                 hint="build with --force: everything is gathered anew")  # fmt: skip
            if former is not None and self._keep:
                return _unchanged(former, started_s)
            looked = self._look() if former is not None else None
            if former is not None and looked is not None and self._knows(looked, former[0]):
                return _unchanged(former, started_s)
            frames = FrameStore(temporary / PACK_NAME, earlier, self._level)
            stack.callback(frames.close)
            cache_out = CacheWriter(None if check else self._cache_path, time.time_ns())
            stack.callback(cache_out.abandon)
            gatherer, manifest = self._gather(frames, cache_out, look=looked is None)
            if looked is None:
                looked = self._looked([tree.looked or _UNLIKE_ANYTHING for tree in self._trees])
            if former is not None and former[0].manifest == manifest.hex():
                cache_out.commit(looked, manifest)
                return _unchanged(former, started_s)
            others = frames.finish()
            record, data, pack_bytes = self._write(gatherer, manifest, others)
            if not check:
                self._publish()
                cache_out.commit(looked, manifest)
            duration_s = time.monotonic() - started_s
            return BuildResult(record, data, True, pack_bytes, frames.frames_new, gatherer.files, duration_s)

    def _look(self) -> Look:
        """Return what everything that was added looks like, before any of it is read."""
        looks = [_UNLIKE_ANYTHING]
        with suppress(OSError):  # reading it tells better what is wrong
            looks = [tree.look() for tree in self._trees]
        return self._looked(looks)

    def _looked(self, looks: Sequence[Look]) -> Look:
        """Return what everything looks like whose sources look like that."""
        given = [(each.path, frame_digest(each.data or b""), each.mode, each.mtime_ns) for each in self._given]
        told = (_RULES, self._names, canonical_json([self._settings, self._options]), sorted(self._places))
        digest = hashlib.sha256(repr((told, given, [look.digest for look in looks])).encode()).digest()
        return Look(digest, max((look.changed_at_ns for look in looks), default=0))

    def _knows(self, looked: Look, former: RevisionRecord) -> bool:
        cache = CacheReader(self._cache_path)
        try:
            return cache.knows(looked.digest, bytes.fromhex(former.manifest))
        finally:
            cache.close()

    def _gather(self, frames: FrameStore, cache_out: CacheWriter, *, look: bool) -> tuple[Gatherer, bytes]:
        manifest = ManifestWriter(frames.put)
        cache = CacheReader(self._cache_path)
        try:
            gatherer = Gatherer(frames, manifest, cache, cache_out)
            found: dict[int, int] = {}
            for item in self._merged(look=look):
                if isinstance(item, Item) and (item.relative or not item.path):
                    found[id(item.tree)] = 1
                gatherer.take(item)
            gatherer.finish()
        finally:
            cache.close()
        if not self._allow_empty:
            self._refuse_empty(found)
        return gatherer, manifest.finish(self._names[2], self._settings, self._options)

    def _refuse_empty(self, found: Mapping[int, int]) -> None:
        hint = "check the source, or allow an empty one with `allow_empty: true`"
        for tree in self._trees:
            if id(tree) not in found:
                raise EmptySourceError(f"{tree.source}: holds nothing to send", hint=hint)
        if not self._trees and not self._given:
            raise EmptySourceError(f"{self._names[1]}: no source was given", hint=hint)

    def _merged(self, *, look: bool) -> Iterator[Item | Given]:
        """Yield everything once, in the manifest's order; what is said twice is an error."""
        described: list[Iterator[Item | Given]] = [tree.items(look=look) for tree in self._trees]
        described.append(iter(sorted(self._given, key=lambda given: given.key)))
        implied = [Given(path, components(path), None, _DIRECTORY_MODE) for path in self._places]
        described.append(iter(sorted(implied, key=lambda given: given.key)))
        last: Item | Given | None = None
        for item in heapq.merge(*described, key=lambda item: item.key) if len(described) > 1 else described[0]:
            if last is None or last.key != item.key:
                yield item
                last = item
            elif not (_is_directory(last) and _is_directory(item)):
                raise BuildError(
                    f"{printable(item.path)}: comes from both {last.source} and {item.source}",
                    hint="leave one out with `exclude`, or send them to different targets",
                )

    def _former_records(self) -> list[tuple[RevisionRecord, bytes]]:
        """Return the kept revisions' records, newest first; a damaged one is no help and no hindrance."""
        found = []
        for stamp in reversed(record_stamps(self.directory)):
            with suppress(RepositoryError):
                found.append(read_record(self.directory / stamp))
        return found

    def _open_packs(self, records: Sequence[RevisionRecord], stack: ExitStack) -> list[EarlierPack]:
        packs: dict[str, EarlierPack] = {}
        for ref in (ref for record in records for ref in record.packs):
            if ref.revision in packs:
                continue
            with suppress(RepositoryError):
                reader = PackReader(self.directory / ref.revision / PACK_NAME, expected_bytes=ref.bytes)
                stack.callback(reader.close)
                packs[ref.revision] = EarlierPack(ref, reader)
        return list(packs.values())

    def _sound(self, records: Sequence[RevisionRecord], packs: Sequence[EarlierPack]) -> list[EarlierPack]:
        """Return the packs that are what was signed; the others are noted, and nothing is taken over from them."""
        sound = [pack for pack in packs if is_sound(self.directory / pack.ref.revision, pack.ref)]
        here = {pack.ref.revision for pack in sound}
        self.damaged = sorted({ref.revision for record in records for ref in record.packs} - here)
        return sound

    def _write(
        self, gatherer: Gatherer, manifest: bytes, others: Sequence[PackRef]
    ) -> tuple[RevisionRecord, bytes, int]:
        temporary = self._temporary
        assert temporary is not None
        blocks = BlockList.of_pack(temporary / PACK_NAME, self._block_bytes)
        count = len(blocks)
        own = PackRef(self._stamp, blocks.pack_bytes, blocks.block_bytes, count, blocks.root.hex(), ((0, count),))
        distributor, distribution, type_ = self._names
        record = RevisionRecord(
            distributor=distributor,
            distribution=distribution,
            revision=self._stamp,
            type=type_,
            settings=self._settings,
            manifest=manifest.hex(),
            packs=(own, *others),
            files=gatherer.files,
            content_bytes=gatherer.content_bytes,
            built_at=self._now().astimezone(UTC),
        )
        data = record.to_bytes()
        write_synced(temporary / BLOCKS_NAME, blocks.digests)
        write_synced(temporary / RECORD_NAME, data)
        sync_directory(temporary)
        return record, data, blocks.pack_bytes

    def _publish(self) -> None:
        assert self._temporary is not None
        self._temporary.rename(self.directory / self._stamp)
        sync_directory(self.directory)


def _is_whole(record: RevisionRecord, packs: Sequence[EarlierPack]) -> bool:
    return {pack.revision for pack in record.packs} <= {pack.ref.revision for pack in packs}


def _unchanged(former: tuple[RevisionRecord, bytes], started_s: float) -> BuildResult:
    record, data = former
    return BuildResult(record, data, False, 0, 0, record.files, time.monotonic() - started_s)


def _check_arguments(
    names: tuple[str, ...], settings: Mapping[str, Any], options: Mapping[str, Any], block_bytes: int | None
) -> None:
    for name in names:
        if not is_name(name):
            raise UsageError(f"{name!r} cannot be a name", hint="letters, digits and . _ @ + - (not first a dot)")
    if unknown := sorted(set(settings) - SETTINGS):
        raise UsageError(f"unknown settings: {', '.join(unknown)}", hint=f"known are {', '.join(sorted(SETTINGS))}")
    canonical_json(dict(settings))
    canonical_json(dict(options))
    power_of_two = block_bytes is None or block_bytes & (block_bytes - 1) == 0
    if block_bytes is not None and not (power_of_two and MIN_BLOCK_BYTES <= block_bytes <= MAX_BLOCK_BYTES):
        raise UsageError(f"block size {block_bytes}", hint="a power of two from 64 KiB to 4 MiB")


def _place(path: str) -> bytes:
    place = path.strip("/").encode("utf-8", "surrogateescape")
    if problem := path_problem(place):
        raise UsageError(f"{path!r} {problem}", hint="give a path below the content tree, such as data/0")
    return place


def _is_directory(item: Item | Given) -> bool:
    return item.data is None if isinstance(item, Given) else item.is_directory


def _unreachable(source: Path, error: OSError) -> BuildError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return EmptySourceError(f"{source}: {error.strerror}", hint="check the source; the former revision stays")
    return BuildError(f"{source}: {error.strerror}", hint="the user that builds must be able to read it")
