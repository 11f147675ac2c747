"""The Desktop type: applications with their entries in the menu, icons, kinds of files and groups.

Rules:
 * An application's files have the content tree ``files/<name>/`` and get a directory of their own below ``path``;
   icons have ``icons/<name>/<size>``. Everything else of a desktop is written from the options, on each Subscriber.
 * Available only where the programs of the desktop are (desktop-file-utils); other Subscribers relay.
 * An entry is overwritten at each delivery, but for the keys that ``preserve`` names.
 * Groups are made where they are missing, never with members, and never taken away but by a rollback of what made them.
 * The caches of the desktop are made anew when something they hold changed, and again when that is taken back.
"""

from __future__ import annotations

import grp
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ted import hookimpl
from ted.errors import BuildError, OptionsError, TargetError
from ted.hookspecs import Attributes, BuildContext, Entry, Hole, InstallContext, TypeInfo
from ted_plugins.desktop import caches, groups
from ted_plugins.desktop.entry import (
    entry_of,
    folder_of,
    in_turn,
    launcher_of,
    mime_package,
    values_of,
    with_defaults,
)
from ted_plugins.desktop.options import Application, Options

_VALIDATOR = "desktop-file-validate"
_VALIDATOR_S = 60.0
_MAX_READ_BYTES = 4 << 20
# What is written here has no time of its own, as what a build adds has none: a repair brings back the very same.
_FILE = Attributes(mode=0o644, mtime_ns=0)
_PROGRAM = Attributes(mode=0o755, mtime_ns=0)
_MAX_ICON_BYTES = 16 << 20
_LAUNCHER = "ted/launch"
_REFRESH_S = 3 * caches.TIMEOUT_S


@hookimpl
def ted_type() -> TypeInfo:
    """Describe the type."""
    return TypeInfo("desktop", "Desktop applications: files, menu entries, icons, kinds of files", Options, _missing)


def _missing() -> str | None:
    missing = [name for name in (_VALIDATOR, "update-desktop-database") if shutil.which(name) is None]
    return f"{' and '.join(missing)} missing: install desktop-file-utils" if missing else None


# -- building


@hookimpl
def ted_build(build: BuildContext) -> None:
    """Add the files and icons of every application, once their entries hold."""
    options: Options = build.options
    if _waits_for_version(options, build.former_options):
        build.keep_former()
        return
    for application in options.applications:
        _validate(application)
        for source in application.sources:
            _refuse_outside(source, options)
            build.add_tree(
                source.rstrip("/") or "/", f"files/{application.name}", exclude=application.exclude,
                contents_only=source.endswith("/"),
            )  # fmt: skip
        for size, source in sorted(application.icons.items()):
            _refuse_outside(source, options)
            if os.path.isfile(source) and os.path.getsize(source) > _MAX_ICON_BYTES:
                raise BuildError(f"{source}: larger than {_MAX_ICON_BYTES} bytes", hint="an icon is a small picture")
            build.add_file(_icon_place(application, size), source)
        build.add_bytes(f"applications/{application.name}", f"{application.version}\n".encode())


def _waits_for_version(options: Options, former: Mapping[str, Any] | None) -> bool:
    """Return whether no application came, went, or had its version changed since the former revision."""
    if former is None or not options.rebuild_on_version_only:
        return False
    before = {each["name"]: each.get("version") for each in former.get("applications", ())}
    return before == {each.name: each.version for each in options.applications}


def _refuse_outside(source: str, options: Options) -> None:
    """Refuse what only looks as if it lay below ``source_root``, through a link.

    Raises:
        BuildError: It leads out.
    """
    if options.source_root is None:
        return
    root, real = os.path.realpath(options.source_root), os.path.realpath(source)
    if os.path.commonpath([root, real]) != root:
        raise BuildError(f"{source}: leads to {real}, out of source_root {root}",
                         hint="send only what lies below source_root, or move source_root")  # fmt: skip


