"""The Distributor's side: from what an inventory lists to the content tree. No package manager is needed here.

The content tree: ``packages/NAME.ARCH.rpm`` (or ``NAME_ARCH.deb``), by names that stay from version to version, so
that a new version travels as a patch of the former; ``index.json`` with what they are, in the order of the inventory;
``keys/N`` with the public keys.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator
from dataclasses import replace

from ted.errors import BuildError, EmptySourceError, FormatError
from ted.hookspecs import BuildContext
from ted_plugins.packages.model import INDEX, KEYS, PACKAGES, Listed, Reader
from ted_plugins.packages.options import DebSource, PackageOptions, Source
from ted_plugins.packages.proof import MAX_KEY_BYTES, keyring
from ted_plugins.packages.reach import LocalRepository, Mirrors
from ted_plugins.packages.repositories import offers_of
from ted_plugins.sources.rate import Rate

MAX_PACKAGES = 20_000


def build(kind: str, read: Reader, context: BuildContext) -> None:
    """Add every package, the index and the keys.

    Raises:
        BuildError: A package is none, is not signed where it must be, or is listed twice.
        EmptySourceError: A path or pattern names nothing.
    """
    options: PackageOptions = context.options
    listed: list[Listed] = []
    offered = _offered(kind, context)
    for number, source in enumerate(options.packages):
        for path in [offered[number]] if number in offered else _files(source):
            listed.append(_placed(kind, read, path, listed, options))
            context.add_file(listed[-1].place, path)
    if len(listed) > MAX_PACKAGES:
        raise BuildError(f"more than {MAX_PACKAGES} packages", hint="make several distributions of them")
    _refuse_two_versions(listed, options)
    rows = [each.to_dict() for each in listed]
    context.add_bytes(INDEX, json.dumps({"format": 1, "packages": rows}, indent=1).encode())
    for number, path in enumerate(options.keys):
        context.add_bytes(f"{KEYS}/{number}", key(path))


def _files(source: Source) -> Iterator[str]:
    assert source.path is not None
    paths = sorted(glob.glob(source.path)) if glob.has_magic(source.path) else [source.path]
    if not any(map(os.path.isfile, paths)):
        raise EmptySourceError(f"{source.path}: no package is there", hint="name a file, or a pattern of files")
    yield from paths


def _offered(kind: str, context: BuildContext) -> dict[int, str]:
    """Return where the package of each source that names a repository or an address lies: position -> path."""
    options: PackageOptions = context.options
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, source in enumerate(options.packages):
        if source.repository is not None:
            where: tuple[str, ...] = (source.repository.rstrip("/"),)
            if isinstance(source, DebSource) and source.suite is not None:  # there an index is of one architecture
                where += (source.suite, source.component, source.arch or "")
            groups.setdefault(where, []).append(number)
    keys = [key(path) for path in options.repository_keys]
    mirrors = Mirrors(context, Rate(options.fetch_rate))
    found = {
        number: mirrors.package(source) for number, source in enumerate(options.packages) if source.url is not None
    }
    for index, numbers in groups.items():
        sources = [options.packages[number] for number in numbers]
        local = index[0].startswith("/")
        repository = LocalRepository(index[0]) if local else mirrors.repository(index, sources[0])
        chosen = offers_of(kind, repository, sources, keys)
        offers = dict(zip(numbers, (offer for _, offer in chosen), strict=True))
        paths = repository.packages(list(offers.values()))
        found |= {number: paths[offer] for number, offer in offers.items()}
    mirrors.tidy()
    return found


def _placed(kind: str, read: Reader, path: str, before: list[Listed], options: PackageOptions) -> Listed:
    try:
        found = read(path)
    except (FormatError, OSError) as error:
        raise BuildError(error.message if isinstance(error, FormatError) else str(error),
                         hint=f"the type {kind} holds {kind} packages only") from error  # fmt: skip
    package = found.package
    if options.signature == "required" and not found.signed:
        raise BuildError(f"{path}: is not signed", hint="sign it, or say `signature: none`")
    join = "." if kind == "rpm" else "_"
    place = f"{PACKAGES}/{package.name}{join}{package.arch}.{kind}"
    if place in {each.place for each in before}:
        place = f"{PACKAGES}/{package.name}{join}{package.version}{join}{package.arch}.{kind}"
    if package in {each.package for each in before}:
        raise BuildError(f"{path}: {package} is listed twice", hint="leave one of them out")
    return replace(found, place=place)


def _refuse_two_versions(listed: list[Listed], options: PackageOptions) -> None:
    seen: dict[tuple[str, str], Listed] = {}
    for each in listed:
        other = seen.setdefault((each.package.name, each.package.arch), each)
        if other is not each and options.operation != "install":
            raise BuildError(
                f"{each.package.name} is listed in versions {other.package.version} and {each.package.version}",
                hint="only `operation: install` puts several versions beside each other",
            )
        if each.package.name in options.erase:
            raise BuildError(f"{each.package.name} is listed, and in `erase` too", hint="leave it out of one of them")


def key(path: str) -> bytes:
    """Return the public key in a file.

    Raises:
        BuildError: It is none.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_KEY_BYTES + 1)
        if len(data) > MAX_KEY_BYTES:
            raise ValueError("it is larger than a key")
        keyring([data])
    except OSError as error:
        raise BuildError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BuildError(f"{path}: {error}", hint="give a file that `gpg --armor --export` wrote") from error
    return data
