"""Repositories of packages: their metadata is read, checked and searched here, without a package manager.

Rules:
 * With keys given, the signature over the metadata holds, or the build fails: ``repomd.xml.asc`` of a yum repository,
   ``InRelease`` or ``Release.gpg`` of an apt one. From there every digest leads on: to the index, to the package.
 * Where several versions fit, the newest one counts. Where several architectures do, one must be named.
 * Metadata is bounded before it is believed, has no document type, and leads nowhere out of its repository.
"""

from __future__ import annotations

import hashlib
import io
import xml.parsers.expat
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import unquote

from ted.errors import BuildError
from ted_plugins.packages import proof
from ted_plugins.packages.compression import DAMAGED, opened
from ted_plugins.packages.deb_file import paragraphs
from ted_plugins.packages.model import Package
from ted_plugins.packages.options import DebSource, Source
from ted_plugins.packages.versions import compare_deb, compare_rpm

MAX_HEAD_BYTES = 16 << 20
MAX_INDEX_BYTES = 1 << 30
_CHUNK = 1 << 20
_MAX_PIECE_BYTES = 16 << 20
"""No line, no text of an element is longer."""
_WANTED = frozenset({
    "name", "arch", "checksum", "checksum.type", "location.href", "size.package", "version.epoch", "version.ver",
    "version.rel",
})  # fmt: skip
_STRONG = ("sha256", "sha384", "sha512", "sha224")


class Reach(Protocol):
    """How one gets at what a repository holds."""

    @property
    def name(self) -> str:
        """What to call it in messages; no secrets."""

    def read(self, place: str, max_bytes: int) -> bytes | None:
        """Return a file of it; ``None`` when it is not there.

        Raises:
            BuildError: It is larger, or cannot be read.
        """


@dataclass(frozen=True, slots=True)
class Offered:
    """A package that a repository offers: where it lies, and what it must be (``sha256:...``)."""

    package: Package
    place: str
    digest: str
    size: int | None = None


def choose(offers: Sequence[Offered], source: Source, compare: Callable[[str, str], int], where: str) -> Offered:
    """Return the package that a source of the inventory means.

    Raises:
        BuildError: There is none, or more than one architecture.
    """
    what = f"{source.name}" + (f" {source.version}" if source.version else "")
    named = [each for each in offers if each.package.name == source.name]
    fitting = [each for each in named if source.version is None or _is_version(each.package, source.version, compare)]
    if source.arch is not None:
        fitting = [each for each in fitting if each.package.arch in (source.arch, "noarch", "all")]
    if not fitting:
        there = sorted({f"{each.package.version} ({each.package.arch})" for each in named})
        raise BuildError(f"{where}: no {what}", hint=f"it has {', '.join(there[-10:])}" if there else "see its index")
    if len(archs := sorted({each.package.arch for each in fitting})) > 1 and source.arch is None:
        raise BuildError(f"{where}: {what} is there for {', '.join(archs)}", hint="say which with `arch`")
    newest = fitting[0]
    for each in fitting[1:]:
        if compare(each.package.version, newest.package.version) > 0:
            newest = each
    return newest


def _is_version(package: Package, wanted: str, compare: Callable[[str, str], int]) -> bool:
    """Return whether it is the version, or one of its releases where none is named."""
    if compare(package.version, wanted) == 0:
        return True
    return "-" not in wanted and compare(package.version.rpartition("-")[0], wanted) == 0


# --- yum -----------------------------------------------------------------------------------------------------------


def yum(reach: Reach, names: Collection[str], keys: Sequence[bytes]) -> list[Offered]:
    """Return what a yum repository offers under ``names``.

    Raises:
        BuildError: It is none, its signature does not hold, or its metadata are damaged.
    """
    top = "repodata/repomd.xml"
    head = _needed(reach, top)
    if keys:
        proof.check(keys, _needed(reach, f"{top}.asc"), [head], BuildError, f"{reach.name}: {top}")
    place, digest = _primary(head, reach.name)
    packed = _proved(reach, place, digest)
    reader = _Primary(names, reach.name)
    for chunk in _unpacked(place, packed, reach.name):
        reader.feed(chunk)
    return reader.found


