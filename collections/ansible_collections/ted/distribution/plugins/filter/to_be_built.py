# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""The filter to_be_built: the distributions that a check would build."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: to_be_built
short_description: The distributions that a check would build
version_added: 0.1.0
author:
  - The ted authors (@ted-distribution)
description:
  - Reads what the check of F(playbooks/build.yml) in this run (C(build_done)) foretold of a Distributor.
  - Returns nothing outside check mode.

positional: distributor, channel
options:
  _input:
    description: Ansible's C(hostvars).
    type: raw
    required: true
  distributor:
    description: The Distributor.
    type: str
    required: true
  channel:
    description: Only what goes out on this channel.
    type: str
"""

EXAMPLES = r"""
---
- name: What would be built
  ansible.builtin.debug:
    msg: "{{ hostvars | ted.distribution.to_be_built('hq') }}"
"""

RETURN = r"""
---
_value:
  description: Names of distributions.
  type: list
"""

from ansible_collections.ted.distribution.plugins.plugin_utils.inventory import to_be_built


class FilterModule:
    """The distributions that a check would build."""

    def filters(self):
        """Return the filter by its name."""
        return {"to_be_built": to_be_built}
