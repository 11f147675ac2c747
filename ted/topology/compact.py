"""Keep of an inventory only what ted needs: this is a Distributor's ``topology.json``.

Rules:
 * The shape stays that of ``ansible-inventory --list``; what comes out can be put in again.
 * Of a host's variables only ``ted_*`` and ``ansible_host`` stay: no password, no path of a
   key file; and no variable that only the collection's role reads.
 * Variables of groups are written to their hosts; everything is sorted, so equal inventories are equal files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ted.topology.groups import raw_groups, read_shape
from ted.topology.variables import ROLE_VARIABLES


def compact(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the groups, and of every host the ``ted_*`` variables and ``ansible_host``.

    Raises:
        ConfigError: ``data`` is not the output of ``ansible-inventory --list``.
    """
    inventory = read_shape(data)
    kept = {host: _needed(variables) for host, variables in sorted(inventory.hosts.items())}
    groups = raw_groups(data)
    grouped = {host for group in groups.values() for host in group["hosts"]}  # the others must be named here
    hostvars = {host: found for host, found in kept.items() if found or host not in grouped}
    result: dict[str, Any] = {"_meta": {"hostvars": hostvars}}
    for name, group in groups.items():
        result[name] = {key: sorted(group[key]) for key in ("children", "hosts") if group[key]}
    return result


def _needed(variables: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in sorted(variables.items())
        if name == "ansible_host" or (name.startswith("ted_") and name not in ROLE_VARIABLES)
    }
