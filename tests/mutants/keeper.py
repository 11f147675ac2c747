"""A good distribution type, small and with something of everything: the mutants are made of it.

It puts the files of a directory that is guarded by a password below a target, one by one and not with
``install.place``, and has a registry told what there is.
"""

from __future__ import annotations

import grp
import hashlib
import hmac
import json
import logging
import os
import pwd
import subprocess
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from ted import hookimpl
from ted.errors import BuildError, EmptySourceError
from ted.hookspecs import Attributes, BuildContext, Drift, Entry, InstallContext, Kind, TypeInfo

LOG = logging.getLogger("keeper")


class Options(BaseModel):
    """What an inventory writes below ``options``."""

    model_config = ConfigDict(extra="forbid")

    source: str = Field(min_length=1, description="Directory on the Distributor, guarded by a password.")
    password: SecretStr = Field(description="What opens the source.")
    target: str = Field("%DEST_VOLUME%/keep", min_length=1, description="Directory on the Subscriber.")
    registry: str | None = Field(None, min_length=1, description="File on the Subscriber that a helper keeps.")
    mode: str | None = Field(None, pattern="^0[0-7]{3}$", description="Mode of files; unset keeps the source's.")
    hidden: bool = Field(False, description="Also take files whose names begin with a dot.")
    label: str = Field("", description="A word that goes into the index.")
    tidy: bool = Field(True, description="Remove what an earlier revision had and this one has not.")


@hookimpl
def ted_type() -> TypeInfo:
    return TypeInfo("keeper", "Files that are kept behind a password", Options)


# --- build


@hookimpl
def ted_build(build: BuildContext) -> None:
    options: Options = build.options
    source = Path(options.source)
    unlock(source, options.password.get_secret_value())
    build.log.debug("building from %s", source)
    checked = fetched(build, source)
    build.add_tree(source, "files", exclude=["/lock"] if options.hidden else ["/lock", ".*"], contents_only=True)
    build.add_bytes("index.json", index(source, options, checked))


def unlock(source: Path, password: str) -> None:
    """Try the password at the lock."""
    if not (source / "lock").is_file():
        raise EmptySourceError(f"{source}: is not there, or not a kept directory", hint="name a directory with a lock")
    wanted = (source / "lock").read_text().strip()
    if not hmac.compare_digest(hashlib.sha256(password.encode()).hexdigest(), wanted):
        raise BuildError(f"{source}: the password does not open it", hint="correct `password`")
    ask_helper(password)


def ask_helper(password: str) -> None:
    """A program that gets the password the only safe way: by its standard input."""
    subprocess.run(["sh", "-c", "read password"], input=f"{password}\n".encode(), check=True)


def fetched(build: BuildContext, source: Path) -> int:
    """Keep a copy of the lock in scratch, whole or not at all, and return its size."""
    copy = build.scratch / "lock"
    new = copy.with_suffix(".new")
    new.write_bytes((source / "lock").read_bytes())
    os.replace(new, copy)
    return copy.stat().st_size


def index(source: Path, options: Options, checked: int) -> bytes:
    names = sorted({path.suffix for path in source.rglob("*") if path.is_file()})
    lines = {"suffixes": names, "label": options.label, "checked": checked}
    return json.dumps(lines, sort_keys=True).encode()


# --- extract


@hookimpl
def ted_extract(install: InstallContext) -> None:
    options: Options = install.options
    root = install.expand(options.target)
    before = {entry.path: entry for entry in install.previous.entries("files")} if install.previous else {}
    wanted: dict[bytes, Entry] = {}
    for entry in install.entries("files"):
        path = entry.path[len(b"files/") :]
        wanted[entry.path] = entry
        put(install, root, path, entry)
    for gone in sorted(before.keys() - wanted.keys(), key=lambda each: each.split(b"/")):
        path = gone[len(b"files/") :]
        above = path.rpartition(b"/")[0]
        if options.tidy and (not above or b"files/" + above in wanted) and install.transaction.look(root, path):
            install.transaction.delete(root, path)
    if options.registry:
        register(install, install.expand(options.registry), root)


def put(install: InstallContext, root: str, path: bytes, entry: Entry) -> None:
    """Plan one entry, if what is there differs."""
    attributes = attributes_of(install, entry)
    now = install.transaction.look(root, path)
    if entry.kind is Kind.DIRECTORY:
        if now is None or not same_attributes(now, attributes) or not is_kind(now, "d"):
            install.transaction.mkdir(root, path, attributes=attributes)
    elif entry.kind is Kind.SYMLINK:
        assert entry.link is not None
        if now is None or not is_kind(now, "l") or os.readlink(os.path.join(os.fsencode(root), path)) != entry.link:
            install.transaction.symlink(root, path, entry.link, attributes=attributes)
    elif entry.kind is Kind.HARDLINK:
        assert entry.link is not None
        first = install.transaction.look(root, entry.link[len(b"files/") :])
        if now is None or first is None or now.st_ino != first.st_ino or differs(install, root, entry):
            install.transaction.hardlink(root, path, entry.link[len(b"files/") :])
    elif now is None or not is_kind(now, "f") or not same_attributes(now, attributes) or differs(install, root, entry):
        install.transaction.write(root, path, install.read(entry), size=entry.size, attributes=attributes)


