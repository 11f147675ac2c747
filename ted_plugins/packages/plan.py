"""What is to happen on a Subscriber: deciding, testing, and keeping what a rollback needs.

Rules:
 * A package that is installed in the version listed is not touched.
 * Signatures first, before a package manager is given the file.
 * What would happen is told exactly, for every package, before anything does; so is what else would go (replaced,
   obsoleted), and if the packages do not fit together nothing happens.
 * What is replaced or erased is kept before it goes: from the revision installed before where that has the very
   package, from a cache of the package manager, or rebuilt from what is installed.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ted.errors import FormatError, InstallError, TedError
from ted.hookspecs import Drift, Entry, Hole, InstallContext, Item, Kind
from ted_plugins.packages.carry_out import PLAN
from ted_plugins.packages.manager import Act, Flags, Manager, Plan
from ted_plugins.packages.model import INDEX, KEYS, MAX_INDEX_BYTES, PACKAGES, Listed, Package
from ted_plugins.packages.options import DebOptions, PackageOptions, RpmOptions
from ted_plugins.packages.proof import MAX_KEY_BYTES

_CHUNK = 1 << 20
Reading = Callable[[Entry], Iterator[bytes | Hole]]


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to become of one package listed: ``install`` it, or leave what is there, for a reason."""

    listed: Listed
    install: bool
    what: str = ""
    there: str | None = None


def extract(name: str, make: Callable[[Flags], Manager], install: InstallContext) -> None:
    """Plan the installation of what the revision lists, by the manager called ``name``."""
    options: PackageOptions = install.options
    manager = make(_flags(options, install.expand(options.root)))
    listed = _index(install.entries, install.read)
    there = manager.installed()
    choices = [choose(each, options, there, manager.compare) for each in listed]
    for choice in choices:
        if not choice.install:
            _leave(install, choice)
    erase = tuple(sorted(package for package in there if package.name in options.erase))
    for absent in sorted(set(options.erase) - {package.name for package in erase}):
        install.transaction.tell(Item(absent, "absent"))
    wanted = [choice.listed for choice in choices if choice.install]
    if wanted or erase:
        _act(name, manager, install, wanted, erase, there)


def verify(make: Callable[[Flags], Manager], install: InstallContext) -> list[Drift]:
    """Return packages of another version that an extraction would leave: newer ones."""
    options: PackageOptions = install.options
    manager = make(_flags(options, install.expand(options.root)))
    there = manager.installed()
    drifts = []
    for each in _index(install.entries, install.read):
        choice = choose(each, options, there, manager.compare)
        if choice.what == "newer":
            drifts.append(Drift(str(each.package.name), "version", choice.there, each.package.version))
    return drifts


def choose(
    listed: Listed, options: PackageOptions, there: dict[Package, str], compare: Callable[[str, str], int]
) -> Choice:
    """Decide about one package, from what is there; nothing is done."""
    package = listed.package
    if package in there:
        return Choice(listed, False, "unchanged", package.version)
    others = [each.version for each in there if each.name == package.name]
    if options.operation == "install":
        return Choice(listed, True)
    if options.operation == "freshen" and not others:
        return Choice(listed, False, "not installed")
    newer = [version for version in others if compare(version, package.version) > 0]
    if newer and not options.downgrade:
        return Choice(listed, False, "newer", newer[0])
    return Choice(listed, True)


def _leave(install: InstallContext, choice: Choice) -> None:
    package = choice.listed.package
    install.transaction.tell(Item(package.name, choice.what, choice.there, choice.there))
    if choice.what == "newer":
        install.log.warning(
            "%s: %s is installed, newer than %s, and stays (`downgrade: true` replaces it)",
            package.name, choice.there, package.version,
        )  # fmt: skip


def _act(
    name: str, manager: Manager, install: InstallContext, wanted: list[Listed], erase: tuple[Package, ...],
    there: dict[Package, str],
) -> None:  # fmt: skip
    options: PackageOptions = install.options
    files = _placed(manager, install, wanted)
    if options.signature == "required" and files:
        manager.check_signatures(files, _keys(install))
    foretold = manager.foretell(Act(tuple(files), erase))
    manager.test(foretold.act)
    after, before = set(foretold.after), set(there)
    _refuse_more(after - before, wanted)
    for item in items(before - after, after - before, manager.compare):
        install.transaction.tell(item)
    _commit(name, manager, install, foretold.act, before, after, there)


def items(gone: set[Package], come: set[Package], compare: Callable[[str, str], int]) -> list[Item]:
    """Return what becomes of each package: those that come, then those that go without anything in their place."""
    told: list[Item] = []
    left = set(gone)
    for package in sorted(come):
        named = [each for each in left if each.name == package.name]
        replaced = sorted(named, key=lambda each: (each.arch != package.arch, each))
        if not replaced:
            told.append(Item(package.name, "installed", None, package.version))
            continue
        old = replaced[0]
        left -= set(replaced) if len(replaced) == 1 else {old}
        order = compare(package.version, old.version)
        what = "upgraded" if order > 0 else "downgraded" if order < 0 else "replaced"
        told.append(Item(package.name, what, _shown(old, package), _shown(package, old)))
    return told + [Item(package.name, "erased", package.version, None) for package in sorted(left)]


def _shown(package: Package, other: Package) -> str:
    return package.version if package.arch == other.arch else f"{package.version} ({package.arch})"


def _refuse_more(come: set[Package], wanted: list[Listed]) -> None:
    if more := sorted(come - {each.package for each in wanted}):
        raise InstallError(f"{', '.join(map(str, more))} would be installed, and is not listed")


