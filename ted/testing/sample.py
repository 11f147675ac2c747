"""What an author says so that a type can be put to the test: a small distribution of it, and how it changes.

A type's plugin says it in the optional hook ``ted_sample(bench)``. Where it has none, a sample is derived from the
options model, as far as the names of its fields tell.
"""

from __future__ import annotations

import copy
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo

from ted.options import Known

if TYPE_CHECKING:
    from ted.testing.bench import Bench


@dataclass(frozen=True)
class Variant:
    """Another value of one option, which must show.

    The suite builds and extracts the sample as it is and with this value; something must differ: the content tree, the
    state of the machine, what a drift leads to, or the error.

    .. versionadded:: 0.1
    """

    option: str
    """Where it stands in the options, as an inventory spells it: ``mode``, ``targets.0.mode``."""
    value: Any
    """The other value; ``Variant.LEFT_OUT`` takes the option out."""
    given: Callable[[], object] | None = None
    """What must be so for it to show (a file that is newer, say): called before the extractions that are compared."""
    sources: Callable[[], object] | None = None
    """The same before the builds: what to do to the sources (make one empty, say)."""

    LEFT_OUT: typing.ClassVar[Any] = object()


@dataclass
class Sample:
    """A small distribution of a type.

    .. versionadded:: 0.1
    """

    options: Mapping[str, Any]
    """What an inventory would write below ``options``. Secret options hold ``bench.secret``."""
    change: Callable[[], object]
    """Change the sources a little, as they change from revision to revision, and leave most of them; may return
    other options (a mapping) instead, for a type whose content is in its options."""
    targets: Sequence[Path] = ()
    """Files and directories that an extraction may change; ``bench.target`` when empty."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """The Subscriber's own variables: what ``%NAME%`` stands for; ``DEST_VOLUME`` is ``bench.target``."""
    mirrors: Mapping[Path, Path] = field(default_factory=dict)
    """Directory of a target -> directory of the sources that it must equal, byte and attribute."""
    outcome: Callable[[], object] | None = None
    """State of the machine beyond files: what ``rpm -qa`` says, say. Two values are compared with ``==``."""
    variants: Sequence[Variant] = ()
    """Other values of options, one at least for each that is not inert. Switches and choices need none."""
    inert: Mapping[str, str] = field(default_factory=dict)
    """Options whose effect does not show in a test, and why: ``{"retries": "shows only in time"}``."""
    vanish: Callable[[], None] | None = None
    """Make the sources unreachable; ``None``: everything in ``bench.sources`` goes, and where nothing is there, the
    type has no sources that could."""
    grow: Callable[[int], object] | None = None
    """Make the sources hold about so many bytes in one file; may return other options (a mapping). ``None``: they
    cannot grow."""
    reads: str | None = None
    """Why check mode must read content, where it must: a package manager tests the package itself, say."""
    volatile: Sequence[str] = ()
    """Patterns of paths, absolute, whose bytes say nothing: a database that ``outcome`` reads, a log."""


NO_SAMPLE = (
    "no sample of it can be derived from its options: implement the hook `ted_sample(bench)` in its plugin and return "
    "a ted.testing.Sample; see docs/testing-a-type.md#the-sample"
)


# --- options, by their names ---------------------------------------------------------------------------------------


def leaves(model: type[BaseModel], above: str = "") -> dict[str, FieldInfo]:
    """Return every option by its dotted name as inventories spell it, lists' numbers left out."""
    found: dict[str, FieldInfo] = {}
    for name, info in model.model_fields.items():
        whole = f"{above}{info.alias or name}"
        inner = models_in(info.annotation)
        if inner and above.count(".") < 5:
            for each in inner:
                found |= leaves(each, f"{whole}.")
        else:
            found[whole] = info
    return found


