"""The Debian package format: what a package says of itself, its signatures, and packing one anew.

A file is an ``ar`` archive: ``debian-binary``, ``control.tar.*`` (fields and maintainer scripts), ``data.tar.*``, and
maybe ``_gpgorigin`` and the like: detached signatures over the three members before (as ``debsigs`` makes them).
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from ted.errors import FormatError, InstallError
from ted_plugins.packages.compression import DAMAGED, opened
from ted_plugins.packages.model import Listed, Package

_MAGIC = b"!<arch>\n"
_MAX_MEMBERS = 16
_MAX_CONTROL_BYTES = 16 << 20
_MAX_PARAGRAPH_BYTES = 32 << 20
_CHUNK = 1 << 20
_STATUS_ONLY = ("Status", "Config-Version", "Conffiles")


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the archive: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


def members(file: IO[bytes]) -> list[Member]:
    """Return the members of an ``ar`` archive.

    Raises:
        FormatError: It is none.
    """
    if file.read(len(_MAGIC)) != _MAGIC:
        raise FormatError("no ar archive")
    end = file.seek(0, os.SEEK_END)
    found: list[Member] = []
    offset = len(_MAGIC)
    while offset < end:
        file.seek(offset)
        head = file.read(60)
        size = head[48:58].strip()
        if len(head) < 60 or head[58:] != b"`\n" or not size.isdigit() or len(found) >= _MAX_MEMBERS:
            raise FormatError("a damaged ar archive")
        member = Member(head[:16].decode("ascii", "replace").strip().rstrip("/"), offset + 60, int(size))
        if member.offset + member.size > end:
            raise FormatError("it ends too early")
        found.append(member)
        offset = member.offset + member.size + member.size % 2
    return found


def read(path: str) -> Listed:
    """Return what the Debian package at ``path`` says of itself; nothing of it is verified.

    Raises:
        FormatError: It is none.
    """
    try:
        with open(path, "rb") as file:
            parts = members(file)
            control = next((part for part in parts if part.name.startswith("control.tar")), None)
            if control is None or not parts[0].name == "debian-binary":
                raise FormatError("no control.tar in it")
            file.seek(control.offset)
            fields = _control_fields(control.name, file.read(min(control.size, _MAX_CONTROL_BYTES)))
        package = Package(fields.get("Package", ""), fields.get("Architecture", ""), fields.get("Version", ""))
        signed = any(part.name.startswith("_gpg") for part in parts)
        return Listed(package.checked(path), "", "", signed)
    except (FormatError, tarfile.TarError, *DAMAGED) as error:
        told = error.message if isinstance(error, FormatError) else str(error)
        raise FormatError(f"{path}: is no Debian package: {told}") from error


def _control_fields(name: str, packed: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(_unpacked(name, packed))) as tar:
        for info in tar:
            if info.name.removeprefix("./") == "control" and info.isreg():
                opened = tar.extractfile(info)
                assert opened is not None
                return next(paragraphs(opened.read().decode("utf-8", "replace").splitlines()), {})
    raise FormatError("no control file in it")


def _unpacked(name: str, packed: bytes) -> bytes:
    """Return what ``control.tar.*`` holds, of at most 16 MiB."""
    source = io.BytesIO(packed)
    with opened(name.rpartition(".")[2], source) as file:
        data: bytes = file.read(_MAX_CONTROL_BYTES + 1)
    if len(data) > _MAX_CONTROL_BYTES:
        raise FormatError("its control files are larger than 16 MiB")
    return data


def paragraphs(lines: Iterator[str] | Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield the paragraphs of a control file: field -> value, continued lines with their newlines.

    Raises:
        FormatError: One is larger than any that is meant.
    """
    fields: dict[str, list[str]] = {}
    name, size = "", 0
    for line in lines:
        size += len(line) + 1
        if size > _MAX_PARAGRAPH_BYTES:
            raise FormatError(f"a paragraph of more than {_MAX_PARAGRAPH_BYTES} bytes")
        if not line.strip():
            if fields:
                yield _joined(fields)
            fields, name, size = {}, "", 0
        elif line[0] in " \t":
            if name:
                fields[name].append(line.rstrip())
        else:
            name, _, value = line.partition(":")
            fields[name] = [value.strip()]
    if fields:
        yield _joined(fields)


def _joined(fields: Mapping[str, list[str]]) -> dict[str, str]:
    return {name: "\n".join(lines) for name, lines in fields.items()}


# --- packing anew --------------------------------------------------------------------------------------------------


def repack(
    fields: Mapping[str, str], scripts: Mapping[str, str], files: Sequence[tuple[str, str]], target: IO[bytes],
    scratch: tuple[IO[bytes], IO[bytes]],
) -> None:  # fmt: skip
    """Write the package that is installed, with its content as it is on the disk now.

    Args:
        fields: Its paragraph of dpkg's status file.
        scripts: Name in ``control.tar`` -> path, of its maintainer scripts and lists.
        files: (name in the package, path on this machine) of what it installed, parents first.
        target: Where to write it.
        scratch: Two empty files, for the two archives.
    """
    control, data = scratch
    with tarfile.open(fileobj=data, mode="w:gz", format=tarfile.GNU_FORMAT, compresslevel=1) as tar:
        _add_files(tar, files)
    with tarfile.open(fileobj=control, mode="w:gz", format=tarfile.GNU_FORMAT) as tar:
        kept = {name: value for name, value in fields.items() if name not in _STATUS_ONLY}
        text = "".join(f"{name}: {value}\n" for name, value in kept.items())
        _add_text(tar, "./control", text.encode())
        for name, path in sorted(scripts.items()):
            if name != "md5sums":  # of the content as it was
                with open(path, "rb") as file:
                    _add_text(tar, f"./{name}", file.read(), os.stat(path).st_mode & 0o777)
    target.write(_MAGIC)
    _put_member(target, "debian-binary", io.BytesIO(b"2.0\n"))
    _put_member(target, "control.tar.gz", control)
    _put_member(target, "data.tar.gz", data)


def _add_files(tar: tarfile.TarFile, files: Sequence[tuple[str, str]]) -> None:
    for name, path in files:
        try:
            info = tar.gettarinfo(path, arcname=f".{name}")
        except FileNotFoundError:
            continue  # somebody removed it, as it was before the upgrade
        except OSError as error:
            raise InstallError(f"{path}: cannot be read: {error.strerror}") from error
        if info is None:
            continue
        if info.isreg():
            with open(path, "rb") as file:
                tar.addfile(info, file)
        else:
            tar.addfile(info)


def _add_text(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))


def _put_member(target: IO[bytes], name: str, source: IO[bytes]) -> None:
    size = source.seek(0, os.SEEK_END)
    source.seek(0)
    target.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{0o100644:<8o}{size:<10}`\n".encode())
    for chunk in iter(lambda: source.read(_CHUNK), b""):
        target.write(chunk)
    if size % 2:
        target.write(b"\n")

