# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""The filter topology: the tree of nodes, as a Distributor keeps it."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: topology
short_description: The tree of nodes, as a Distributor keeps it
version_added: 0.1.0
author:
  - The ted authors (@ted-distribution)
description:
  - Returns the groups and variables of the inventory contract in the shape of C(ansible-inventory --list),
    templated by Ansible.
  - Variables that steer the role (C(ted_venv), C(ted_package) and the like) and variables of other products are
    left out.
  - A part of a value that cannot be resolved keeps its text. Write C(%NAME%) where a Subscriber's value is meant.
  - The order is fixed, so an unchanged inventory gives the same bytes.
positional: groups, distributor
extends_documentation_fragment: [ted.distribution.inventory]
options:
  distributor:
    description:
      - The Distributor that is to have the tree. Passwords and other secrets in the options of others' distributions,
        told by their names, are masked then.
    type: str
"""

EXAMPLES = r"""
---
- name: Write down the tree
  ansible.builtin.copy:
    content: "{{ hostvars | ted.distribution.topology(groups) | to_nice_json }}"
    dest: /tmp/topology.json
    mode: "0600"
"""

RETURN = r"""
---
_value:
  description: The tree.
  type: dict
"""

from ansible_collections.ted.distribution.plugins.plugin_utils.inventory import topology


def ted_topology(hostvars, groups, distributor=None):
    """Return the tree."""
    return topology(hostvars, groups, distributor)


class FilterModule:
    """The tree of nodes, as a Distributor keeps it."""

    def filters(self):
        """Return the filter by its name."""
        return {"topology": ted_topology}
