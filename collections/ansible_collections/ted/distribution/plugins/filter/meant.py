# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""The filter meant: which distribution or channel was meant, where no Distributor has the one that was named."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: meant
short_description: What was meant by a name that nobody has
version_added: 0.1.0
author:
  - The ted authors (@ted-distribution)
description:
  - Returns what to say of a distribution and a channel that no Distributor has together, for a person who mistyped one.
positional: groups, distribution, channel
extends_documentation_fragment: [ted.distribution.inventory, ted.distribution.inventory.narrowed]
"""

EXAMPLES = r"""
---
- name: The distribution is somebody's
  ansible.builtin.assert:
    that: hostvars | ted.distribution.owners(groups, distribution=ted_distribution) | length > 0
    fail_msg: "{{ hostvars | ted.distribution.meant(groups, distribution=ted_distribution) }}"
  run_once: true
  vars:
    ted_distribution: dat
"""

RETURN = r"""
---
_value:
  description: A half sentence with the names that are near, or with all that there are.
  type: str
"""

from ansible_collections.ted.distribution.plugins.plugin_utils.inventory import meant


def ted_meant(hostvars, groups, distribution=None, channel=None):
    """Return what was meant."""
    return meant(hostvars, groups, distribution, channel)


class FilterModule:
    """What was meant by a name that nobody has."""

    def filters(self):
        """Return the filter by its name."""
        return {"meant": ted_meant}
