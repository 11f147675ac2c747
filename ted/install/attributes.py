"""Modes, owners, times and extended attributes: read, compare, set.

Rules:
 * ``None`` means: leave as it is.
 * Order of setting: owner, then mode, then extended attributes, then times; a change of owner clears set-user-id bits
   and capabilities, so both come after it.
 * What this process may not set is not asked for: a user who is not root keeps its own files' owner, and gives
   them only to its own groups; set-user-id and set-group-id bits go when the owner they were meant for cannot be
   set. The same rule decides comparing, so a second extraction finds nothing to do.
 * Only the namespaces ted carries are compared and set: ``user.``, POSIX ACLs, ``security.capability``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ted.hookspecs import Attributes

_NAMESPACES = ("user.", "system.posix_acl_")
_NAMES = ("security.capability",)
_UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_SET_ID = stat.S_ISUID | stat.S_ISGID


def pack(held: Attributes) -> list[Any]:
    """Return ``held`` as a plain list, for the journal."""
    xattrs = None if held.xattrs is None else dict(held.xattrs)
    return [held.mode, held.owner, held.group, held.mtime_ns, xattrs]


def unpack(packed: list[Any]) -> Attributes:
    """Return what ``pack`` was called on."""
    return Attributes(*packed)


@dataclass(slots=True)
class Rights:
    """What this process may set; decided once, the same for comparing and for setting."""

    root: bool = field(default_factory=lambda: os.geteuid() == 0)
    user: int = field(default_factory=os.geteuid)
    groups: frozenset[int] = field(default_factory=lambda: frozenset({os.getegid(), *os.getgroups()}))

    def reduce(self, wanted: Attributes) -> Attributes:
        """Return what of ``wanted`` this process can reach."""
        if self.root:
            return wanted
        owner = None if wanted.owner != self.user else wanted.owner
        group = wanted.group if wanted.group in self.groups else None
        mode = wanted.mode
        if mode is not None and mode & _SET_ID and (owner, group) != (wanted.owner, wanted.group):
            mode &= ~_SET_ID
        xattrs = wanted.xattrs
        if xattrs and any(name.startswith("security.") for name in xattrs):
            xattrs = {name: value for name, value in xattrs.items() if not name.startswith("security.")}
        return replace(wanted, owner=owner, group=group, mode=mode, xattrs=xattrs)


def carried(name: str) -> bool:
    """Return whether ted carries the extended attribute ``name``."""
    return name.startswith(_NAMESPACES) or name in _NAMES


def read_xattrs(where: int | str) -> dict[str, bytes]:
    """Return the carried extended attributes; none where the file system has none."""
    try:
        return {name: os.getxattr(where, name) for name in os.listxattr(where) if carried(name)}
    except OSError as error:
        if error.errno in (*_UNSUPPORTED, errno.ENODATA):
            return {}
        raise


def xattrs_of(name: bytes, at: int) -> dict[str, bytes]:
    """Return the carried extended attributes of ``name`` in the directory ``at``, itself and not what it links to."""
    where = os.fsencode(handle(at)) + b"/" + name
    try:
        found = os.listxattr(where, follow_symlinks=False)
        return {each: os.getxattr(where, each, follow_symlinks=False) for each in found if carried(each)}
    except OSError as error:
        if error.errno in (*_UNSUPPORTED, errno.ENODATA):
            return {}
        raise


def handle(fd: int) -> str:
    """Return a name for the file behind an ``O_PATH`` descriptor that calls without ``dir_fd`` take."""
    return f"/proc/self/fd/{fd}"


def read(name: bytes, at: int, status: os.stat_result) -> Attributes:
    """Return the attributes of ``name`` in the directory ``at``, whose status is ``status``."""
    if stat.S_ISLNK(status.st_mode):
        return Attributes(None, status.st_uid, status.st_gid, status.st_mtime_ns, None)
    return Attributes(
        stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, xattrs_of(name, at)
    )


def same(wanted: Attributes, status: os.stat_result, mtime_ns: int | None = None) -> bool:
    """Return whether ``status`` has what ``wanted`` says, extended attributes aside; ``mtime_ns`` corrects its time."""
    mtime_ns = status.st_mtime_ns if mtime_ns is None else mtime_ns
    return (
        (wanted.mode is None or wanted.mode == stat.S_IMODE(status.st_mode))
        and (wanted.owner is None or wanted.owner == status.st_uid)
        and (wanted.group is None or wanted.group == status.st_gid)
        and (wanted.mtime_ns is None or wanted.mtime_ns == mtime_ns)
    )


def set_open(fd: int, wanted: Attributes, status: os.stat_result | None = None) -> list[str]:
    """Set ``wanted`` on a new file that is open for writing; return what could not be set, for people.

    With its ``status``, only what differs of owner and group is set.
    """
    trouble: list[str] = []
    there = (None, None) if status is None else (status.st_uid, status.st_gid)
    if wanted.owner not in (None, there[0]) or wanted.group not in (None, there[1]):
        _chown(fd, None, wanted, trouble)
    if wanted.mode is not None:
        os.fchmod(fd, wanted.mode)
    if wanted.xattrs:
        _set_xattrs(fd, wanted.xattrs, {}, trouble)
    if wanted.mtime_ns is not None:
        os.utime(fd, ns=(wanted.mtime_ns, wanted.mtime_ns))
    return trouble


def set_named(name: bytes, at: int, wanted: Attributes) -> list[str]:
    """Set ``wanted`` on ``name`` in ``at``, itself and never what it links to; return what could not be."""
    trouble: list[str] = []
    status = os.stat(name, dir_fd=at, follow_symlinks=False)
    link = stat.S_ISLNK(status.st_mode)
    if (wanted.owner is not None and wanted.owner != status.st_uid) or (
        wanted.group is not None and wanted.group != status.st_gid
    ):
        _chown(name, at, wanted, trouble)
    if not link and (wanted.mode is not None or wanted.xattrs is not None):
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
        try:
            if wanted.mode is not None:
                os.chmod(handle(fd), wanted.mode)
            if wanted.xattrs is not None:
                _set_xattrs(handle(fd), wanted.xattrs, read_xattrs(handle(fd)), trouble)
        finally:
            os.close(fd)
    if wanted.mtime_ns is not None:
        os.utime(name, ns=(wanted.mtime_ns, wanted.mtime_ns), dir_fd=at, follow_symlinks=False)
    return trouble


def _chown(where: int | bytes, at: int | None, wanted: Attributes, trouble: list[str]) -> None:
    owner = -1 if wanted.owner is None else wanted.owner
    group = -1 if wanted.group is None else wanted.group
    try:
        if isinstance(where, int):
            os.chown(where, owner, group)
        else:
            os.chown(where, owner, group, dir_fd=at, follow_symlinks=False)
    except PermissionError as error:
        trouble.append(f"owner {wanted.owner}:{wanted.group} not set: {error.strerror}")


def _set_xattrs(
    where: int | str, wanted: Mapping[str, bytes], present: Mapping[str, bytes], trouble: list[str]
) -> None:
    for name in present.keys() - wanted.keys():
        os.removexattr(where, name)
    for name, value in wanted.items():
        if present.get(name) == value:
            continue
        try:
            os.setxattr(where, name, value)
        except OSError as error:
            if error.errno not in (*_UNSUPPORTED, errno.EPERM):
                raise
            trouble.append(f"extended attribute {name} not set: {error.strerror}")