def _primary(head: bytes, where: str) -> tuple[str, str]:
    """Return place and digest of the list of packages."""
    found: dict[str, str] = {}
    inside = ""

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal inside
        if name == "data":
            inside = attributes.get("type", "")
        elif inside == "primary" and name == "location":
            found["place"] = attributes.get("href", "")
        elif inside == "primary" and name == "checksum":
            found["kind"], found["digest"] = attributes.get("type", ""), ""

    def text(data: str) -> None:
        if "kind" in found and inside == "primary" and reading == "checksum":
            found["digest"] += data

    reading = ""

    def begin(name: str, attributes: dict[str, str]) -> None:
        nonlocal reading
        reading = name
        start(name, attributes)

    def end(_name: str) -> None:
        nonlocal reading
        reading = ""

    parser = _parser(begin, end, text)
    _parse(parser, head, where, last=True)
    if not found.get("place") or not found.get("digest"):
        raise BuildError(f"{where}: repomd.xml names no primary list of packages")
    return _inside(found["place"], where), _digest(found["kind"], found["digest"].strip(), where)


class _Primary:
    """Reads ``primary.xml`` piece by piece and keeps the packages that were asked for."""

    def __init__(self, names: Collection[str], where: str) -> None:
        self.found: list[Offered] = []
        self._names, self._where = names, where
        self._fields: dict[str, str] = {}
        self._text: list[str] = []
        self._depth = self._size = 0
        self._parser = _parser(self._start, self._end, self._add)

    def feed(self, data: bytes) -> None:
        """Read the next piece; an empty one is the end."""
        _parse(self._parser, data, self._where, last=not data)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._text.clear()
        self._size = 0
        self._depth += 1
        if name == "package" and self._depth == 2:
            self._fields = {}
        elif self._depth == 3:
            for key, value in attributes.items():
                if f"{name}.{key}" in _WANTED:
                    self._fields[f"{name}.{key}"] = value

    def _add(self, text: str) -> None:
        self._size += len(text)
        if self._size > _MAX_PIECE_BYTES:
            raise BuildError(f"{self._where}: metadata with a text of more than {_MAX_PIECE_BYTES} bytes")
        self._text.append(text)

    def _end(self, name: str) -> None:
        if self._depth == 3 and name in _WANTED:
            self._fields[name] = "".join(self._text).strip()
        elif self._depth == 2 and name == "package":
            self._package()
        self._text.clear()
        self._size = 0
        self._depth -= 1

    def _package(self) -> None:
        fields = self._fields
        if fields.get("name") not in self._names or fields.get("arch") == "src":
            return
        epoch = fields.get("version.epoch", "0")
        version = f"{fields.get('version.ver', '')}-{fields.get('version.rel', '')}"
        package = Package(fields["name"], fields.get("arch", ""), version if epoch == "0" else f"{epoch}:{version}")
        size = fields.get("size.package", "")
        self.found.append(Offered(
            package.checked(self._where), _inside(fields.get("location.href", ""), self._where),
            _digest(fields.get("checksum.type", ""), fields.get("checksum", ""), self._where),
            int(size) if size.isdecimal() and len(size) < 16 else None,
        ))  # fmt: skip


def _parser(start: Any, end: Any, text: Any) -> xml.parsers.expat.XMLParserType:
    parser = xml.parsers.expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.StartDoctypeDeclHandler = _refuse_doctype
    return parser


def _refuse_doctype(*_words: object) -> None:
    raise BuildError("metadata of a repository with a document type: refused")


def _parse(parser: xml.parsers.expat.XMLParserType, data: bytes, where: str, *, last: bool) -> None:
    try:
        parser.Parse(data, last)
    except xml.parsers.expat.ExpatError as error:
        raise BuildError(f"{where}: damaged metadata: {error}") from error


# --- apt -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Release:
    """What a ``Release`` file says."""

    fields: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)


