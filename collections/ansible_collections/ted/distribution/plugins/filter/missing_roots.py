# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""The filter missing_roots: the Distributors' roots that a node lacks."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: missing_roots
short_description: The Distributors' roots that a node lacks
version_added: 0.1.0
author:
  - The ted authors (@ted-distribution)
description:
  - Compares what M(ted.distribution.node) returned on the Distributors with what it returned on a host.
  - Roots of Distributors outside the play are taken from results of C(ted --json trust export).
positional: distributors, host, exported
options:
  _input:
    description: Ansible's C(hostvars).
    type: raw
    required: true
  distributors:
    description: The Distributors.
    type: list
    elements: str
    required: true
  host:
    description: The node.
    type: str
    required: true
  exported:
    description: Results of a loop over Distributors that ran C(ted --json trust export).
    type: list
    elements: dict
    default: []
"""

EXAMPLES = r"""
---
- name: What this node does not trust yet
  ansible.builtin.debug:
    msg: "{{ hostvars | ted.distribution.missing_roots(groups.distributors, inventory_hostname) | list }}"
"""

RETURN = r"""
---
_value:
  description: Texts of C(root.json), by Distributor.
  type: dict
"""

from ansible_collections.ted.distribution.plugins.plugin_utils.inventory import missing_roots


class FilterModule:
    """The Distributors' roots that a node lacks."""

    def filters(self):
        """Return the filter by its name."""
        return {"missing_roots": missing_roots}
