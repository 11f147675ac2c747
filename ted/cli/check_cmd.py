"""``ted check``: everything that is wrong with an inventory, or with this node's configuration."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import click
from pydantic import BaseModel

from ted.cli.common import inventory_of, no_inventory
from ted.cli.main import Settings, emit
from ted.errors import ConfigError, InventoryError, OptionsError, PluginError, UnknownNameError
from ted.options import expanded_texts
from ted.topology.inventory import examine_source
from ted.topology.model import Distribution, Problem, Topology
from ted.topology.parse import Examination
from ted.topology.routing import routing_warnings

_HOSTS_SHOWN = 4


@click.command("check")
@click.pass_obj
def command(settings: Settings) -> None:
    """Check an inventory: every problem and every doubt, with host and variable.

    This node's own configuration is checked too, and without an inventory (--inventory, or topology.json of a
    Distributor) alone. Ends with exit code 11 when the inventory has problems.
    """
    source = inventory_of(settings)
    if source is None:
        _check_node(settings)
        return
    found = examine_source(source)
    problems = [*found.problems]
    warnings = [*found.warnings]
    for doubtful, problem in _options(found.topology):
        (warnings if doubtful else problems).append(problem)
    problems += _variables(found.topology)
    warnings += _undefined(found.topology)
    if not found.problems:  # routes of a broken inventory would only repeat what is wrong with it
        warnings += routing_warnings(found.topology)
    problems += _own_settings(settings)
    emit(settings, _data(problems, warnings), _text(found, problems, warnings))
    if problems:
        sys.exit(InventoryError.exit_code)


def _check_node(settings: Settings) -> None:
    from ted.config import FILE_NAME, NodeConfig

    if not (settings.config / FILE_NAME).exists():
        raise no_inventory(settings)
    config = NodeConfig.load(settings.config)
    emit(settings, _data([], []), f"{settings.config / FILE_NAME}: node {config.node}, no problems")


def _own_settings(settings: Settings) -> Iterator[Problem]:
    """Yield what is wrong with this node's own configuration, where this is a node."""
    from ted.config import FILE_NAME, NodeConfig

    if (settings.config / FILE_NAME).exists():
        try:
            NodeConfig.load(settings.config)
        except ConfigError as error:
            yield Problem(None, None, error.message, error.hint)


def _data(problems: Iterable[Problem], warnings: Iterable[Problem]) -> dict[str, Any]:
    found = [problem.to_dict() for problem in problems]
    return {"ok": not found, "problems": found, "warnings": [warning.to_dict() for warning in warnings]}


# Options of distributions: the types judge them, the topology does not know any type.


def _options(topology: Topology) -> Iterator[tuple[bool, Problem]]:
    """Yield ``(only doubtful, problem)`` for every distribution whose options its type does not take."""
    for host in topology.distributors:
        for name, distribution in topology.distributor(host).distributions.items():
            if distribution.type:
                found = _judge(host, f"ted_distributions.{name}", distribution)
                yield from [found] if found else []


def _validator() -> Callable[[str, Any], BaseModel] | None:
    """Return what judges a type's options, ``None`` where ted is there without its types."""
    try:
        found: Callable[[str, Any], BaseModel] = importlib.import_module("ted.plugins").validate_options
    except ModuleNotFoundError as error:
        if error.name == "ted.plugins":
            return None
        raise
    return found


def _judge(host: str, place: str, distribution: Distribution) -> tuple[bool, Problem] | None:
    validate = _validator()
    if validate is None:
        return None
    try:
        validate(distribution.type, distribution.options)
    except OptionsError as error:
        return False, Problem(host, f"{place}.options", error.message, error.hint)
    except (PluginError, UnknownNameError) as error:
        # The Distributor may have a type that this machine has not.
        return True, Problem(host, f"{place}.type", error.message, error.hint)
    except ConfigError as error:
        return False, Problem(host, f"{place}.options", error.message, error.hint)
    return None