def apt(
    reach: Reach, names: Collection[str], keys: Sequence[bytes], *, suite: str | None, component: str, arch: str | None
) -> list[Offered]:
    """Return what an apt repository offers under ``names``; a flat one where ``suite`` is ``None``.

    Raises:
        BuildError: It is none, its signature does not hold or is over, or its metadata are damaged.
    """
    top = f"dists/{suite}/" if suite is not None else ""
    release = _release(reach, top, keys, suite)
    below = f"{component}/binary-{_architecture(release, arch, reach.name)}/" if suite is not None else ""
    for suffix in (".xz", ".gz", ".bz2", ""):
        place = f"{below}Packages{suffix}"
        if release.digests and place not in release.digests:
            continue
        digest = release.digests.get(place)
        packed = _proved(reach, top + place, digest) if digest else reach.read(top + place, MAX_INDEX_BYTES)
        if packed is not None:
            return list(_apt_offers(_lines(_unpacked(place, packed, reach.name), reach.name), names, reach.name))
    raise BuildError(f"{reach.name}: no {below}Packages", hint="check `suite`, `component` and `arch`")


def _release(reach: Reach, top: str, keys: Sequence[bytes], suite: str | None) -> _Release:
    signed = reach.read(f"{top}InRelease", MAX_HEAD_BYTES)
    if signed is not None:
        if keys:
            proof.check(keys, signed, None, BuildError, f"{reach.name}: {top}InRelease")
        try:
            text: bytes | None = proof.clear_text(signed)
        except ValueError as error:
            raise BuildError(f"{reach.name}: {top}InRelease: {error}") from error
    else:
        text = reach.read(f"{top}Release", MAX_HEAD_BYTES)
        if keys:
            what = f"{reach.name}: {top}Release"
            if text is None:
                raise BuildError(f"{what} is not there, and `repository_keys` wants it signed")
            proof.check(keys, _needed(reach, f"{top}Release.gpg"), [text], BuildError, what)
    if text is None:
        if top:
            raise BuildError(f"{reach.name}: no {top}Release", hint="is it an apt repository with that suite?")
        return _Release()
    return _read_release(text, reach.name, suite)


def _read_release(text: bytes, where: str, suite: str | None) -> _Release:
    # Not splitlines(): what it takes for more ends of lines, a signature does not.
    fields = next(paragraphs(text.decode("utf-8", "replace").split("\n")), {})
    called = {fields[name] for name in ("Suite", "Codename") if name in fields}
    if suite is not None and called and suite not in called and suite.partition("/")[0] not in called:
        # One key signs several suites: another one than was asked for is no answer.
        raise BuildError(f"{where}: its Release is of suite {' or '.join(sorted(called))}, not of {suite}",
                         hint="say the suite as its Release calls it")  # fmt: skip
    until = fields.get("Valid-Until")
    if until is not None:
        try:
            over = parsedate_to_datetime(until).astimezone(UTC) < datetime.now(UTC)
        except ValueError:
            over = True
        if over:
            raise BuildError(f"{where}: its Release was valid until {until}",
                             hint="an old copy? ask whoever runs the repository")  # fmt: skip
    digests: dict[str, str] = {}
    for line in fields.get("SHA256", "").split("\n"):
        words = line.split()
        if len(words) == 3:
            digests[words[2]] = _digest("sha256", words[0], where)
    if not digests:
        raise BuildError(f"{where}: its Release holds no SHA256 digests")
    return _Release(fields, digests)


def _architecture(release: _Release, arch: str | None, where: str) -> str:
    known = [each for each in release.fields.get("Architectures", "").split() if each != "all"]
    if arch is not None and arch != "all":
        return arch
    if len(known) != 1:
        raise BuildError(f"{where}: has {', '.join(known) or 'no'} architectures", hint="say which with `arch`")
    return known[0]


