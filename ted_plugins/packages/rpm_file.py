"""The RPM file format: what a package says of itself, and writing one anew from what is installed.

A file is a lead of 96 bytes, a signature header, the header (padded to 8 bytes), and a compressed cpio archive. A
header is a table of (tag, type, offset, count) and the data that the table points into, all big-endian.

Rebuilding takes the header as the rpm database holds it and changes, in place, only what differs from what is on the
disk now: sizes and digests of files that were changed, files that are gone become ghosts, the digests of the payload.
Name, version, dependencies, scripts and triggers are the original's.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from ted.errors import FormatError, InstallError
from ted_plugins.packages.compression import writing
from ted_plugins.packages.model import Listed, Package

LEAD_BYTES = 96
_LEAD_MAGIC = b"\xed\xab\xee\xdb"
_MAGIC = b"\x8e\xad\xe8\x01\0\0\0\0"
_MAX_ENTRIES, _MAX_DATA_BYTES = 65_536, 256 << 20
_CHUNK = 1 << 20

NAME, VERSION, RELEASE, EPOCH, ARCH, SOURCERPM = 1000, 1001, 1002, 1003, 1022, 1044
_SIG_SHA1, _SIG_SHA256 = 269, 273
_SIGNATURES = (267, 268, 278, 1002, 1005)
_IMMUTABLE, _SIGNATURE_REGION = 63, 62
_SIZES, _LONG_SIZES, _MODES, _DIGESTS, _LINKS, _FLAGS = 1028, 5008, 1030, 1035, 1036, 1037
_INODES, _DEVICES, _DIRINDEXES, _BASENAMES, _DIRNAMES = 1096, 1095, 1116, 1117, 1118
_STATES, _DIGEST_ALGORITHM, _COMPRESSOR, _PAYLOAD, _PAYLOAD_ALT = 1029, 5011, 1125, 5092, 5097
_GHOST = 64
_INT16, _INT32, _STRING, _BINARY, _STRINGS, _I18N = 3, 4, 6, 7, 8, 9
_WIDTH = {1: "B", 2: "B", _INT16: "H", _INT32: "I", 5: "Q"}
_ALGORITHMS = {1: "md5", 2: "sha1", 8: "sha256", 9: "sha384", 10: "sha512", 11: "sha224"}


@dataclass(slots=True)
class Header:
    """One header: ``entries`` by tag as (type, offset, count); ``data`` may be changed in place."""

    index: bytes
    data: bytearray
    entries: dict[int, tuple[int, int, int]]

    @classmethod
    def read(cls, file: IO[bytes]) -> Header:
        """Read one, from its magic on.

        Raises:
            FormatError: It is none, or not whole.
        """
        start = _exactly(file, 16)
        count, size = struct.unpack(">8xII", start)
        if not start.startswith(_MAGIC[:4]) or not 0 < count <= _MAX_ENTRIES or size > _MAX_DATA_BYTES:
            raise FormatError("no RPM header where one should be")
        index = _exactly(file, count * 16)
        return cls(index, bytearray(_exactly(file, size)), _entries(index))

    def values(self, tag: int, most: int | None = None) -> list[Any]:
        """Return the values of a tag, all or ``most``: numbers, bytes or texts; empty when it is not there.

        Raises:
            FormatError: They do not lie in the header.
        """
        if tag not in self.entries:
            return []
        kind, offset, count = self.entries[tag]
        if most is not None and kind != _BINARY:
            count = min(count, most)
        try:
            if kind in _WIDTH:
                return list(struct.unpack_from(f">{count}{_WIDTH[kind]}", self.data, offset))
            if kind == _BINARY:
                return [bytes(self.data[offset : offset + count])]
            return [text for _, text in self._strings(offset, 1 if kind == _STRING else count)]
        except (struct.error, ValueError) as error:
            raise FormatError(f"an RPM header's tag {tag} leads out of it") from error

    def text(self, tag: int) -> str:
        """Return the first value of a tag as text; empty when it is not there."""
        return next((value for value in self.values(tag, 1) if isinstance(value, str)), "")

    def put_numbers(self, tag: int, values: list[int]) -> None:
        """Write numbers over those of a tag, as many as there are."""
        kind, offset, count = self.entries[tag]
        struct.pack_into(f">{count}{_WIDTH[kind]}", self.data, offset, *values)

    def put_texts(self, tag: int, values: list[str]) -> None:
        """Write texts over those of a tag, each as long as what it replaces."""
        _, offset, count = self.entries[tag]
        for (at, old), new in zip(list(self._strings(offset, count)), values, strict=True):
            if old != new and len(old) == len(new):
                self.data[at : at + len(new)] = new.encode()

    def _strings(self, offset: int, count: int) -> Iterator[tuple[int, str]]:
        for _ in range(count):
            end = self.data.index(0, offset)
            yield offset, self.data[offset:end].decode("utf-8", "surrogateescape")
            offset = end + 1

    def immutable(self) -> Header:
        """Return the part that came with the package, without what rpm added when it installed it.

        Raises:
            FormatError: There is no such part: the package is of the time before rpm 4.
        """
        if _IMMUTABLE not in self.entries or struct.unpack_from(">I", self.index)[0] != _IMMUTABLE:
            raise FormatError("a package of before rpm 4")
        end = self.entries[_IMMUTABLE][1]
        (before,) = struct.unpack_from(">8xi4x", self.data, end) if end + 16 <= len(self.data) else (0,)
        if not 0 < -before <= len(self.index) or before % 16:
            raise FormatError("an RPM header whose region leads out of it")
        index = self.index[:-before]
        return Header(index, self.data[: end + 16], _entries(index))

    def to_bytes(self) -> bytes:
        """Return it as it is in a file."""
        return _MAGIC + struct.pack(">II", len(self.index) // 16, len(self.data)) + self.index + bytes(self.data)

    def package(self) -> Package:
        """Return which package it describes."""
        epoch = next(iter(self.values(EPOCH, 1)), 0)
        version = f"{self.text(VERSION)}-{self.text(RELEASE)}"
        return Package(self.text(NAME), self.text(ARCH), f"{epoch}:{version}" if epoch else version)


def read(path: str) -> Listed:
    """Return what the RPM file at ``path`` says of itself; nothing of it is verified.

    Raises:
        FormatError: It is no RPM file, or one of sources.
    """
    try:
        with open(path, "rb") as file:
            if not _exactly(file, LEAD_BYTES).startswith(_LEAD_MAGIC):
                raise FormatError("no lead of an RPM file")
            signature = Header.read(file)
            _exactly(file, -len(signature.data) % 8)
            header = Header.read(file)
        if not header.text(SOURCERPM):
            raise FormatError("a package of sources")
        identity = signature.text(_SIG_SHA256) or signature.text(_SIG_SHA1)
        signed = any(tag in signature.entries for tag in _SIGNATURES)
        return Listed(header.package().checked(path), "", identity, signed)
    except FormatError as error:
        raise FormatError(f"{path}: is no RPM package that can be installed: {error.message}") from error


def headers(file: IO[bytes]) -> Iterator[Header]:
    """Yield every header of what ``rpmdb --exportdb`` writes.

    Raises:
        FormatError: It ends in the middle.
    """
    while start := file.read(1):
        yield Header.read(_Prefixed(start, file))  # type: ignore[arg-type]


@dataclass(slots=True)
class _Prefixed:
    start: bytes
    file: IO[bytes]

    def read(self, size: int) -> bytes:
        start, self.start = self.start, b""
        return start + self.file.read(size - len(start))


def _exactly(file: IO[bytes], size: int) -> bytes:
    parts = b""
    while len(parts) < size:
        part = file.read(min(size - len(parts), _CHUNK) if not parts else size - len(parts))
        if not part:
            raise FormatError("it ends too early")
        parts += part
    return parts


def _entries(index: bytes) -> dict[int, tuple[int, int, int]]:
    return {tag: (kind, offset, count) for tag, kind, offset, count in struct.iter_unpack(">IIII", index)}


# --- rebuilding ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _File:
    path: str
    mode: int
    flags: int
    size: int
    digest: str
    link: str
    identity: tuple[int, int]
    present: bool = True


def rebuild(header: Header, root: str, target: IO[bytes], scratch: IO[bytes]) -> None:
    """Write the package that ``header`` (of the rpm database) describes, with the content that is below ``root`` now.

    Args:
        header: As the database holds it.
        root: Where the package is installed.
        target: Where to write the package.
        scratch: An empty file for the payload.

    Raises:
        FormatError: The header cannot stand alone.
        InstallError: The payload's compression is not known here, or a file cannot be read.
    """
    states = header.values(_STATES)
    fresh = header.immutable()
    files = _files(fresh)
    algorithm = _ALGORITHMS.get(next(iter(fresh.values(_DIGEST_ALGORITHM)), 1), "sha256")
    for number, file in enumerate(files):
        _look(file, root, algorithm, installed=not states or states[number] == 0)
    _write_back(fresh, files)
    packed, plain = _payload(files, root, fresh.text(_COMPRESSOR) or "gzip", scratch)
    for tag, digest in ((_PAYLOAD, packed), (_PAYLOAD_ALT, plain)):
        if tag in fresh.entries:
            fresh.put_texts(tag, [digest])
    data = fresh.to_bytes()
    scratch.seek(0)
    target.write(_lead(fresh))
    target.write(_signature(data, scratch))
    target.write(data)
    scratch.seek(0)
    for chunk in iter(lambda: scratch.read(_CHUNK), b""):
        target.write(chunk)


def _files(header: Header) -> list[_File]:
    directories, names = header.values(_DIRNAMES), header.values(_BASENAMES)
    sizes = header.values(_LONG_SIZES) or header.values(_SIZES)
    columns = zip(
        names, header.values(_DIRINDEXES), header.values(_MODES), header.values(_FLAGS), sizes,
        header.values(_DIGESTS), header.values(_LINKS), header.values(_INODES), header.values(_DEVICES), strict=True,
    )  # fmt: skip
    try:
        return [
            _File(directories[where] + name, mode, flags, size, digest, link, (device, inode))
            for name, where, mode, flags, size, digest, link, inode, device in columns
        ]
    except (IndexError, ValueError) as error:
        raise FormatError("an RPM header whose lists of files do not fit") from error


def _look(file: _File, root: str, algorithm: str, *, installed: bool) -> None:
    """Compare a file with what is on the disk: its size and digest become those of there."""
    if file.flags & _GHOST:
        return
    path = root.rstrip("/") + file.path
    try:
        status = os.lstat(path)
    except OSError:
        installed = False
    if not installed or stat.S_IFMT(status.st_mode) != stat.S_IFMT(file.mode):
        file.present = False
    elif stat.S_ISREG(status.st_mode):
        with open(path, "rb") as opened:
            digest = hashlib.file_digest(opened, algorithm).hexdigest()
        file.size, file.digest = status.st_size, digest if file.digest else ""
    elif stat.S_ISLNK(status.st_mode) and os.readlink(path) != file.link:
        file.present = False


def _write_back(header: Header, files: list[_File]) -> None:
    if not files:
        return
    header.put_numbers(_FLAGS, [file.flags if file.present else file.flags | _GHOST for file in files])
    header.put_numbers(_LONG_SIZES if _LONG_SIZES in header.entries else _SIZES, [file.size for file in files])
    header.put_texts(_DIGESTS, [file.digest for file in files])


def _payload(files: list[_File], root: str, compressor: str, scratch: IO[bytes]) -> tuple[str, str]:
    """Write the compressed archive; return the SHA-256 of it, and of what it holds."""
    plain = hashlib.sha256()
    try:
        writer = writing(compressor, scratch)
    except KeyError:
        raise InstallError(f"packages compressed with {compressor!r} cannot be rebuilt here") from None
    with writer as out:

        def put(data: bytes) -> None:
            plain.update(data)
            out.write(data)

        shipped = [(n, file) for n, file in enumerate(files) if file.present and not file.flags & _GHOST]
        last = {file.identity: number for number, file in shipped if stat.S_ISREG(file.mode)}
        links: dict[tuple[int, int], int] = {}
        for _, file in shipped:
            links[file.identity] = links.get(file.identity, 0) + 1
        for number, file in shipped:
            regular = stat.S_ISREG(file.mode)
            with_content = regular and last[file.identity] == number  # the last name of a file carries its content
            body = os.fsencode(file.link) if stat.S_ISLNK(file.mode) else b""
            size = file.size if with_content else len(body)
            _entry(put, f".{file.path}", file.mode, number + 1, links[file.identity] if regular else 1, size)
            if with_content:
                _copy(root.rstrip("/") + file.path, size, put)
            put(body + bytes(-size % 4))
        _entry(put, "TRAILER!!!", 0, 0, 1, 0)
    scratch.flush()
    scratch.seek(0)
    packed = hashlib.sha256()
    for chunk in iter(lambda: scratch.read(_CHUNK), b""):
        packed.update(chunk)
    return packed.hexdigest(), plain.hexdigest()


def _copy(path: str, size: int, put: Callable[[bytes], None]) -> None:
    with open(path, "rb") as file:
        left = size
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise InstallError(f"{path}: changed while it was read", hint="extract again")
            put(chunk)
            left -= len(chunk)


def _entry(put: Callable[[bytes], None], name: str, mode: int, inode: int, links: int, size: int) -> None:
    if size >= 1 << 32:
        raise InstallError(f"{name}: a file of 4 GiB or more cannot be kept for a rollback by rebuilding its package")
    text = os.fsencode(name) + b"\0"
    numbers = (inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, len(text), 0)
    data = b"070701" + b"".join(b"%08x" % number for number in numbers) + text
    put(data + bytes(-len(data) % 4))


def _lead(header: Header) -> bytes:
    package = header.package()
    name = f"{package.name}-{package.version}".encode()[:65]
    return _LEAD_MAGIC + struct.pack(">BBHH66sHH16x", 3, 0, 0, 1, name, 1, 5)


def _signature(header: bytes, payload: IO[bytes]) -> bytes:
    """Return a signature header that holds digests only."""
    md5 = hashlib.md5(header, usedforsecurity=False)
    size = len(header)
    for chunk in iter(lambda: payload.read(_CHUNK), b""):
        md5.update(chunk)
        size += len(chunk)
    values: list[tuple[int, int, bytes, int]] = [
        (_SIG_SHA1, _STRING, hashlib.sha1(header, usedforsecurity=False).hexdigest().encode() + b"\0", 1),
        (_SIG_SHA256, _STRING, hashlib.sha256(header).hexdigest().encode() + b"\0", 1),
        (1000, _INT32, struct.pack(">I", min(size, 0xFFFFFFFF)), 1),
        (1004, _BINARY, md5.digest(), 16),
    ]
    index, data = io.BytesIO(), io.BytesIO()
    for tag, kind, value, count in values:
        if kind == _INT32:
            data.write(bytes(-data.tell() % 4))
        index.write(struct.pack(">IIII", tag, kind, data.tell(), count))
        data.write(value)
    entries = len(values) + 1
    region = struct.pack(">IIII", _SIGNATURE_REGION, _BINARY, data.tell(), 16)
    data.write(struct.pack(">IIiI", _SIGNATURE_REGION, _BINARY, -16 * entries, 16))
    body = data.getvalue()
    start = _MAGIC + struct.pack(">II", entries, len(body))
    return start + region + index.getvalue() + body + bytes(-len(body) % 8)
