# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""The filter targets: the hosts that shall receive and install distributions."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: targets
short_description: The hosts that shall receive and install distributions
version_added: 0.1.0
author:
  - The ted authors (@ted-distribution)
description:
  - Returns the members of the channels that the distributions go out on. External Subscribers are left out.
positional: groups, distribution, channel
extends_documentation_fragment: [ted.distribution.inventory, ted.distribution.inventory.narrowed]
"""

EXAMPLES = r"""
---
- name: Who installs dat
  ansible.builtin.debug:
    msg: "{{ hostvars | ted.distribution.targets(groups, distribution='dat') }}"
"""

RETURN = r"""
---
_value:
  description: Names, in inventory order.
  type: list
"""

from ansible_collections.ted.distribution.plugins.plugin_utils.inventory import targets


def ted_targets(hostvars, groups, distribution=None, channel=None):
    """Return the receivers."""
    return targets(hostvars, groups, distribution, channel)


class FilterModule:
    """The hosts that shall receive and install distributions."""

    def filters(self):
        """Return the filter by its name."""
        return {"targets": ted_targets}
