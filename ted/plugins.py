"""Find plugins, and call the one that a distribution's type names.

Rules:
 * Plugins are what the entry-point group ``ted`` names; the built-in types come the same way.
 * ted's own plugins bring the type of their entry point's name and nothing else: each is loaded when its type is
   asked for. Others may bring wrappers and commands, so they are loaded at once.
 * A plugin that cannot be loaded, or that has a hook nobody knows, is set aside with its cause: other types go on
   working.
 * Two plugins of one type: neither is used, for nobody could say which.
 * Only the plugin of the type is called; wrappers of others stand around it.
 * What a plugin raises that is none of ted's errors becomes a ``PluginError`` that names the plugin.
"""

from __future__ import annotations

import difflib
import functools
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pluggy
from pydantic import BaseModel, ValidationError

from ted import hookspecs
from ted.errors import OptionsError, PluginError, TedError
from ted.hookspecs import Drift, InstallContext, TypeInfo

if TYPE_CHECKING:
    import click

    from ted.content.builder import RevisionBuilder

GROUP = "ted"
OWN = "ted_plugins."
"""Where ted's own plugins lie."""
DATA = "data"
"""Where a type's own tree lies in the content tree."""

_MOST_WARNINGS = 100
_LATER = frozenset({"ted_plan", "ted_carrier", "ted_notify", "ted_policy_kind", "ted_package_step"})
"""Hooks that a later ted calls: a plugin may have them already."""

Progress = Callable[[int, int | None, str], None]
"""Is told of bytes done, bytes in all (``None``: not known), and what it is about."""

log = logging.getLogger("ted.plugins")


@dataclass(frozen=True)
class KnownType:
    """A distribution type known here: what it says about itself, and the plugin that brings it."""

    info: TypeInfo
    plugin: object
    package: str


@dataclass(frozen=True)
class Broken:
    """A plugin that cannot be used: its entry point, the package that brings it, and why."""

    name: str
    package: str
    cause: str