def attributes_of(install: InstallContext, entry: Entry) -> Attributes:
    mode = int(install.options.mode, 8) if install.options.mode and entry.kind is Kind.FILE else entry.mode
    owner, group = os.geteuid(), os.getegid()
    if owner == 0:
        owner = entry.owner if isinstance(entry.owner, int) else pwd.getpwnam(entry.owner).pw_uid
        group = entry.group if isinstance(entry.group, int) else grp.getgrnam(entry.group).gr_gid
    link = entry.kind is Kind.SYMLINK
    return Attributes(None if link else mode, owner, group, entry.mtime_ns, None if link else dict(entry.xattrs))


def same_attributes(now: os.stat_result, wanted: Attributes) -> bool:
    if (now.st_uid, now.st_gid, now.st_mtime_ns) != (wanted.owner, wanted.group, wanted.mtime_ns):
        return False
    return wanted.mode is None or now.st_mode & 0o7777 == wanted.mode


def is_kind(now: os.stat_result, kind: str) -> bool:
    return {"f": 0o100000, "d": 0o040000, "l": 0o120000}[kind] == now.st_mode & 0o170000


def differs(install: InstallContext, root: str, entry: Entry) -> bool:
    """Compare bytes with the manifest's digest, piece by piece, and only what is a plain file."""
    path = os.path.join(os.fsencode(root), entry.path[len(b"files/") :])
    status = os.lstat(path)
    if status.st_size != entry.size and entry.kind is Kind.FILE:
        return True
    wanted = entry.content_digest
    if wanted is None:
        return install.recheck
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.digest() != wanted


TELL = ["sh", "-c", 'echo "$2" > "$1.new" && mv "$1.new" "$1"', "tell"]


def register(install: InstallContext, path: str, root: str) -> None:
    """Have the helper write which index is installed; it can be taken back."""
    (entry,) = install.entries("index.json")
    word = entry.content_digest.hex() if entry.content_digest else ""
    now = Path(path).read_text().strip() if Path(path).is_file() else ""
    if now == word:
        return
    install.transaction.run([*TELL, path, word], undo=[*TELL, path, now] if now else ["rm", "-f", path])


@hookimpl
def ted_verify(install: InstallContext) -> list[Drift]:
    path = install.options.registry and install.expand(install.options.registry)
    if path and not Path(path).is_file():
        return [Drift(path, "missing")]
    return []


# --- the sample


@hookimpl
def ted_sample(bench: Any) -> Any:
    from ted.testing import Sample, Variant

    kept, other = bench.sources / "kept", bench.sources / "other"
    lock = hashlib.sha256(bench.secret.encode()).hexdigest().encode()
    for place in (kept, other):
        bench.write(place / "lock", lock)
        bench.write(place / ".hidden", b"hidden\n")
    bench.write(kept / "a.txt", b"first\n")
    bench.write(kept / "stays.txt", b"stays\n", mode=0o640)
    bench.write(kept / "bin" / "tool.sh", b"#!/bin/sh\n", mode=0o755)
    bench.write(kept / "bin" / "deep" / "data.csv", b"1,2\n" * 2000)
    bench.write(kept / "goes" / "x.py", b"pass\n")
    (kept / "bin" / "link").symlink_to("tool.sh")
    bench.write(other / "other.md", b"other\n")
    options = {
        "source": str(kept), "password": bench.secret, "target": str(bench.target / "keep"),
        "registry": str(bench.target / "registry"),
    }  # fmt: skip

    def change() -> None:
        (kept / "a.txt").write_text("second\n")
        (kept / "goes" / "x.py").unlink()
        (kept / "goes").rmdir()
        bench.write(kept / "new" / "b.conf", b"new\n")

    return Sample(
        options, change, [bench.target / "keep", bench.target / "registry"],
        mirrors={bench.target / "keep" / "bin": kept / "bin"},
        outcome=lambda: (bench.target / "registry").read_text() if (bench.target / "registry").exists() else None,
        variants=[
            Variant("source", str(other)), Variant("target", str(bench.target / "elsewhere")),
            Variant("registry", str(bench.target / "other-registry")), Variant("mode", "0600"),
            Variant("label", "word"),
        ],
        inert={"tidy": "shows only from one revision to the next"},
        grow=lambda size: bench.fill(kept / "large.bin", size), volatile=[str(bench.target / "*registry")],
    )  # fmt: skip