def fields(model: type[BaseModel], above: str = "") -> dict[str, FieldInfo]:
    """Return every field of a model, those that hold other models as well."""
    found: dict[str, FieldInfo] = {}
    for name, info in model.model_fields.items():
        whole = f"{above}{info.alias or name}"
        found[whole] = info
        if above.count(".") < 5:
            for each in models_in(info.annotation):
                found |= fields(each, f"{whole}.")
    return found


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that an annotation holds: ``list[Target]``, ``Target | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in models_in(part)]


def holds(annotation: Any, *wanted: type) -> bool:
    """Return whether an annotation is or holds one of some classes."""
    if isinstance(annotation, type):
        return issubclass(annotation, wanted)
    return any(holds(part, *wanted) for part in typing.get_args(annotation))


def is_secret(info: FieldInfo) -> bool:
    """Return whether an option is declared as a secret."""
    return holds(info.annotation, SecretStr, SecretBytes)


def is_about(leaf: str, option: str) -> bool:
    """Return whether a variant's ``option`` (with numbers, names in mappings) means the leaf."""
    named = [part for part in option.split(".") if not part.isdigit()]
    parts = iter(named)
    return leaf.rpartition(".")[2] == named[-1] and all(part in parts for part in leaf.split("."))


def with_value(options: Mapping[str, Any], option: str, value: Any) -> dict[str, Any]:
    """Return a copy of ``options`` with another value at a dotted place."""
    changed: Any = copy.deepcopy(dict(options))
    place = changed
    *way, last = [int(part) if part.isdigit() else part for part in option.split(".")]
    for number, part in enumerate(way):
        if isinstance(place, dict) and part not in place:
            place[part] = [] if number + 1 < len(way) and isinstance(way[number + 1], int) else {}
        place = place[part]
    if value is Variant.LEFT_OUT:
        del place[last]
    else:
        place[last] = value
    return typing.cast("dict[str, Any]", changed)


def occurrences(options: Any, leaf: str) -> list[str]:
    """Return the places in ``options`` at which an option could stand: ``targets.mode`` -> ``targets.0.mode``."""
    found = [("", options)]
    *way, last = leaf.split(".")
    for part in way:
        below = [(f"{place}{part}.", each[part]) for place, each in found if isinstance(each, dict) and part in each]
        found = []
        for place, each in below:
            if isinstance(each, list):
                found += [(f"{place}{number}.", item) for number, item in enumerate(each)]
            else:
                found.append((place, each))
    return [f"{place}{last}" for place, each in found if isinstance(each, dict)]


def usual_variants(options: Mapping[str, Any], leaf: str, info: FieldInfo, bench: Bench) -> list[Variant]:
    """Return the variants of an option that needs nobody to name them.

    The other side of a switch, other choices, and what ``ted.options.Target`` brings.
    """
    places = occurrences(options, leaf)
    if not places:
        return []
    place = places[0]
    now = _value_at(options, place, info)
    for known in info.metadata:
        if isinstance(known, Known):
            return _of_target(options, place, known.what, now, bench)
    if is_secret(info):
        return [Variant(place, "not-the-secret")] if now is not None else []
    if info.annotation is bool:
        return [Variant(place, not now)]
    return [Variant(place, choice) for choice in _choices(info.annotation) if choice != now]


def _of_target(options: Mapping[str, Any], place: str, what: str, now: Any, bench: Bench) -> list[Variant]:
    """Return what makes a field of the ready target show."""
    if what == "path":
        return [Variant(place, f"{bench.target}/another-place")]
    if what == "mode":
        return [Variant(place, "0600" if now in (None, "0640") else "0640")]
    if what in ("owner", "group"):
        return [Variant(place, 1 if now != 1 else 2)] if os.geteuid() == 0 else []
    above = place.rpartition(".")[0]
    held = _value_at(options, f"{above}.path" if above else "path", FieldInfo(default="%DEST_VOLUME%"))
    root = Path(str(held).replace("%DEST_VOLUME%", str(bench.target)))
    return [Variant(place, not now, given=lambda: bench.write(root / "stranger.txt", b"somebody else's\n"))]


def _value_at(options: Any, place: str, info: FieldInfo) -> Any:
    for part in place.split("."):
        try:
            options = options[int(part)] if part.isdigit() else options[part]
        except (KeyError, IndexError):
            return None if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
    return options


