"""The shape of an inventory: its hosts, its groups with everything nested in them, each host's variables.

Rules:
 * The input is the output of ``ansible-inventory --list``, with variables below ``_meta`` or (``--export``)
   in the groups; a group's variables yield to those of the groups nested in it, and to the host's own.
 * Every host is in ``all``. A group is known if it is defined or named as a child: Ansible leaves empty groups out.
 * A loop of groups, which Ansible refuses, ends nothing here: every group is entered once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ted.errors import ConfigError

Vars = Mapping[str, Any]


@dataclass(frozen=True)
class Inventory:
    """Hosts and groups as ted asks for them.

    ``hosts``: name -> variables. ``groups``: name -> every host in it or below it.
    """

    hosts: dict[str, Vars] = field(default_factory=dict)
    groups: dict[str, frozenset[str]] = field(default_factory=dict)

    def members(self, group: str) -> frozenset[str]:
        """Return the hosts of a group, none for an unknown one."""
        return self.groups.get(group, frozenset())

    def names_group(self, group: str) -> bool:
        """Say whether the inventory knows that group."""
        return group in self.groups


def read_shape(data: Mapping[str, Any]) -> Inventory:
    """Return hosts and groups of ``ansible-inventory --list`` output.

    Raises:
        ConfigError: It is not that shape.
    """
    groups = raw_groups(data)
    members = {name: _members(name, groups) for name in groups}
    own = _hostvars(data)
    names = sorted(set(own).union(*members.values()))
    members["all"] = frozenset(names)  # said or not
    layers = _variable_layers(groups, members)
    hosts = {name: _merged([*layers.get(name, ()), own.get(name, {})]) for name in names}
    return Inventory(hosts, members)


def raw_groups(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every group as ``{"hosts": [...], "children": [...], "vars": {...}}``, sorted by name."""
    if not isinstance(data, Mapping):
        raise ConfigError("this is not the output of `ansible-inventory --list`")
    groups: dict[str, dict[str, Any]] = {}
    for name, group in data.items():
        if name != "_meta":
            groups[str(name)] = _group(str(name), group)
    for group in list(groups.values()):
        for child in group["children"]:
            groups.setdefault(child, _group(child, {}))
    return dict(sorted(groups.items()))


def _group(name: str, group: object) -> dict[str, Any]:
    if isinstance(group, list):  # the oldest shape of dynamic inventories: only hosts
        group = {"hosts": group}
    if not isinstance(group, Mapping):
        raise ConfigError(f"group {name!r} is not a mapping", hint="use the output of `ansible-inventory --list`")
    variables = group.get("vars") or {}
    if not isinstance(variables, Mapping):
        raise ConfigError(f"the variables of group {name!r} are not a mapping")
    return {
        "hosts": _words(name, "hosts", group.get("hosts")),
        "children": _words(name, "children", group.get("children")),
        "vars": variables,
    }


def _words(group: str, what: str, value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list | Mapping) and all(isinstance(item, str) for item in value):
        return list(value)
    raise ConfigError(f"the {what} of group {group!r} are not a list of names")


def _hostvars(data: Mapping[str, Any]) -> dict[str, Vars]:
    meta = data.get("_meta") or {}
    hostvars = meta.get("hostvars") if isinstance(meta, Mapping) else None
    if hostvars is None:
        return {}
    if not isinstance(hostvars, Mapping) or not all(isinstance(item, Mapping) for item in hostvars.values()):
        raise ConfigError("_meta.hostvars is not a mapping of hosts to their variables")
    return {str(name): _from_json_text(variables) for name, variables in hostvars.items()}


def _from_json_text(variables: Vars) -> Vars:
    """Read ted's mappings and lists that came as JSON text: INI inventories can say them in no other way."""
    written = {
        name: value for name, value in variables.items()
        if name.startswith("ted_") and isinstance(value, str) and value[:1] in {"{", "["}
    }  # fmt: skip
    read = {}
    for name, value in written.items():
        with suppress(ValueError, RecursionError):
            read[name] = json.loads(value)
    return {**variables, **read} if read else variables


def _members(name: str, groups: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
    hosts: set[str] = set()
    entered = {name}
    waiting = [name]
    while waiting:
        group = groups[waiting.pop()]
        hosts.update(group["hosts"])
        below = [child for child in group["children"] if child not in entered]
        entered.update(below)
        waiting += below
    return frozenset(hosts)


def _variable_layers(
    groups: Mapping[str, Mapping[str, Any]], members: Mapping[str, frozenset[str]]
) -> dict[str, list[Vars]]:
    """Host -> variables of its groups, the outermost group first."""
    layers: dict[str, list[Vars]] = {}
    with_variables = [name for name in groups if groups[name]["vars"]]
    if not with_variables:
        return layers
    depth = _depths(groups)
    for name in sorted(with_variables, key=lambda group: (group != "all", depth[group], group)):
        for host in members[name]:
            layers.setdefault(host, []).append(groups[name]["vars"])
    return layers


def _depths(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Longest way down from a group without parents, cut off where groups form a loop."""
    depth = dict.fromkeys(groups, 0)
    for _ in range(len(groups)):
        changed = False
        for name, group in groups.items():
            for child in group["children"]:
                if depth[child] <= depth[name] < len(groups):
                    depth[child] = depth[name] + 1
                    changed = True
        if not changed:
            break
    return depth


def _merged(layers: list[Vars]) -> Vars:
    if len(layers) == 1:
        return layers[0]
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
    return merged
