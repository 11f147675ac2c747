"""What a type says about itself, and that its options mean something."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from ted.errors import OptionsError, TedError
from ted.options import Known
from ted.plugins import installed
from ted.testing.children import raised_by
from ted.testing.looks import Look
from ted.testing.promise import Scene, Trial, promise, told
from ted.testing.sample import Variant, fields, is_about, is_secret, leaves, occurrences, usual_variants, with_value

_SECRET_NAME = re.compile(r"pass(word|wd|phrase)|secret|token|credential|api_?key|private_?key", re.IGNORECASE)
_NAMES_A_PLACE = re.compile(r"_(file|env)$")
_JUNK: tuple[Any, ...] = (None, "", "\0", -1, 10**30, 1.5, True, [], ["\0"], {}, {"a": 1}, "../../x", "x" * 5000)


@promise("described", "the type and each option are described, and an option nobody knows is refused")
def described(trial: Trial) -> None:
    """Look at the model, and give it words it does not know."""
    scene = trial.scene()
    info = trial.known.info
    if not info.description.strip():
        trial.broken("the type has no description", "TypeInfo(name, description, options): one sentence")
    for name, field in fields(info.options).items():
        if not (field.description or "").strip():
            trial.broken(f"option {name!r} is not described", 'give it Field(..., description="...")')
        word = name.rpartition(".")[2]
        if _SECRET_NAME.search(word) and not _NAMES_A_PLACE.search(word) and field.annotation in (str, str | None):
            trial.broken(f"option {name!r} is plain text", "declare it as pydantic.SecretStr: it travels masked then")
    known = installed()
    for place in ("", *_inner(scene.options)):
        odd = with_value(scene.options, f"{place}no_such_option", 1)
        try:
            known.validate_options(trial.type, odd)
        except OptionsError:
            continue
        trial.broken(f"an unknown option {place + 'no_such_option'!r} is taken",
                     'forbid unknown fields: model_config = ConfigDict(extra="forbid")')  # fmt: skip


def _inner(options: Mapping[str, Any]) -> list[str]:
    """Return the places of mappings within the options that a model stands for: those in lists."""
    return [
        f"{name}.0." for name, value in options.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    ]  # fmt: skip


# --- options ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shown:
    """What options led to, all of it comparable."""

    content: object
    error: str
    files: dict[str, Look]
    outcome: object
    after_drift: dict[str, Look]


@promise("options", "each declared option has an effect, and a value that cannot be is refused in plain words")
def options(trial: Trial) -> None:
    """Build and extract with other values; each must show."""
    _refuse_junk(trial)
    scene = trial.scene()
    model = trial.known.info.options
    shown: set[str] = set()
    silent: dict[str, list[Variant]] = {}
    plain: list[tuple[str, Variant]] = []
    staged: list[tuple[str, int]] = []
    for leaf, info in leaves(model).items():
        if leaf in scene.sample.inert or (_needs_root(info) and os.geteuid() != 0):
            continue
        variants = _variants(scene, leaf)
        if not variants:
            trial.broken(
                f"nothing shows that option {leaf!r} has an effect",
                f"name another value of it in the sample, Variant({leaf!r}, ...), or say why none shows: inert",
            )
        plain += [(leaf, each) for each in variants if _is_plain(each)]
        staged += [(leaf, number) for number, each in enumerate(variants) if not _is_plain(each)]
    _refuse_strangers(trial, scene)
    pairs = [(_Baseline(scene), leaf, variant) for leaf, variant in plain[:1]]
    pairs += [(pairs[0][0], leaf, variant) for leaf, variant in plain[1:]]
    for baseline, leaf, variant in (*pairs, *(_staged(trial, leaf, number) for leaf, number in staged)):
        if baseline.shows(variant):
            shown.add(leaf)
        else:
            silent.setdefault(leaf, []).append(variant)
    for leaf, variants in silent.items():
        if leaf in shown and not any(is_about(leaf, each.option) for each in scene.sample.variants):
            continue
        values = " or ".join("none" if each.value is Variant.LEFT_OUT else f"{each.value!r:.60}" for each in variants)
        trial.broken(
            f"option {leaf!r} is ignored: with {values} everything was as with what the sample says",
            "if it shows only under conditions, name them: Variant(..., given=..., sources=...); or say why not: inert",
        )


def _staged(trial: Trial, leaf: str, number: int) -> tuple[_Baseline, str, Variant]:
    """Return what a variant that needs conditions is compared with: on a bench of its own, where they are met."""
    scene = trial.scene()
    variant = _variants(scene, leaf)[number]
    if variant.sources is not None:
        variant.sources()
        scene.bench.settle()
    return _Baseline(scene, variant), leaf, variant


def _variants(scene: Scene, leaf: str) -> list[Variant]:
    """Return the variants of an option: those the sample names, or else the usual ones."""
    info = leaves(scene.trial.known.info.options)[leaf]
    named = [each for each in scene.sample.variants if is_about(leaf, each.option)]
    return named or usual_variants(scene.options, leaf, info, scene.bench)


def _needs_root(info: FieldInfo) -> bool:
    return any(isinstance(each, Known) and each.what in ("owner", "group") for each in info.metadata)


def _is_plain(variant: Variant) -> bool:
    return variant.given is None and variant.sources is None


class _Baseline:
    """What the sample leads to as it is, to compare what variants lead to with."""

    def __init__(self, scene: Scene, variant: Variant | None = None) -> None:
        self._scene = scene
        self._given = variant.given if variant is not None else None
        self._shown = self._run(scene.options)

    def shows(self, variant: Variant) -> bool:
        """Return whether anything is different with a variant."""
        changed = with_value(self._scene.options, variant.option, variant.value)
        return self._run(changed) != self._shown

    def _run(self, options: Mapping[str, Any]) -> _Shown:
        scene = self._scene
        distributor = scene.new_distributor()
        try:
            built = distributor.build(options)
        except (TedError, OSError) as error:
            return _Shown(None, _words(error), {}, None, {})
        content = [entry for path, entry in distributor.entries(built.revision).items() if path != b"data"]
        subscriber = scene.new_subscriber(distributor)
        start = _still(scene)
        if self._given is not None:
            self._given()
        try:
            try:
                result = subscriber.extract()
            except TedError as error:
                return _Shown(content, _words(error), _still(scene), _outcome(scene), {})
            files, outcome = _still(scene), _outcome(scene)
            said = f"{result.state} {result.actions} {result.things} {built.warnings} {result.warnings}"
            return _Shown(content, said, files, outcome, _after_drift(scene, subscriber, start))
        finally:
            if subscriber.installed:
                subscriber.rollback()


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _still(scene: Scene) -> dict[str, Look]:
    """Return the playground as it is; what has a time of now has none, for it would differ each time."""
    began_ns = scene.bench.began_ns
    return {
        path: look._replace(mtime_ns=0) if look.mtime_ns >= began_ns else look
        for path, look in scene.bench.look().items() if not scene.is_volatile(path)
    }  # fmt: skip


def _outcome(scene: Scene) -> object:
    return scene.sample.outcome() if scene.sample.outcome is not None else None


def _after_drift(scene: Scene, subscriber: Any, start: Mapping[str, Look]) -> dict[str, Look]:
    """Return what a second extraction makes of a file that somebody changed."""
    files = [
        path for path, look in _still(scene).items()
        if look.kind == "file" and start.get(path) != look and scene.is_target(path) and not scene.is_volatile(path)
    ]  # fmt: skip
    if not files:
        return {}
    with open(files[0], "ab") as file:
        file.write(b"drift")
    try:
        subscriber.extract()
    except TedError:
        return {}
    return _still(scene)


def _refuse_junk(trial: Trial) -> None:
    """Give each option values of every kind: they are taken or refused, and nothing else happens."""
    scene = trial.scene()
    known = installed()
    places = [place for leaf in leaves(trial.known.info.options) for place in occurrences(scene.options, leaf)]
    for option in dict.fromkeys([*places, *_places(scene.options)]):
        for junk in _JUNK:
            try:
                known.validate_options(trial.type, with_value(scene.options, option, junk))
            except OptionsError:
                continue
            except Exception as error:  # noqa: BLE001 -- whatever it is, it is what is looked for
                trial.broken(
                    f"option {option!r} with the value {junk!r:.40} is not refused in plain words but fails",
                    *told(raised_by(error)), "validators raise ValueError with a sentence",
                )  # fmt: skip


def _places(options: Any, above: str = "") -> Sequence[str]:
    found = []
    items = options.items() if isinstance(options, dict) else enumerate(options) if isinstance(options, list) else ()
    for name, value in items:
        found += [f"{above}{name}", *_places(value, f"{above}{name}.")]
    return found


def _refuse_strangers(trial: Trial, scene: Scene) -> None:
    """Say that the sample names options that there are not."""
    known = leaves(trial.known.info.options)
    for name in scene.sample.inert:
        if name not in known:
            trial.broken(f"the sample says that {name!r} is inert, and there is no such option",
                         f"there are: {', '.join(sorted(known))}")  # fmt: skip
    for variant in scene.sample.variants:
        if not any(is_about(leaf, variant.option) for leaf in known):
            trial.broken(f"the sample has a variant of {variant.option!r}, and there is no such option",
                         f"there are: {', '.join(sorted(known))}")  # fmt: skip
    for leaf, info in known.items():
        if is_secret(info) and leaf in scene.sample.inert:
            trial.broken(f"the secret {leaf!r} cannot be inert", "a wrong one must make the build fail")