def _variables(topology: Topology) -> Iterator[Problem]:
    """Yield what would stop an extraction: values that refer to themselves or to what is nowhere."""
    from ted.errors import VariableError
    from ted.install.variables import PREDEFINED, Variables

    for host in topology.nodes.values():
        own = host.subscriber.variables if host.subscriber else {}
        try:
            variables = Variables(dict.fromkeys(PREDEFINED, "x"), own, environment=_AnyEnvironment())
        except VariableError as error:
            yield Problem(host.name, "ted_variables", error.message, error.hint)
            continue
        for name, value in own.items():
            try:
                variables.expand(value)
            except VariableError as error:
                yield Problem(host.name, f"ted_variables.{name}", error.message, error.hint)


def _undefined(topology: Topology) -> Iterator[Problem]:
    """Yield for whom an option of a distribution names a variable that is neither ted's nor the Subscriber's own."""
    from ted.install.variables import PREDEFINED, names_in

    for host in topology.distributors:
        for name, distribution in topology.distributor(host).distributions.items():
            needed = {each for text in _texts(distribution) for each in names_in(text)} - PREDEFINED.keys()
            if not needed:
                continue
            channels = (channel for channel in distribution.channels if channel in topology.channels)
            for target in dict.fromkeys(node for channel in channels for node in topology.targets(channel)):
                settings = topology.nodes[target].subscriber
                if settings is None:
                    continue
                for lacking in sorted(needed - {own.upper() for own in settings.variables}):
                    yield Problem(
                        target, "ted_variables",
                        f"%{lacking}% is not defined, and {name} of {host} needs it there",
                        f"define {lacking} in ted_variables of this host; a value in a vault is not seen here",
                    )  # fmt: skip


def _texts(distribution: Distribution) -> Iterable[str]:
    """Return the options that the Subscriber expands, none where the type or they are not known here."""
    validate = _validator()
    if validate is None or not distribution.type:
        return
    with suppress(ConfigError, OptionsError, PluginError, UnknownNameError):
        yield from expanded_texts(validate(distribution.type, distribution.options))


class _AnyEnvironment(dict[str, str]):
    """What stands in for the environment of a Subscriber, which is not known here."""

    def __contains__(self, _name: object) -> bool:
        return True

    def __missing__(self, _name: str) -> str:
        return ""


# Text.


def _text(found: Examination, problems: list[Problem], warnings: list[Problem]) -> str:
    lines = [*_listed("✘", problems), *_listed("!", warnings), _summary(found.topology)]
    lines.append(f"{_count(len(problems), 'problem')}, {_count(len(warnings), 'warning')}")
    return "\n".join(lines)


def _summary(topology: Topology) -> str:
    return ", ".join(
        [
            _count(len(topology.distributors), "Distributor"),
            _count(len(topology.subscribers), "Subscriber"),
            _count(len(topology.external_subscribers), "External Subscriber"),
            _count(len(topology.channels), "channel"),
            _count(sum(len(topology.distributor(d).distributions) for d in topology.distributors), "distribution"),
        ]
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _listed(mark: str, problems: Iterable[Problem]) -> Iterator[str]:
    """Yield the lines of each problem; what many hosts have alike (set for a group) is said once."""
    alike: dict[tuple[str | None, str, str | None], list[str]] = {}
    for problem in problems:
        key = (problem.variable, problem.message, problem.hint)
        alike.setdefault(key, []).append(problem.host or "inventory")
    for (variable, message, hint), hosts in alike.items():
        shown = ", ".join(hosts[:_HOSTS_SHOWN])
        more = f" and {len(hosts) - _HOSTS_SHOWN} more" if len(hosts) > _HOSTS_SHOWN else ""
        yield f"{mark} {shown}{more}: {f'{variable}: ' if variable else ''}{message}"
        if hint:
            yield f"    {hint}"
