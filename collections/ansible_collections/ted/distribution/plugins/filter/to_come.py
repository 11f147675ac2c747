# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""The filter to_come: the distributions of which a check would bring a revision to a host."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: to_come
short_description: The distributions of which a check would bring a revision to a host
version_added: 0.1.0
author:
  - The ted authors (@ted-distribution)
description:
  - Reads what the checks of F(playbooks/build.yml) and F(playbooks/send.yml) in this run foretold
    (C(build_done), C(send_done)).
  - Returns nothing outside check mode.

positional: groups, host, channel
options:
  host:
    description: The receiver.
    type: str
    required: true
  channel:
    description: Only what goes out on this channel.
    type: str
extends_documentation_fragment: [ted.distribution.inventory]
"""

EXAMPLES = r"""
---
- name: What would come
  ansible.builtin.debug:
    msg: "{{ hostvars | ted.distribution.to_come(groups, inventory_hostname) }}"
"""

RETURN = r"""
---
_value:
  description: Names of distributions.
  type: list
"""

from ansible_collections.ted.distribution.plugins.plugin_utils.inventory import to_come


class FilterModule:
    """The distributions of which a check would bring a revision to a host."""

    def filters(self):
        """Return the filter by its name."""
        return {"to_come": to_come}
