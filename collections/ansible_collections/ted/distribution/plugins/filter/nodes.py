# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""The filter nodes: the hosts of an inventory that are nodes of the tree."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: nodes
short_description: The hosts of an inventory that are nodes of the tree
version_added: 0.1.0
author:
  - The ted authors (@ted-distribution)
description:
  - Returns Distributors, Subscribers, hosts of channels, and relays that are only named as somebody's parent or
    in a routing hierarchy.
  - External Subscribers belong to another realm and are left out.
positional: groups
extends_documentation_fragment: [ted.distribution.inventory]
"""

EXAMPLES = r"""
---
- name: Show them
  ansible.builtin.debug:
    msg: "{{ hostvars | ted.distribution.nodes(groups) }}"
"""

RETURN = r"""
---
_value:
  description: Names, in inventory order.
  type: list
"""

from ansible_collections.ted.distribution.plugins.plugin_utils.inventory import members


def ted_nodes(hostvars, groups):
    """Return the nodes of this realm."""
    others = {str(host) for host in groups.get("external_subscribers", [])}
    return [host for host in members(hostvars, groups) if host not in others]


class FilterModule:
    """The hosts of an inventory that are nodes of the tree."""

    def filters(self):
        """Return the filter by its name."""
        return {"nodes": ted_nodes}
