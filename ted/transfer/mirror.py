"""A dumb repository: a folder, share or stick (or what a web server shows of one) that holds revisions.

Rules:
 * The layout is a working directory's: ``<distributor>/<distribution>/<revision>/`` and ``<distributor>/.catalog/``.
 * A push copies packs first, then records, then the catalog, its timestamp last: a reader never finds a name without
   its content. Files appear whole or not at all; what is there already is not copied again.
 * A pull trusts nothing it reads: catalog and record by signature, every block by its signed digest.
 * Whoever pulls needs the Distributor's root, as from any other source; and pulls it for itself: it is a target.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from ted.content.blocks import BLOCKS_NAME, PACK_NAME, BlockList, PartialPack
from ted.content.durable import replace_file, sync_directory
from ted.content.record import PackRef, RevisionRecord
from ted.content.working import RECORD_NAME, WorkingDirectory
from ted.errors import DigestMismatchError, MissingContentError, TransferError, UnreachableError, UsageError
from ted.transfer.fetch import check_space, receive_lock
from ted.transfer.packs import blocks_of, runs_bytes
from ted.trust.view import CatalogView

TIMEOUT_S = 60.0
_METADATA = re.compile(r"(\d+\.)?[A-Za-z0-9._@+-]+\.json")


class Mirror(Protocol):
    """Reading from a dumb repository."""

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return a whole small file; ``MissingContentError`` if there is none."""

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Return ``size`` bytes from ``offset`` of a file."""


class FolderMirror:
    """A folder: a disk, a share, a stick."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return a whole small file."""
        with self._open(name) as file:
            data: bytes = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise TransferError(f"{self.path / name} is longer than {max_bytes} bytes")
        return data

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Return a part of a file."""
        with self._open(name) as file:
            return os.pread(file.fileno(), size, offset)

    def _open(self, name: str) -> Any:
        try:
            return open(self.path / name, "rb", buffering=0)
        except FileNotFoundError as error:
            if not self.path.is_dir():
                raise UnreachableError(f"{self.path} is not there", hint="is the share or stick mounted?") from error
            raise MissingContentError(f"{self.path} has no {name}", hint="push to it again") from error
        except OSError as error:
            raise UnreachableError(f"{self.path / name}: {error.strerror}") from error


class WebMirror:
    """A folder as a static web server shows it; ranges are asked for, whole answers are understood."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return a whole small file."""
        data = self._get(name, {}, max_bytes + 1)
        if len(data) > max_bytes:
            raise TransferError(f"{self.url}/{name} is longer than {max_bytes} bytes")
        return data

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Return a part of a file."""
        return self._get(name, {"Range": f"bytes={offset}-{offset + size - 1}"}, size, skip=offset)

    def _get(self, name: str, headers: dict[str, str], size: int, skip: int = 0) -> bytes:
        request = urllib.request.Request(f"{self.url}/{urllib.parse.quote(name)}", headers=headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
                if skip and answer.status == 200:  # a server that knows no ranges sends all of it
                    _skip(answer, skip)
                data: bytes = answer.read(size)
                return data
        except urllib.error.HTTPError as error:
            if error.code in {404, 410}:
                raise MissingContentError(f"{self.url} has no {name}", hint="push to it again") from error
            raise UnreachableError(f"{self.url}/{name}: {error.code} {error.reason}") from error
        except (OSError, ValueError) as error:
            raise UnreachableError(f"{self.url} does not answer: {error}") from error


def _skip(answer: Any, count: int) -> None:
    while count:
        data = answer.read(min(count, 1 << 20))
        if not data:
            raise UnreachableError("the answer ended early")
        count -= len(data)


def mirror_at(url: str) -> FolderMirror | WebMirror:
    """Return the mirror at a path, ``file:`` or ``http(s):`` URL.

    Raises:
        UsageError: Another scheme.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in {"http", "https"}:
        return WebMirror(url)
    if parts.scheme in {"", "file"}:
        return FolderMirror(Path(urllib.parse.unquote(parts.path)).absolute())
    raise UsageError(f"{url}: ted knows no mirrors of scheme {parts.scheme!r}", hint="a path, file:, http: or https:")


def push(working: WorkingDirectory, distributor: str, names: list[str], mirror: FolderMirror, *,
         check: bool) -> list[dict[str, Any]]:  # fmt: skip
    """Copy what a mirror lacks of every kept revision of ``names``; return ``{"file", "bytes"}`` of each file.

    Raises:
        UnreachableError: The mirror cannot be written.
    """
    copied: list[dict[str, Any]] = []
    for source in _files_in_order(working, distributor, names):
        place = mirror.path / source.relative_to(working.path)
        if _is_same(source, place):
            continue
        copied.append({"file": str(place), "bytes": source.stat().st_size})
        if not check:
            try:
                _copy_whole(source, place)
            except OSError as error:
                raise UnreachableError(f"{place}: {error.strerror or error}",
                                       hint="is the share mounted, with room and rights?") from error  # fmt: skip
    return copied