def _choices(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is Literal:
        return list(typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [choice for part in typing.get_args(annotation) for choice in _choices(part)]
    return []


# --- a sample for those who brought none ---------------------------------------------------------------------------

_SOURCE = re.compile(r"(^|_)(from|sources?|src|inputs?)$")
_TARGET = re.compile(r"(^|_)(path|targets?|to|dest(ination)?|directory|dir|folder|root)$")


class NotDerivableError(Exception):
    """No sample can be derived; says of which option."""


def derived(model: type[BaseModel], bench: Bench) -> Sample:
    """Return a sample of a type that brings none, guessed from the names of its options.

    Raises:
        NotDerivableError: The names do not tell.
    """
    made = _Derived(bench)
    options = made.options(model)
    sources, target = bench.sources, bench.target
    if made.reads:
        made.fill(sources / "one")

    def change() -> Mapping[str, Any] | None:
        if not made.reads:
            return with_value(options, made.texts[0], "another text")
        (sources / "one" / "changes.txt").write_text("of the second revision\n")
        (sources / "one" / "comes.txt").write_text("new\n")
        return None

    def grow(size: int) -> None:
        bench.fill(sources / "one" / "bulk.bin", size)

    if not made.reads and not made.texts:
        raise NotDerivableError
    return Sample(options, change, [target], variants=made.variants, grow=grow if made.reads else None)


@dataclass
class _Derived:
    bench: Bench
    reads: bool = False
    texts: list[str] = field(default_factory=list)
    variants: list[Variant] = field(default_factory=list)

    def options(self, model: type[BaseModel], above: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, info in model.model_fields.items():
            key = info.alias or name
            value = self._value(key, f"{above}{key}", info)
            if value is not None:
                found[key] = value
        return found

    def _value(self, key: str, place: str, info: FieldInfo) -> Any:
        many = holds(typing.get_origin(info.annotation) or object, list)
        inner = models_in(info.annotation)
        if inner:
            return [self.options(inner[0], f"{place}.0.")] if many else self.options(inner[0], f"{place}.")
        if is_secret(info):
            return self.bench.secret
        if any(isinstance(each, Known) and each.what != "path" for each in info.metadata):
            return None
        if _SOURCE.search(key) and holds(info.annotation, str, Path):
            self.reads = True
            self._other(f"{place}.0" if many else place)
            return [f"{self.bench.sources}/one/"] if many else f"{self.bench.sources}/one"
        if _TARGET.search(key) and holds(info.annotation, str, Path) and not many:
            self.variants.append(Variant(place, f"{self.bench.target}/other"))
            return str(self.bench.target / "app")
        return self._plain(place, info)

    def _plain(self, place: str, info: FieldInfo) -> Any:
        text = info.annotation is str or (not info.is_required() and holds(info.annotation, str))
        if text and not _choices(info.annotation):
            self.texts.insert(0 if info.is_required() else len(self.texts), place)
            self.variants.append(Variant(place, "another text"))
            return "some text" if info.is_required() else None
        if not info.is_required():
            if info.annotation is int:
                self.variants.append(Variant(place, int(info.default or 0) + 1))
            return None
        if info.annotation is bool:
            return True
        if info.annotation in (int, float):
            self.variants.append(Variant(place, 2))
            return 1
        if choices := _choices(info.annotation):
            return choices[0]
        raise NotDerivableError(place)

    def _other(self, place: str) -> None:
        other = self.bench.sources / "other"
        self.bench.write(other / "other.txt", b"another source\n")
        self.variants.append(Variant(place, f"{other}/"))

    def fill(self, source: Path) -> None:
        """Put a little of everything there."""
        bench = self.bench
        bench.write(source / "stays.txt", b"the same in every revision\n")
        bench.write(source / "changes.txt", b"of the first revision\n", mode=0o640)
        bench.write(source / "bin" / "tool", b"#!/bin/sh\necho tool\n", mode=0o755)
