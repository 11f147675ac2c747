# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""The filter owners: the Distributors that own distributions."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: owners
short_description: The Distributors that own distributions
version_added: 0.1.0
author:
  - The ted authors (@ted-distribution)
description:
  - Returns the Distributors that have the distribution, or any on the channel.
positional: groups, distribution, channel
extends_documentation_fragment: [ted.distribution.inventory, ted.distribution.inventory.narrowed]
"""

EXAMPLES = r"""
---
- name: Who builds dat
  ansible.builtin.debug:
    msg: "{{ hostvars | ted.distribution.owners(groups, distribution='dat') }}"
"""

RETURN = r"""
---
_value:
  description: Names, in inventory order.
  type: list
"""

from ansible_collections.ted.distribution.plugins.plugin_utils.inventory import owners


def ted_owners(hostvars, groups, distribution=None, channel=None):
    """Return the Distributors."""
    return owners(hostvars, groups, distribution, channel)


class FilterModule:
    """The Distributors that own distributions."""

    def filters(self):
        """Return the filter by its name."""
        return {"owners": ted_owners}
