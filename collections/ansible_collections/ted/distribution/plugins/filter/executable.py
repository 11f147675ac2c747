# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""The filter executable: the path of ted on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: executable
short_description: The path of ted on a host
version_added: 0.1.0
author:
  - The ted authors (@ted-distribution)
description:
  - Returns C(ted_executable) of a host, else C(bin/ted) in its C(ted_venv).
  - For tasks that are delegated, where the role's own values are those of another host.
options:
  _input:
    description: The host's variables, C(hostvars[host]).
    type: raw
    required: true
"""

EXAMPLES = r"""
---
- name: Ask the first Distributor
  ansible.builtin.command: "{{ hostvars[groups.distributors[0]] | ted.distribution.executable }} status"
  delegate_to: "{{ groups.distributors[0] }}"
  changed_when: false
"""

RETURN = r"""
---
_value:
  description: The path.
  type: str
"""

from ansible_collections.ted.distribution.plugins.plugin_utils.inventory import executable


class FilterModule:
    """The path of ted on a host."""

    def filters(self):
        """Return the filter by its name."""
        return {"executable": executable}