class Plugins:
    """The plugins of this process.

    Args:
        found: What to load; the entry points of the group ``ted`` when ``None``.
    """

    def __init__(self, found: Sequence[EntryPoint] | None = None) -> None:
        self._manager = pluggy.PluginManager("ted")
        self._manager.add_hookspecs(hookspecs.Hooks)
        self._broken: list[Broken] = []
        self._waiting: dict[str, EntryPoint] = {}
        self._loading = threading.RLock()
        self._types: dict[str, KnownType] = {}
        self._twice: dict[str, str] = {}
        for entry_point in sorted(found if found is not None else entry_points(group=GROUP), key=lambda e: e.name):
            if entry_point.module.startswith(OWN) and entry_point.name not in self._waiting:
                self._waiting[entry_point.name] = entry_point
            else:
                self._load(entry_point)

    def _load_waiting(self, *names: str) -> None:
        with self._loading:  # who asks meanwhile, in another thread, waits
            for name in names or tuple(self._waiting):
                if (entry_point := self._waiting.pop(name, None)) is not None:
                    self._load(entry_point)

    def _load(self, entry_point: EntryPoint) -> None:
        package = entry_point.dist.name if entry_point.dist is not None else entry_point.module
        try:
            self.register(entry_point.load(), entry_point.name, package)
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- a stranger's module must not break other types
            cause = f"{type(error).__name__}: {error}"
            if isinstance(error, TedError):
                cause = f"{error.message} ({error.hint})" if error.hint else error.message
            self._broken.append(Broken(entry_point.name, package, cause))
            log.warning("plugin %s of %s cannot be used: %s", entry_point.name, package, cause)

    def register(self, plugin: object, name: str, package: str) -> None:
        """Take a plugin in.

        Raises:
            PluginError: It has a hook that nobody knows, or its type is taken.
        """
        self._refuse_unknown_hooks(plugin, package)
        unique = f"{name} of {package}"  # a stranger's plugin may have the name of another's
        try:
            self._manager.register(plugin, name=unique)
        except (ValueError, pluggy.PluginValidationError) as error:
            if isinstance(error, pluggy.PluginValidationError) and self._manager.has_plugin(unique):
                self._manager.unregister(name=unique)
            raise PluginError(f"{package}: {error}", hint="see docs/plugins.md") from error
        try:
            self._take_type(plugin, package)
        except Exception:
            self._manager.unregister(plugin)
            raise

    def _refuse_unknown_hooks(self, plugin: object, package: str) -> None:
        known = {name for name in vars(hookspecs.Hooks) if name.startswith("ted_")} | _LATER
        for name in dir(plugin):
            options = self._manager.parse_hookimpl_opts(plugin, name)
            if options is None:
                continue
            hook = options["specname"] or name
            if hook not in known:
                close = difflib.get_close_matches(hook, known, n=1)
                raise PluginError(
                    f"{package}: has a hook {hook!r} that ted does not call",
                    hint=f"did it mean {close[0]!r}?" if close else "see docs/plugins.md",
                )

    def _take_type(self, plugin: object, package: str) -> None:
        answers = self._only(plugin, "ted_type")() if self._has(plugin, "ted_type") else []
        if not answers:
            return
        info = answers[0]
        if not isinstance(info, TypeInfo):
            raise PluginError(f"{package}: ted_type gave {type(info).__name__}, not TypeInfo")
        if not (isinstance(info.options, type) and issubclass(info.options, BaseModel)):
            raise PluginError(f"{package}: the options of type {info.name!r} are no pydantic model")
        missing = [hook for hook in ("ted_build", "ted_extract") if not self._has(plugin, hook)]
        if missing:
            raise PluginError(f"{package}: type {info.name!r} has no {' and no '.join(missing)}")
        other = self._types.pop(info.name, None)
        if other is not None or info.name in self._twice:
            packages = self._twice.get(info.name) or (other.package if other else "")
            self._twice[info.name] = f"{packages}, {package}"
        else:
            self._types[info.name] = KnownType(info, plugin, package)

    def _has(self, plugin: object, hook: str) -> bool:
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        return any(each.plugin is plugin and not _wraps(each) for each in implementations)

    def _only(self, plugin: object, hook: str) -> pluggy.HookCaller:
        """Return a caller of that plugin's hook, with the wrappers of others around it."""
        others = {
            each.plugin for each in getattr(self._manager.hook, hook).get_hookimpls()
            if each.plugin is not plugin and not _wraps(each)
        }  # fmt: skip
        return self._manager.subset_hook_caller(hook, others)

    # -- what is known

    @property
    def broken(self) -> list[Broken]:
        """The plugins that cannot be used."""
        self._load_waiting()
        return self._broken

    def types(self) -> list[KnownType]:
        """Return the types known here, sorted by name."""
        self._load_waiting()
        return [self._types[name] for name in sorted(self._types)]

    def type_named(self, name: str) -> KnownType:
        """Return the type of that name.

        Raises:
            PluginError: It is not installed here, its plugin is broken, or two packages bring it.
        """
        self._load_waiting(name)
        if name in self._types:
            return self._types[name]
        self._load_waiting()
        if name in self._twice:
            raise PluginError(
                f"type {name!r} is brought by more than one package: {self._twice[name]}", hint="uninstall one of them"
            )
        for broken in self.broken:
            if broken.name == name:
                raise PluginError(
                    f"type {name!r} of {broken.package} cannot be used: {broken.cause}",
                    hint=f"mend or upgrade {broken.package}; `ted types` shows what is known here",
                )
        close = difflib.get_close_matches(name, self._types, n=1)
        raise PluginError(
            f"no distribution type {name!r} is installed here",
            hint=(f"did you mean {close[0]!r}? Else " if close else "")
            + "install the package that brings it beside ted (ted_type_packages for the playbooks);"
            f" known here: {', '.join(sorted(self._types)) or 'none'}",
        )

    def validate_options(self, type_name: str, options: Mapping[str, Any]) -> BaseModel:
        """Return ``options`` as the model of the type.

        Raises:
            PluginError: As ``type_named``.
            OptionsError: They are not valid; every problem is named with its place.
        """
        model = self.type_named(type_name).info.options
        try:
            return model.model_validate(dict(options))
        except ValidationError as error:
            problem = _options_error(type_name, model, error)
        # Not within the handler: pydantic's own text quotes what was given, a password perhaps, and must not hang on.
        raise problem

    def commands(self) -> dict[str, click.Command]:
        """Return the commands plugins bring, by name; what cannot be used is left out."""
        found: dict[str, click.Command] = {}
        self._load_waiting()
        for implementation in self._manager.hook.ted_cli_command.get_hookimpls():
            try:
                command: Any = implementation.function()
                found.setdefault(str(command.name), command)
            except Exception as error:  # noqa: BLE001 -- a stranger's command must not break ted's own
                log.warning("command of plugin %s cannot be used: %s", implementation.plugin_name, error)
        return found

    # -- calling the plugin of a type

    def gather(
        self,
        type_name: str,
        builder: RevisionBuilder,
        options: BaseModel,
        scratch: Path,
        *,
        force: bool = False,
        progress: Progress | None = None,
    ) -> list[str]:
        """Let the type add its content to ``builder``.

        Args:
            type_name: The distribution's type.
            builder: What it is added to, below ``data/``.
            options: What ``validate_options`` returned.
            scratch: Directory in which the distribution gets a directory of its own that stays from build to build.
            force: A new revision is wanted in any case: the former one is not told of.
            progress: Told of long downloads.

        Returns:
            What the type warned about.

        Raises:
            PluginError: The type is not known or not available here, or its plugin failed.
            TedError: As the plugin says.
        """
        known = self.type_named(type_name)
        reason = (known.info.build_available or known.info.available)()
        if reason is not None:
            raise PluginError(f"type {type_name!r} cannot work on this machine: {reason}")
        name = builder.directory.name
        with collected_warnings(f"ted.build.{name}") as (logger, warnings):
            context = _Building(
                builder, name, options, scratch / f"{name}.scratch", logger, force=force, progress=progress
            )
            with guarded(known, "ted_build"):
                self._only(known.plugin, "ted_build")(build=context)
        return warnings

    def extract(self, type_name: str, install: InstallContext) -> None:
        """Let the type plan what makes this machine have the revision.

        Raises:
            PluginError: The type is not known here, or its plugin failed.
            TedError: As the plugin says.
        """
        known = self.type_named(type_name)
        with guarded(known, "ted_extract"):
            self._only(known.plugin, "ted_extract")(install=install)

    def verify(self, type_name: str, install: InstallContext) -> list[Drift]:
        """Return the drift that the type itself finds; none when it has no such hook."""
        known = self.type_named(type_name)
        if not self._has(known.plugin, "ted_verify"):
            return []
        with guarded(known, "ted_verify"):
            return [drift for answer in self._only(known.plugin, "ted_verify")(install=install) for drift in answer]
        return []

    def has_rollback(self, type_name: str) -> bool:
        """Return whether the type wants to be called after a rollback; False when it is not known here."""
        self._load_waiting(type_name)
        known = self._types.get(type_name)
        return known is not None and self._has(known.plugin, "ted_rollback")

    def rollback(self, type_name: str, install: InstallContext) -> None:
        """Let the type do what is left to do after its transaction was undone."""
        known = self.type_named(type_name)
        with guarded(known, "ted_rollback"):
            self._only(known.plugin, "ted_rollback")(install=install)

    def sample(self, type_name: str, bench: object) -> Any:
        """Return the sample that the type brings for the contract suite, ``None`` when it brings none."""
        known = self.type_named(type_name)
        if not self._has(known.plugin, "ted_sample"):
            return None
        with guarded(known, "ted_sample"):
            return next(iter(self._only(known.plugin, "ted_sample")(bench=bench)), None)


