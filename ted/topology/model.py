"""The topology: who is there, what is sent, and on which channel.

Rules:
 * Everything here is plain, frozen data; it is made by ``parse`` and never changed afterwards.
 * Units are in the names: ``_s`` seconds, ``_bytes`` bytes, ``_bytes_s`` bytes per second.
 * ``None`` is the blank field: unlimited, never, or "nobody said".
 * Tuples of names are sorted, so that the order of an inventory never shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ted.errors import UnknownNameError
from ted.topology.schedule import Schedule

Priority = Literal["high", "medium", "low"]
PatchMode = Literal["auto", "small", "fast", "none"]
OpenMode = Literal["none", "fast", "all"]

DEFAULT_PORT = 7465
DEFAULT_WORKING_DIRECTORY = "/var/lib/ted"
DEFAULT_CONFIG_DIRECTORY = "/etc/ted"


@dataclass(frozen=True)
class Problem:
    """Something a person wrote that is wrong (or, as a warning, doubtful).

    ``host`` and ``variable`` say where; a variable inside another is written with dots
    (``ted_distributions.dat.priority``). ``hint`` says what to do now.
    """

    host: str | None
    variable: str | None
    message: str
    hint: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        """Return the shape of ``ted check --json``."""
        return {
            "host": self.host,
            "variable": self.variable,
            "message": self.message,
            "hint": self.hint,
        }

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.host, self.variable) if part)
        return f"{where}: {self.message}" if where else self.message


@dataclass(frozen=True)
class OutputRates:
    """What a node may send per second, by the priority of what it sends; ``None`` is unlimited."""

    high: int | None = None
    medium: int | None = None
    low: int | None = None


@dataclass(frozen=True)
class HierarchyItem:
    """One node of a Distributor's routing hierarchy, with those it sends to."""

    name: str
    children: tuple[HierarchyItem, ...] = ()


@dataclass(frozen=True)
class Distribution:
    """What a Distributor builds and to which channels it goes.

    ``options`` are the type's own and are not judged here. ``platforms`` holds facts of which one
    mapping must match wholly. ``max_revisions`` of ``None`` keeps every revision.
    """

    name: str
    type: str
    channels: tuple[str, ...] = ()
    priority: Priority = "medium"
    active: bool = True
    max_revisions: int | None = 10
    encrypt: bool = False
    build_schedule: Schedule | None = None
    send_after_build: bool = False
    platforms: tuple[Mapping[str, Any], ...] = ()
    on_failure: Literal["rollback", "leave"] = "rollback"
    patches: PatchMode = "auto"
    open_packages: OpenMode = "fast"
    verify: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    description: str = ""


@dataclass(frozen=True)
class Channel:
    """A group of the inventory that subscribes to distributions."""

    name: str
    send_schedule: Schedule | None = None
    active: bool = True
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class DistributorSettings:
    """What only a Distributor has."""

    distributions: dict[str, Distribution] = field(default_factory=dict)
    routing_hierarchy: tuple[HierarchyItem, ...] = ()
    unlisted_parent: Literal["via_parent", "direct"] = "via_parent"
    refresh_schedule: Schedule | None = None
    database_url: str | None = None


@dataclass(frozen=True)
class SubscriberSettings:
    """What a receiver has: every node but a host that is a Distributor and nothing else."""

    parent: str | None = None
    extract_schedule: Schedule | None = None
    variables: dict[str, str] = field(default_factory=dict)
    inactive_channels: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    fallback_when: Literal["unreachable", "stale"] = "unreachable"
    source_order: Literal["listed", "latency", "subnet"] = "listed"
    poll_interval_s: float | None = None


@dataclass(frozen=True)
class Node:
    """One host that ted runs on, or (External Subscriber) sends to."""

    name: str
    address: str
    port: int = DEFAULT_PORT
    working_directory: str = DEFAULT_WORKING_DIRECTORY
    config_directory: str = DEFAULT_CONFIG_DIRECTORY
    input_rate_bytes_s: int | None = None
    output_rates: OutputRates = OutputRates()
    max_concurrent: int | None = None
    fill_spare_slots: bool = False
    min_rate_bytes_s: int = 1024
    timeout_s: float = 300.0
    min_free_bytes: int | None = None
    retry_interval_s: float = 120.0
    retry_for_s: float = 1800.0
    message_levels: dict[str, int] = field(default_factory=dict)
    log_max_age_s: float | None = None
    transport: Literal["https", "http"] = "https"
    distributor: DistributorSettings | None = None
    subscriber: SubscriberSettings | None = None


@dataclass(frozen=True)
class Topology:
    """Everything ted takes from an inventory.

    ``nodes`` holds every host of a ted group and every relay (named as a parent or in a routing
    hierarchy); ``subscribers`` are the hosts of that group and of the channels, External Subscribers apart.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    distributors: tuple[str, ...] = ()
    subscribers: tuple[str, ...] = ()
    external_subscribers: tuple[str, ...] = ()
    channels: dict[str, Channel] = field(default_factory=dict)
    warnings: tuple[Problem, ...] = ()

    def node(self, name: str) -> Node:
        """Return the node of that name.

        Raises:
            UnknownNameError: No such host takes part.
        """
        try:
            return self.nodes[name]
        except KeyError:
            raise _unknown("host", name, self.nodes) from None

    def channel(self, name: str) -> Channel:
        """Return the channel of that name.

        Raises:
            UnknownNameError: ``ted_channels`` has no such key.
        """
        try:
            return self.channels[name]
        except KeyError:
            raise _unknown("channel", name, self.channels) from None

    def distributor(self, name: str) -> DistributorSettings:
        """Return the Distributor settings of a host.

        Raises:
            UnknownNameError: The host is none of the group ``distributors``.
        """
        settings = self.nodes[name].distributor if name in self.nodes else None
        if settings is None:
            raise _unknown("Distributor", name, self.distributors)
        return settings

    def targets(self, channel: str) -> tuple[str, ...]:
        """Return who receives what that channel carries, suspended subscriptions left out."""
        found = self.channel(channel)
        if not found.active:
            return ()
        return tuple(name for name in found.members if not self._suspended(name, channel))

    def _suspended(self, name: str, channel: str) -> bool:
        settings = self.nodes[name].subscriber
        return settings is not None and channel in settings.inactive_channels


def _unknown(what: str, name: str, known: Mapping[str, Any] | tuple[str, ...]) -> UnknownNameError:
    from ted.topology.names import suggestion

    return UnknownNameError(
        f"the inventory has no {what} {name!r}",
        hint=suggestion(name, known) or f"it has {_some(sorted(known))}",
    )


def _some(names: list[str], most: int = 8) -> str:
    shown = ", ".join(names[:most]) or "none"
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
