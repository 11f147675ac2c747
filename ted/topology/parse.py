"""From the data of an inventory to a topology, or to everything that is wrong with it.

Rules:
 * Every problem is found and none stops the search; each names host and variable.
 * Nodes are the hosts of ``distributors``, ``subscribers``, ``external_subscribers`` and the channels, and
   the relays: hosts named as a parent or in a routing hierarchy. Other hosts are not ted's.
 * Hosts of a channel are subscribers, External Subscribers apart.
 * An unknown ``ted_*`` variable is a problem on any host.
 * A variable on a host whose roles do not use it is a warning, unless all hosts have it alike (it was
   set for ``all``).
 * A value encrypted with Ansible Vault stays unread, with a warning; it is never a problem.

Pure: ``inventory`` reads files and runs programs, this does not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ted.errors import ConfigError, InventoryError, ValueFormatError, shorten
from ted.topology.groups import Inventory, read_shape
from ted.topology.hierarchy import parse_hierarchy, walk
from ted.topology.model import (
    Channel,
    Distribution,
    DistributorSettings,
    Node,
    Problem,
    SubscriberSettings,
    Topology,
)
from ted.topology.names import NAME_RULE, is_name, nearest, suggestion
from ted.topology.routing import routing_problems
from ted.topology.variables import (
    CHANNEL_FIELDS,
    DISTRIBUTION_FIELDS,
    DISTRIBUTOR_STRUCTURES,
    DISTRIBUTOR_VARIABLES,
    EXTERNAL_VARIABLES,
    KNOWN_VARIABLES,
    NODE_VARIABLES,
    ROLE_VARIABLES,
    RUN_VARIABLES,
    SUBSCRIBER_VARIABLES,
    Variable,
    is_blank,
    is_vaulted,
)

_SHOWN = 10


@dataclass(frozen=True)
class Examination:
    """What an inventory says, and what is wrong with it.

    ``topology`` is what could be read; with problems it is for messages only, not for sending.
    """

    topology: Topology
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


def parse_inventory(data: Mapping[str, Any]) -> Topology:
    """Return the topology of ``ansible-inventory --list`` data.

    Raises:
        InventoryError: The inventory breaks the contract; holds every problem.
        ConfigError: ``data`` has not that shape at all.
    """
    found = examine_inventory(data)
    if found.problems:
        raise inventory_error(found.problems)
    return found.topology


def examine_inventory(data: Mapping[str, Any], known: Iterable[Problem] = ()) -> Examination:
    """Return topology, problems and warnings of ``ansible-inventory --list`` data.

    Args:
        data: The inventory.
        known: Problems found before (templates that could not be rendered); what is found here about the
            same variable of the same host is left out, since it only follows from them.

    Raises:
        ConfigError: ``data`` has not that shape at all.
    """
    try:
        return _Parser(read_shape(data), tuple(known)).examine()
    except RecursionError:
        raise ConfigError("the inventory holds a value that is nested too deep") from None


def inventory_error(problems: Iterable[Problem]) -> InventoryError:
    """Return the error that carries these problems and shows the first of them."""
    found = list(problems)
    lines = [f"  {problem}" for problem in found[:_SHOWN]]
    if len(found) > _SHOWN:
        lines.append(f"  and {len(found) - _SHOWN} more")
    count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
    return InventoryError(
        "\n".join([f"the inventory has {count}:", *lines]),
        problems=[problem.to_dict() for problem in found],
        hint=found[0].hint if len(found) == 1 else "`ted check` shows each with what to do",
    )


@dataclass
class _Findings:
    """Problems and warnings, in the order they are found."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def problem(self, host: str | None, variable: str | None, message: str, hint: str | None = None) -> None:
        self.problems.append(Problem(host, variable, message, hint))

    def warning(self, host: str | None, variable: str | None, message: str, hint: str | None = None) -> None:
        self.warnings.append(Problem(host, variable, message, hint))

    def read(self, host: str, place: str, found: Mapping[str, Any], table: Mapping[str, Variable]) -> dict[str, Any]:
        """Read every variable of ``table`` that is set; ``place`` comes before its name in a problem."""
        values: dict[str, Any] = {}
        for name, variable in table.items():
            raw = found.get(name)
            if raw is None:
                continue
            if is_vaulted(raw):
                self._vaulted(host, place + name)
            elif not is_blank(raw):
                try:
                    values[variable.field] = variable.read(raw)
                except ValueFormatError as error:
                    self.problem(host, place + name, error.message, error.hint)
        return values

    def _vaulted(self, host: str, variable: str) -> None:
        self.warning(
            host,
            variable,
            "is encrypted with Ansible Vault and was not read",
            "it takes effect where a play has decrypted it",
        )