def _wraps(implementation: pluggy.HookImpl) -> bool:
    return bool(implementation.wrapper or implementation.hookwrapper)


@contextmanager
def guarded(known: KnownType, hook: str) -> Iterator[None]:
    """Translate what a plugin raises, here and nowhere else."""
    try:
        yield
    except TedError:
        raise
    except Exception as error:
        raise PluginError(
            f"type {known.info.name!r} of {known.package} failed in {hook}{_line_of(error)}: "
            f"{type(error).__name__}: {error}",
            hint=f"this is a fault of {known.package}; `ted --verbose` shows its traceback",
        ) from error


def _line_of(error: Exception) -> str:
    """Return where a plugin's own code was when it raised, `` (file.py:12)``: the rest is ted's or a library's."""
    found: tuple[str, int] | None = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        is_the_plugins = package not in {"ted", "pluggy"} and package not in sys.stdlib_module_names
        if is_the_plugins and (found is None or frame.f_code.co_filename == found[0]):
            found = frame.f_code.co_filename, line
    return f" ({Path(found[0]).name}:{found[1]})" if found else ""


class _Collector(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages
        self._more = 0

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._messages) < _MOST_WARNINGS:
            self._messages.append(record.getMessage())
        else:
            self._more += 1
            self._messages[_MOST_WARNINGS:] = [f"and {self._more} more warnings"]