def _apt_offers(lines: Iterator[str], names: Collection[str], where: str) -> Iterator[Offered]:
    for fields in paragraphs(lines):
        if fields.get("Package") in names:
            package = Package(fields["Package"], fields.get("Architecture", ""), fields.get("Version", ""))
            size = fields.get("Size", "")
            yield Offered(
                package.checked(where), _inside(fields.get("Filename", ""), where),
                _digest("sha256", fields.get("SHA256", ""), where),
                int(size) if size.isdecimal() and len(size) < 16 else None,
            )  # fmt: skip


def _lines(chunks: Iterator[bytes], where: str) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > _MAX_PIECE_BYTES:
            raise BuildError(f"{where}: an index with a line of more than {_MAX_PIECE_BYTES} bytes")
        for line in whole:
            yield line.decode("utf-8", "replace")
    if rest:
        yield rest.decode("utf-8", "replace")


# --- both ----------------------------------------------------------------------------------------------------------


def offers_of(
    kind: str, reach: Reach, sources: Sequence[Source], keys: Sequence[bytes]
) -> Iterator[tuple[Source, Offered]]:
    """Yield what each source means, all of them of one repository (and suite, component and architecture).

    Raises:
        BuildError: As ``yum``, ``apt`` and ``choose``.
    """
    names = {str(source.name) for source in sources}
    if kind == "rpm":
        offers = yum(reach, names, keys)
    else:
        first = sources[0]
        assert isinstance(first, DebSource)
        offers = apt(reach, names, keys, suite=first.suite, component=first.component, arch=first.arch)
    for source in sources:
        yield source, choose(offers, source, compare_rpm if kind == "rpm" else compare_deb, reach.name)


def matches(data: Iterator[bytes], digest: str) -> bool:
    """Return whether ``data`` has the digest (``sha256:...``)."""
    kind, _, wanted = digest.partition(":")
    hashed = hashlib.new(kind)
    for chunk in data:
        hashed.update(chunk)
    return hashed.hexdigest() == wanted


def _needed(reach: Reach, place: str) -> bytes:
    data = reach.read(place, MAX_HEAD_BYTES)
    if data is None:
        raise BuildError(f"{reach.name}: no {place}", hint="is it a repository of this kind, and signed if it must be?")
    return data


def _proved(reach: Reach, place: str, digest: str) -> bytes:
    data = reach.read(place, MAX_INDEX_BYTES)
    if data is None:
        raise BuildError(f"{reach.name}: no {place}, which its index names", hint="build again: it may be changing now")
    if not matches(iter([data]), digest):
        raise BuildError(f"{reach.name}: {place} is not what its index promises",
                         hint="build again: it may be changing now")  # fmt: skip
    return data


def _digest(kind: str, value: str, where: str) -> str:
    kind, value = kind.lower(), value.strip().lower()
    if kind not in _STRONG:
        raise BuildError(f"{where}: digests of kind {kind!r}, which prove nothing",
                         hint="make its metadata with sha256")  # fmt: skip
    if len(value) != hashlib.new(kind).digest_size * 2 or not all(letter in "0123456789abcdef" for letter in value):
        raise BuildError(f"{where}: {value[:80]!r} is no {kind} digest")
    return f"{kind}:{value}"


def _inside(place: str, where: str) -> str:
    """Return a place that lies in its repository.

    Raises:
        BuildError: It leads out of it.
    """
    plain = unquote(place)
    parts = plain.removeprefix("./").split("/")
    if not place or "://" in plain or "\0" in plain or "?" in plain or "#" in plain or {"", ".", ".."} & set(parts):
        raise BuildError(f"{where}: {place[:200]!r} leads out of the repository")
    return "/".join(parts)


def _unpacked(place: str, packed: bytes, where: str) -> Iterator[bytes]:
    """Yield what a compressed index holds, then an empty piece; at most 4 GiB."""
    left = MAX_INDEX_BYTES * 4
    try:
        with opened(place.rpartition(".")[2], io.BytesIO(packed)) as file:
            while chunk := file.read(_CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise BuildError(f"{where}: {place} is endless")
                yield chunk
    except DAMAGED as error:
        raise BuildError(f"{where}: {place} is damaged: {error}") from error
    yield b""

