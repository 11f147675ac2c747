# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""The filter node_settings: what one node must know about itself."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: node_settings
short_description: What one node must know about itself
version_added: 0.1.0
author:
  - The ted authors (@ted-distribution)
description:
  - Returns the content of the node's C(node.yml), from the variables of the inventory contract.
  - The keys are the variables without C(ted_), and C(node), C(distributor), C(listen), C(parent),
    C(parent_address), C(parent_port).
positional: groups, host
extends_documentation_fragment: [ted.distribution.inventory]
options:
  host:
    description: The node.
    type: str
    required: true
"""

EXAMPLES = r"""
---
- name: Show it
  ansible.builtin.debug:
    msg: "{{ hostvars | ted.distribution.node_settings(groups, inventory_hostname) }}"
"""

RETURN = r"""
---
_value:
  description: The settings.
  type: dict
"""

from ansible_collections.ted.distribution.plugins.plugin_utils.inventory import node_settings


def ted_node_settings(hostvars, groups, host):
    """Return the settings of a node."""
    return node_settings(hostvars, groups, host)


class FilterModule:
    """What one node must know about itself."""

    def filters(self):
        """Return the filter by its name."""
        return {"node_settings": ted_node_settings}