def _commit(
    name: str, manager: Manager, install: InstallContext, act: Act, before: set[Package],
    after: set[Package], there: dict[Package, str],
) -> None:  # fmt: skip
    keep = install.transaction.keep
    old: list[tuple[Package, str]] = []
    for number, package in enumerate(sorted(before - after) if not install.check else ()):
        place = f"old/{number}.{manager.suffix}"
        _keep_original(manager, install, package, there[package], place)
        old.append((package, place))
    names = {package.name for package in before ^ after}
    come = tuple((package, f"new/{os.path.basename(path)}") for package, path in act.install)
    new = {package for package in after - before if not any(each.name == package.name for each in before)}
    plan = Plan(
        name, manager.flags, replace(act, install=come), sorted(each for each in before if each.name in names),
        sorted(each for each in after if each.name in names), old,
        sorted(package for package in new if not manager.leaves_traces(package)),
    )  # fmt: skip
    path = keep(PLAN, [json.dumps(plan.to_dict()).encode()])
    program = [sys.executable, "-P", "-m", "ted_plugins.packages"]
    install.transaction.run(
        [*program, "forward", path], undo=[*program, "back", path], timeout_s=float(install.options.timeout_s)
    )


# --- what the distribution holds ------------------------------------------------------------------------------------


def _index(entries: Callable[[str], Iterator[Entry]], read: Reading) -> list[Listed]:
    """Return what a revision lists, in its order.

    Raises:
        FormatError: It is not what the types rpm and deb make.
    """
    entry = next(iter(entries(INDEX)), None)
    if entry is None:
        raise FormatError(f"{INDEX} is missing: no distribution of packages")
    try:
        data = json.loads(_whole(read(entry), MAX_INDEX_BYTES))
        rows = data["packages"]
        if data["format"] != 1 or not isinstance(rows, list):
            raise FormatError(f"{INDEX}: of another version of ted")
    except (ValueError, TypeError, KeyError) as error:
        raise FormatError(f"{INDEX}: {error}") from error
    return [Listed.from_dict(row) for row in rows]


def _whole(chunks: Iterator[bytes | Hole], most_bytes: int) -> bytes:
    data = b""
    for chunk in chunks:
        data += chunk if isinstance(chunk, bytes) else bytes(chunk.length)
        if len(data) > most_bytes:
            raise FormatError(f"larger than {most_bytes} bytes")
    return data


def _keys(install: InstallContext) -> list[bytes]:
    return [_whole(install.read(entry), MAX_KEY_BYTES) for entry in install.entries(KEYS) if entry.kind is Kind.FILE]


def _placed(manager: Manager, install: InstallContext, wanted: list[Listed]) -> list[tuple[Package, str]]:
    """Put the package files where programs can read them, and see that they are what the index says."""
    files: list[tuple[Package, str]] = []
    if not wanted:
        return files
    entries = {os.fsdecode(entry.path): entry for entry in install.entries(PACKAGES)}
    for number, each in enumerate(wanted):
        if each.place not in entries:
            raise FormatError(f"{each.place}: is not in the revision that lists it")
        chunks = install.read(entries[each.place])
        path = install.transaction.keep(f"new/{number}-{each.package.name}.{manager.suffix}", chunks)
        if manager.read(path).package != each.package:
            raise FormatError(f"{each.place}: is not the {each.package} that the index says")
        files.append((each.package, path))
    return files


# --- what a rollback needs ------------------------------------------------------------------------------------------


def _keep_original(manager: Manager, install: InstallContext, package: Package, identity: str, place: str) -> None:
    """Keep the file of an installed package.

    Raises:
        InstallError: There is none, and it cannot be rebuilt.
    """
    if (chunks := _of_previous(install, package, identity)) is not None:
        install.transaction.keep(place, chunks)
        return
    for path in manager.cached(package):
        if _is(manager, path, package, identity):
            install.transaction.keep(place, _chunks(path))
            return
    with tempfile.NamedTemporaryFile(prefix="ted-rebuilt-", suffix=f".{manager.suffix}") as rebuilt:
        try:
            manager.rebuild(package.whole(), rebuilt.file)
        except InstallError as error:
            error.hint = error.hint or "put its original into the package manager's cache: a rollback needs it"
            raise
        rebuilt.flush()
        install.transaction.keep(place, _chunks(rebuilt.name))


def _of_previous(install: InstallContext, package: Package, identity: str) -> Iterator[bytes | Hole] | None:
    previous = install.previous
    if previous is None:
        return None
    try:
        listed = _index(previous.entries, previous.read)
    except TedError:  # what was installed before is of another type
        return None
    for each in listed:
        if each.package == package and each.identity == identity:
            entry = next(iter(previous.entries(each.place)), None)
            return previous.read(entry) if entry is not None else None
    return None


def _is(manager: Manager, path: str, package: Package, identity: str) -> bool:
    try:
        found = manager.read(path)
    except (FormatError, OSError):
        return False
    return found.package == package and found.identity == identity


def _chunks(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from iter(lambda: file.read(_CHUNK), b"")


def _flags(options: PackageOptions, root: str) -> Flags:
    flags = Flags(
        root=os.path.normpath(root), through=getattr(options, "through", "auto"),
        beside=options.operation == "install", listed=options.order == "listed", nodeps=options.nodeps,
        replace_files=options.replace_files,
    )  # fmt: skip
    if isinstance(options, RpmOptions):
        return replace(flags, database=options.database, scripts=options.scripts, docs=options.docs)
    if isinstance(options, DebOptions):
        return replace(flags, purge=options.purge)
    return flags