@contextmanager
def collected_warnings(name: str) -> Iterator[tuple[logging.Logger, list[str]]]:
    """Yield a logger, and the list that holds its warnings at any time: the first hundred, and how many more."""
    logger = logging.getLogger(name)
    messages: list[str] = []
    handler = _Collector(messages)
    logger.addHandler(handler)
    try:
        yield logger, messages
    finally:
        logger.removeHandler(handler)


class _Building:
    """The ``BuildContext``: everything goes below ``data/``."""

    def __init__(
        self,
        builder: RevisionBuilder,
        distribution: str,
        options: BaseModel,
        scratch: Path,
        logger: logging.Logger,
        *,
        force: bool,
        progress: Progress | None,
    ) -> None:
        self._force = force
        self._builder = builder
        self._progress = progress
        self._scratch = scratch
        self.distribution = distribution
        self.options: Any = options
        self.log = logger

    @property
    def scratch(self) -> Path:
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._scratch

    @property
    def former_options(self) -> Mapping[str, Any] | None:
        return None if self._force else self._builder.former_options()

    def keep_former(self) -> None:
        self._builder.keep_former()

    def progress(self, done_bytes: int, total_bytes: int | None, what: str) -> None:
        if self._progress is not None:
            self._progress(done_bytes, total_bytes, what)

    def add_tree(
        self,
        source: str | Path,
        at: str,
        *,
        exclude: Sequence[str] = (),
        contents_only: bool = False,
        outside_links: Literal["refuse", "keep"] = "refuse",
    ) -> None:
        self._builder.add_tree(
            Path(source), _below_data(at), exclude=exclude, contents_only=contents_only, outside_links=outside_links
        )

    def add_file(self, path: str, source: str | Path) -> None:
        self._builder.add_file(_below_data(path), Path(source))

    def add_bytes(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self._builder.add_bytes(_below_data(path), data, mode)


def _below_data(path: str) -> str:
    return f"{DATA}/{path}" if path else DATA


def _options_error(type_name: str, model: type[BaseModel], error: ValidationError) -> OptionsError:
    problems = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"]) or "options"
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(item["loc"][-1]), _field_names(model), n=1)
            text = "is no option of this type" + (f"; did you mean {close[0]!r}?" if close else "")
        problems.append(f"{place}: {text}")
    return OptionsError(
        f"options of type {type_name!r}: " + "; ".join(problems),
        hint=f"`ted types {type_name}` lists the options",
    )


def _field_names(model: type[BaseModel]) -> set[str]:
    names = set(model.model_fields)
    for definition in model.model_json_schema().get("$defs", {}).values():
        names |= set(definition.get("properties", {}))
    return names


# --- the plugins that are installed --------------------------------------------------------------------------------


@functools.cache
def installed() -> Plugins:
    """Return the plugins of this process, loaded when first asked for."""
    return Plugins()


def types() -> list[KnownType]:
    """Return the types known here, sorted by name."""
    return installed().types()


def type_named(name: str) -> KnownType:
    """Return the type of that name; see ``Plugins.type_named``."""
    return installed().type_named(name)


def validate_options(type_name: str, options: Mapping[str, Any]) -> BaseModel:
    """Return ``options`` as the model of the type; see ``Plugins.validate_options``."""
    return installed().validate_options(type_name, options)


def gather(
    type_name: str, builder: RevisionBuilder, options: BaseModel, scratch: Path, *, force: bool = False,
    progress: Progress | None = None,
) -> list[str]:  # fmt: skip
    """Let the type add its content to ``builder`` and return its warnings; see ``Plugins.gather``."""
    return installed().gather(type_name, builder, options, scratch, force=force, progress=progress)