def _validate(application: Application) -> None:
    """Let the desktop's own program judge the entry.

    Raises:
        OptionsError: It finds an error.
        BuildError: It cannot be asked.
    """
    text = entry_of(application, directory="/opt/app", launcher=None, expand=lambda _: "x", preserved={})
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"{application.name}.desktop"
        path.write_text(text, encoding="utf-8")
        try:
            done = subprocess.run(
                [_VALIDATOR, "--no-hints", path], capture_output=True, text=True, timeout=_VALIDATOR_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise BuildError(f"{_VALIDATOR}: did not end within {_VALIDATOR_S:g} s", hint="build again") from None
        except OSError as error:
            raise BuildError(f"{_VALIDATOR}: cannot be started: {error.strerror}",
                             hint="install it (package desktop-file-utils)") from error  # fmt: skip
    problems = [line.partition(": ")[2] for line in (done.stdout + done.stderr).splitlines() if ": error: " in line]
    if done.returncode != 0:
        raise OptionsError(f"the entry of {application.name}: {'; '.join(problems) or done.stdout.strip()}",
                           hint="see `entry` of the application; the keys are freedesktop's")  # fmt: skip


# -- extracting


@hookimpl
def ted_extract(install: InstallContext) -> None:
    """Plan files, entries, icons, kinds of files, groups and caches."""
    _Desktop(install).plan()


class _Desktop:
    """One extraction."""

    def __init__(self, install: InstallContext) -> None:
        self._install = install
        self._options: Options = install.options
        self._path = install.expand(self._options.path).rstrip("/")
        self._share = install.expand(self._options.share).rstrip("/")
        self._waiting: dict[str, tuple[bytes, Attributes]] = {}
        """What differs from what is there: path below the data directory -> content and attributes."""
        self._going: set[str] = set()

    def plan(self) -> None:
        options, install = self._options, self._install
        install.problems()
        self._groups()
        for application in options.in_order():
            if application.sources:
                install.place(
                    f"files/{application.name}", self._directory(application), synchronize=options.synchronize,
                    exclude=application.exclude,
                )  # fmt: skip
            self._entry(application)
            self._icons(application)
            if (package := mime_package(application.mime)) is not None:
                self._want(f"mime/packages/{application.name}.xml", package)
            if options.maintain_tree and application.folder:
                self._folders(application.folder)
        if options.mirror_order != "none":
            self._launcher()
        if options.maintain_associations:
            self._defaults()
        if options.synchronize:
            self._forget_gone()
        self._write()

    def _directory(self, application: Application) -> str:
        return f"{self._path}/{self._options.directory(application)}"

    def _groups(self) -> None:
        if not self._options.maintain_associations:
            return
        wanted = {name for application in self._options.applications for name in application.groups}
        missing = sorted(name for name in wanted if not _is_group(name))
        if missing:
            transaction = self._install.transaction
            program, mark = [sys.executable, "-I", groups.__file__], transaction.keep("groups", [])
            transaction.run([*program, "make", mark, *missing], undo=[*program, "unmake", mark, *missing])

    def _entry(self, application: Application) -> None:
        options = self._options
        place = f"applications/{application.name}.desktop"
        there = self._there(place)
        text = entry_of(
            application,
            directory=None if options.keep_source_paths else self._directory(application),
            launcher=None if options.mirror_order == "none" else (f"{self._share}/{_LAUNCHER}", self._path),
            expand=self._install.expand,
            preserved=values_of(there.decode("utf-8", "replace"), options.preserve) if there is not None else {},
        )
        self._want(place, text.encode())

    def _icons(self, application: Application) -> None:
        for size, source in application.icons.items():
            entry = next(iter(self._install.entries(_icon_place(application, size))), None)
            if entry is None:
                continue
            ending = os.path.splitext(source)[1]
            name = f"{application.name}-symbolic{ending}" if size == "symbolic" else f"{application.name}{ending}"
            self._want(f"icons/hicolor/{size}/apps/{name}", _content(self._install, entry))

    def _folders(self, folder: str) -> None:
        parts = folder.split("/")
        for depth in range(1, len(parts) + 1):
            place = f"desktop-directories/{'-'.join(parts[:depth])}.directory"
            if self._options.overwrite_folders or self._there(place) is None:
                self._want(place, folder_of(parts[depth - 1]).encode())

    def _launcher(self) -> None:
        options, install = self._options, self._install
        mirrors = [install.expand(mirror).rstrip("/") for mirror in options.mirrors]
        sources = [self._path, *mirrors]
        if options.mirror_order == "load_balance":
            sources = in_turn(sources, install.expand("%SERVER_NAME%"))
        text = launcher_of(sources)
        self._want(_LAUNCHER, text.encode(), _PROGRAM)

    def _defaults(self) -> None:
        defaults = {
            kind.type: f"{application.name}.desktop"
            for application in self._options.applications for kind in application.mime if kind.default
        }  # fmt: skip
        if defaults:
            there = self._there("applications/mimeapps.list") or b""
            text = with_defaults(there.decode("utf-8", "surrogateescape"), defaults)
            self._want("applications/mimeapps.list", text.encode("utf-8", "surrogateescape"))

    def _forget_gone(self) -> None:
        """Let go of what makes an application known that the revision before held and this one does not."""
        previous = self._install.previous
        if previous is None:
            return
        now = {application.name for application in self._options.applications}
        before = {os.fsdecode(entry.path).rpartition("/")[2] for entry in previous.entries("applications")}
        for name in before - now - {"applications"}:
            places = (f"applications/{name}.desktop", f"mime/packages/{name}.xml")
            self._going |= {place for place in places if self._there(place) is not None}

    def _there(self, place: str) -> bytes | None:
        """Return what is at a place of the data directory; ``None`` when no such file is there."""
        path = f"{self._share}/{place}"
        try:
            with open(path, "rb") as file:
                data = file.read(_MAX_READ_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise TargetError(f"{path}: {error.strerror}", path=path, errno=error.errno) from error
        if len(data) > _MAX_READ_BYTES:
            raise TargetError(f"{path}: larger than {_MAX_READ_BYTES} bytes", hint="this is no file of a desktop",
                              path=path)  # fmt: skip
        return data

    def _want(self, place: str, data: bytes, attributes: Attributes = _FILE) -> None:
        status = self._install.transaction.look(self._share, os.fsencode(place))
        same = status is not None and status.st_mode & 0o7777 == attributes.mode and self._there(place) == data
        if not same:
            self._waiting[place] = data, attributes

    def _write(self) -> None:
        """Write what differs, with the caches made anew before (which an undo does last) and after."""
        if not self._waiting and not self._going:
            return
        transaction = self._install.transaction
        refresh = [sys.executable, "-I", caches.__file__, self._share]
        for place in sorted(_directories([*self._waiting, *self._going])):
            status = transaction.look(self._share, os.fsencode(place))
            if status is not None and not stat.S_ISDIR(status.st_mode):
                path = f"{self._share}/{place}"
                raise TargetError(f"{path}: is no directory", hint="move it away, or name another `share`", path=path)
            # One that is there is named so that what it was is written down before the caches change it.
            transaction.mkdir(self._share, os.fsencode(place), attributes=None if status is None else Attributes())
        transaction.run(refresh, undo=refresh, timeout_s=_REFRESH_S)
        for place, (data, attributes) in sorted(self._waiting.items()):
            transaction.write(self._share, os.fsencode(place), [data], size=len(data), attributes=attributes)
        for place in sorted(self._going):
            transaction.delete(self._share, os.fsencode(place))
        transaction.run(refresh, timeout_s=_REFRESH_S)


def _is_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _directories(places: Iterable[str]) -> set[str]:
    """Return every directory on the way to the places, but the one they all lie in."""
    found = set()
    for place in places:
        while place := os.path.dirname(place):
            found.add(place)
    return found




def _icon_place(application: Application, size: str) -> str:
    return f"icons/{application.name}/{size}{os.path.splitext(application.icons[size])[1]}"


def _content(install: InstallContext, entry: Entry) -> bytes:
    """Return a small file of the content tree, whole."""
    return b"".join(bytes(piece.length) if isinstance(piece, Hole) else piece for piece in install.read(entry))


@hookimpl
def ted_sample(bench: Any) -> Any:
    """Return what the contract suite tests this type with."""
    from ted_plugins.samples.desktop import sample

    return sample(bench)