class _Parser:
    """One reading of one inventory."""

    def __init__(self, inventory: Inventory, known: tuple[Problem, ...]) -> None:
        self._inventory = inventory
        self._known = known
        self._findings = _Findings()
        self._distributors = inventory.members("distributors")
        self._external = inventory.members("external_subscribers")
        self._mistyped: dict[str, str] = {}
        """Groups that are none of ted's and look like one of ted's that is missing -> what was meant."""

    def examine(self) -> Examination:
        channels = self._channels()
        self._mistyped = _mistyped(set(self._inventory.groups) - set(channels))
        in_channels = frozenset(name for channel in channels.values() for name in channel.members)
        subscribers = (self._inventory.members("subscribers") | in_channels) - self._external
        self._check_groups(subscribers)
        topology = self._topology(channels, subscribers)
        self._check_names()
        self._check_channel_names(topology)
        self._check_unused(topology)
        problems = self._all_problems(topology)
        warnings = tuple(dict.fromkeys(self._findings.warnings))
        return Examination(replace(topology, warnings=warnings), problems, warnings)

    def _all_problems(self, topology: Topology) -> tuple[Problem, ...]:
        told = {(problem.host, _top(problem.variable)) for problem in self._known}
        found = [*self._findings.problems, *routing_problems(topology)]
        later = [problem for problem in found if (problem.host, _top(problem.variable)) not in told]
        return tuple(dict.fromkeys([*self._known, *later]))

    # Channels.

    def _channels(self) -> dict[str, Channel]:
        """Unite ``ted_channels`` of all hosts; two hosts that differ about one channel are a problem."""
        raw: dict[str, tuple[str, object]] = {}
        seen: object = None
        for host in sorted(self._inventory.hosts, key=lambda name: (name not in self._distributors, name)):
            value = self._inventory.hosts[host].get("ted_channels")
            if is_blank(value) or value == seen:
                continue
            seen = value
            self._unite(host, value, raw)
        return {name: self._channel(host, name, item) for name, (host, item) in sorted(raw.items())}

    def _unite(self, host: str, value: object, raw: dict[str, tuple[str, object]]) -> None:
        if not isinstance(value, Mapping):
            self._findings.problem(
                host,
                "ted_channels",
                f"{shorten(value)} is not a mapping",
                "write {antivirus: {}, updates: {}}",
            )
            return
        for name, item in value.items():
            other, before = raw.setdefault(str(name), (host, item))
            if before != item:
                self._findings.problem(
                    host,
                    f"ted_channels.{name}",
                    f"differs from what {other} says",
                    "set ted_channels once, in group_vars of all",
                )

    def _channel(self, host: str, name: str, value: object) -> Channel:
        place = f"ted_channels.{name}"
        if not self._inventory.names_group(name):
            hint = suggestion(name, self._inventory.groups) or "a channel is a group: add it, or drop the channel"
            self._findings.problem(host, place, f"no group is named {name}", hint)
        elif not is_name(name):
            self._findings.problem(host, place, f"{shorten(name)} is not a name", NAME_RULE)
        members = tuple(sorted(self._inventory.members(name)))
        return Channel(name=name, members=members, **self._fields(host, place, value, CHANNEL_FIELDS))

    def _fields(self, host: str, place: str, value: object, table: Mapping[str, Variable]) -> dict[str, Any]:
        """Read a mapping inside a variable, its unknown keys being problems."""
        if is_blank(value):
            return {}
        if not isinstance(value, Mapping):
            self._findings.problem(host, place, f"{shorten(value)} is not a mapping")
            return {}
        for key in value:
            if key not in table:
                hint = suggestion(str(key), table) or f"known are {', '.join(table)}"
                self._findings.problem(host, f"{place}.{key}", "is unknown here", hint)
        return self._findings.read(host, f"{place}.", value, table)

    # Nodes.

    def _topology(self, channels: dict[str, Channel], subscribers: frozenset[str]) -> Topology:
        distributors = {name: self._distributor(name) for name in sorted(self._distributors)}
        listed = {
            receiver
            for name, settings in distributors.items()
            for _, receiver in walk(settings.routing_hierarchy, name)
        }
        waiting = sorted(self._distributors | subscribers | self._external | self._hosts(listed))
        receives = subscribers | listed  # and, below, whoever is named as a parent
        nodes: dict[str, Node] = {}
        for name in waiting:  # grows while relays are found
            if name in nodes:
                continue
            node = self._node(name, distributors.get(name), receives)
            nodes[name] = node
            parent = node.subscriber.parent if node.subscriber else None
            if parent is not None and parent in self._inventory.hosts and parent not in receives:
                receives |= {parent}
                nodes.pop(parent, None)  # a Distributor that turns out to be a relay as well
                waiting.append(parent)
        return Topology(
            nodes=dict(sorted(nodes.items())),
            distributors=tuple(distributors),
            subscribers=tuple(sorted(subscribers)),
            external_subscribers=tuple(sorted(self._external)),
            channels=channels,
        )

    def _hosts(self, names: Iterable[str]) -> set[str]:
        return {name for name in names if name in self._inventory.hosts}

    def _node(self, name: str, distributor: DistributorSettings | None, receives: frozenset[str] | set[str]) -> Node:
        found = self._inventory.hosts[name]
        if not is_name(name):
            self._findings.problem(name, None, f"{shorten(name)} is not a name", NAME_RULE)
        if name in self._external:
            return self._external_node(name)
        values = self._findings.read(name, "", self._addressed(name), NODE_VARIABLES)
        subscriber = None
        if name in receives:
            subscriber = SubscriberSettings(**self._findings.read(name, "", found, SUBSCRIBER_VARIABLES))
        values.setdefault("address", name)
        return Node(name=name, distributor=distributor, subscriber=subscriber, **values)

    def _external_node(self, name: str) -> Node:
        found = self._addressed(name)
        used = {key: found[key] for key in EXTERNAL_VARIABLES if key in found}
        values = self._findings.read(name, "", used, NODE_VARIABLES)
        values.setdefault("address", name)
        settings = SubscriberSettings(**self._findings.read(name, "", used, SUBSCRIBER_VARIABLES))
        return Node(name=name, subscriber=settings, **values)

    def _addressed(self, name: str) -> Mapping[str, Any]:
        """A host's variables with ``ted_address`` set to what stands for it: ansible_host, else its name."""
        found = self._inventory.hosts[name]
        if not is_blank(found.get("ted_address")):
            return found
        ansible_host = found.get("ansible_host")
        usable = not is_blank(ansible_host) and not is_vaulted(ansible_host)
        return {**found, "ted_address": ansible_host if usable else name}

    # Distributors.

    def _distributor(self, name: str) -> DistributorSettings:
        found = self._inventory.hosts[name]
        values = self._findings.read(name, "", found, DISTRIBUTOR_VARIABLES)
        if not is_blank(found.get("ted_routing_hierarchy")):
            hierarchy, mistakes = parse_hierarchy(found["ted_routing_hierarchy"])
            for message, hint in mistakes:
                self._findings.problem(name, "ted_routing_hierarchy", message, hint)
            values["routing_hierarchy"] = hierarchy
        values["distributions"] = self._distributions(name, found.get("ted_distributions"))
        return DistributorSettings(**values)

    def _distributions(self, host: str, value: object) -> dict[str, Distribution]:
        if is_blank(value) or is_vaulted(value):
            return {}
        if not isinstance(value, Mapping):
            self._findings.problem(host, "ted_distributions", f"{shorten(value)} is not a mapping of names")
            return {}
        return {str(name): self._distribution(host, str(name), value[name]) for name in sorted(value, key=str)}

    def _distribution(self, host: str, name: str, value: object) -> Distribution:
        place = f"ted_distributions.{name}"
        if not is_name(name):
            self._findings.problem(host, place, f"{shorten(name)} is not a name", NAME_RULE)
        values = self._fields(host, place, value, DISTRIBUTION_FIELDS)
        given = value if isinstance(value, Mapping) else {}
        if "max_revisions" in given and given["max_revisions"] is None:
            values["max_revisions"] = None  # null is a value of its own here: unlimited
        if is_blank(given.get("type")):
            self._findings.problem(host, f"{place}.type", "has no type", "e.g. type: file")
        values.setdefault("type", "")
        return Distribution(name=name, **values)

    # What only shows when everything is read.

    def _check_groups(self, subscribers: frozenset[str]) -> None:
        for name in sorted(self._external & (self._inventory.members("subscribers") | self._distributors)):
            other = "distributors" if name in self._distributors else "subscribers"
            self._findings.problem(
                name,
                None,
                f"is in external_subscribers and in {other}",
                "External Subscribers belong to another realm: keep one of the groups",
            )
        for group, meant in self._mistyped.items():
            message = f"there is no group {meant}; the group {group} means nothing to ted"
            self._findings.warning(None, None, message, f"did you mean {meant}?")
        if not self._distributors and (subscribers or self._external) and "distributors" not in self._mistyped.values():
            self._findings.warning(
                None, None, "the group distributors is empty: nobody sends", "add the host that builds"
            )

    def _check_channel_names(self, topology: Topology) -> None:
        known = topology.channels
        for host in topology.distributors:
            for name, distribution in topology.distributor(host).distributions.items():
                self._unknown_channels(host, f"ted_distributions.{name}.channels", distribution.channels, known)
        for host, node in topology.nodes.items():
            if node.subscriber is not None:
                self._unknown_channels(host, "ted_inactive_channels", node.subscriber.inactive_channels, known)

    def _unknown_channels(self, host: str, variable: str, names: Iterable[str], known: Mapping[str, Channel]) -> None:
        for name in names:
            if name not in known:
                hint = suggestion(name, known, near=0.6) or "add it to ted_channels"
                self._findings.problem(host, variable, f"channel {name} is not in ted_channels", hint)

    def _check_names(self) -> None:
        for host, found in self._inventory.hosts.items():
            for name in found:
                if name.startswith("ted_") and name not in KNOWN_VARIABLES:
                    hint = suggestion(name, KNOWN_VARIABLES) or "ted has no such variable"
                    self._findings.problem(host, name, "is no variable of ted", hint)
                elif name in RUN_VARIABLES:
                    meant = suggestion(name, KNOWN_VARIABLES - RUN_VARIABLES, near=0.85)
                    self._findings.warning(host, name, "narrows one run: it belongs after -e, not here", meant)

    def _check_unused(self, topology: Topology) -> None:
        shared = self._set_for_all()
        for host, found in self._inventory.hosts.items():
            used = _used_by(host, topology)
            meant = {group: name for group, name in self._mistyped.items() if host in self._inventory.members(group)}
            for name, value in found.items():
                unused = name in KNOWN_VARIABLES and name not in used
                for_all = name in shared and shared[name] == value
                if unused and not for_all and not self._is_for_subscribers(host, name, value, topology):
                    self._findings.warning(host, name, *_why_unused(host, topology, meant))

    def _is_for_subscribers(self, host: str, name: str, value: object, topology: Topology) -> bool:
        """Say whether a Distributor has what a Subscriber has too: it was set for both, below ``all`` say.

        A mapping of the same names is the same: a template below ``all`` gives each host values of its own.
        """
        node = topology.nodes.get(host)
        if node is None or node.distributor is None:
            return False
        return any(
            other.subscriber is not None and _names_or_value(self._inventory.hosts.get(other.name, {}).get(name))
            == _names_or_value(value) for other in topology.nodes.values() if other is not node
        )  # fmt: skip

    def _set_for_all(self) -> Mapping[str, Any]:
        """Variables that every host has alike, where there is more than one host."""
        if len(self._inventory.hosts) < 2:
            return {}
        hosts = iter(self._inventory.hosts.values())
        shared = {name: value for name, value in next(hosts).items() if name in KNOWN_VARIABLES}
        for found in hosts:
            shared = {name: value for name, value in shared.items() if name in found and found[name] == value}
        return shared