def _files_in_order(working: WorkingDirectory, distributor: str, names: list[str]) -> Iterator[Path]:
    for name in names:
        stamps = working.received(distributor, name)
        records = [working.record(distributor, name, stamp) for stamp in stamps]
        refs = {ref.revision: ref for record in records for ref in record.packs}
        for stamp in sorted(refs):
            directory = working.revision(distributor, name, stamp)
            if PartialPack(directory, refs[stamp]).missing([(0, refs[stamp].blocks)]):
                raise UsageError(f"this node holds only parts of pack {stamp} of {name}",
                                 hint="push from the Distributor, which holds all of it")  # fmt: skip
            yield from (directory / PACK_NAME, directory / BLOCKS_NAME)
        yield from (working.revision(distributor, name, stamp) / RECORD_NAME for stamp in stamps)
    catalog = working.catalog(distributor)
    metadata = [path for path in sorted(catalog.glob("*.json")) if _METADATA.fullmatch(path.name)]
    yield from sorted(metadata, key=lambda path: ("timestamp" in path.name, "snapshot" in path.name, path.name))


def _is_same(source: Path, place: Path) -> bool:
    """Packs, lists and records never change; metadata is small enough to compare."""
    try:
        if place.stat().st_size != source.stat().st_size:
            return False
    except OSError:
        return False
    return source.suffix != ".json" or place.read_bytes() == source.read_bytes()


def _copy_whole(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    with open(source, "rb") as reading, open(temporary, "wb") as writing:
        shutil.copyfileobj(reading, writing, 1 << 20)
        writing.flush()
        os.fsync(writing.fileno())
    os.replace(temporary, place)
    sync_directory(place.parent)


def reader(mirror: Mirror, distributor: str) -> Callable[[str, int], bytes]:
    """Return what a ``CatalogView`` asks with."""

    def fetch(name: str, max_bytes: int) -> bytes:
        return mirror.read(f"{distributor}/{name}" if "/" in name else f"{distributor}/.catalog/{name}", max_bytes)

    return fetch


def pull(working: WorkingDirectory, view: CatalogView, mirror: Mirror, name: str, *,
         check: bool) -> tuple[RevisionRecord | None, int]:  # fmt: skip
    """Bring the newest revision of ``name`` here; return its record (none: not published) and the bytes fetched.

    The caller has refreshed ``view``, and reports.
    """
    stamps = view.revisions(name)
    if not stamps:
        return None, 0
    data = view.record(name, stamps[-1])
    record = RevisionRecord.from_bytes(data)
    directory = working.revision(view.distributor, name, record.revision)
    if working.is_received(view.distributor, name, record.revision):
        if not check:
            working.mark_target(view.distributor, name, record.revision)
        return record, 0
    if not check:
        directory.mkdir(parents=True, exist_ok=True)
        check_space(working.path, sum(ref.live_bytes for ref in record.packs), None)
    with working.lock(receive_lock(view.distributor, name)) as mine:
        if not mine:
            raise TransferError(f"the agent receives {name} at this moment", hint="try again when it is done")
        total = sum(_pull_pack(working, view.distributor, name, ref, mirror, check=check) for ref in record.packs)
    if not check:
        replace_file(directory / RECORD_NAME, data)
        working.mark_received(view.distributor, name, record.revision, target=True)
    return record, total


def _pull_pack(working: WorkingDirectory, distributor: str, name: str, ref: PackRef, mirror: Mirror, *,
               check: bool) -> int:  # fmt: skip
    directory = working.revision(distributor, name, ref.revision)
    base = f"{distributor}/{name}/{ref.revision}"
    digests = mirror.read(f"{base}/{BLOCKS_NAME}", ref.blocks * 32)
    if check:
        BlockList.from_bytes(digests, ref)
        return ref.live_bytes if not directory.is_dir() else runs_bytes(ref, PartialPack(directory, ref).missing())
    pack = PartialPack.prepare(directory, ref, digests)
    try:
        runs = pack.missing()
        for block in blocks_of(runs):
            size = pack.block_size(block)
            pack.write(block, mirror.read_range(f"{base}/{PACK_NAME}", block * ref.block_bytes, size))
        pack.flush()
    finally:
        pack.close()
    return runs_bytes(ref, runs)


def check_mirror(view: CatalogView, mirror: Mirror) -> list[str]:
    """Return what is wrong with a mirror: every published revision's blocks are read and compared."""
    problems = []
    for name in view.distributions:
        for stamp in view.revisions(name):
            record = RevisionRecord.from_bytes(view.record(name, stamp))
            for ref in record.packs:
                problems += _check_pack(mirror, f"{view.distributor}/{name}/{ref.revision}", ref)
    return list(dict.fromkeys(problems))


def _check_pack(mirror: Mirror, base: str, ref: PackRef) -> list[str]:
    try:
        blocks = BlockList.from_bytes(mirror.read(f"{base}/{BLOCKS_NAME}", ref.blocks * 32), ref)
        for block in blocks_of(ref.live):
            size = min(ref.block_bytes, ref.bytes - block * ref.block_bytes)
            if not blocks.matches(block, mirror.read_range(f"{base}/{PACK_NAME}", block * ref.block_bytes, size)):
                return [f"{base}: block {block} is damaged"]
    except (MissingContentError, DigestMismatchError) as error:
        return [str(error)]
    return []