def _names_or_value(value: object) -> object:
    return set(value) if isinstance(value, Mapping) else value


def _top(variable: str | None) -> str | None:
    return variable.split(".", 1)[0] if variable is not None else None


def _mistyped(groups: Collection[str]) -> dict[str, str]:
    missing = [name for name in GROUPS if name not in groups]
    near = ((nearest(name, groups, near=0.85), name) for name in missing)
    return {group: name for group, name in near if group is not None}


GROUPS = ("distributors", "subscribers", "external_subscribers")
_ANYWHERE = ROLE_VARIABLES | {"ted_channels"}
_OF_A_NODE = _ANYWHERE | frozenset(NODE_VARIABLES)
_OF_A_DISTRIBUTOR = frozenset({*DISTRIBUTOR_VARIABLES, *DISTRIBUTOR_STRUCTURES})


def _used_by(host: str, topology: Topology) -> frozenset[str]:
    """The variables that have an effect on a host with these roles."""
    node = topology.nodes.get(host)
    if node is None:
        return _ANYWHERE
    if host in topology.external_subscribers:
        return _ANYWHERE | frozenset(EXTERNAL_VARIABLES)
    used = _OF_A_NODE
    if node.distributor is not None:
        used |= _OF_A_DISTRIBUTOR
    if node.subscriber is not None:
        used |= frozenset(SUBSCRIBER_VARIABLES)
    return used


def _why_unused(host: str, topology: Topology, meant: Mapping[str, str]) -> tuple[str, str | None]:
    """Return message and hint; ``meant``: mistyped groups that the host is in -> the group that was meant."""
    for group, name in meant.items():
        return f"has no effect: the group {group} of this host means nothing to ted", f"did you mean {name}?"
    node = topology.nodes.get(host)
    if node is None:
        return "has no effect: the host is in none of ted's groups", "add it to subscribers, or to a channel"
    if host in topology.external_subscribers:
        return "has no effect on an External Subscriber", "its own realm configures it"
    if node.distributor is None:
        return "has no effect: the host is not in the group distributors", "move it to the Distributor"
    return "has no effect: the host is a Distributor and receives nothing", "move it to the subscribers"
