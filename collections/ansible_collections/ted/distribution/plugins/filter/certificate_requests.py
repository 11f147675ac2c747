# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""The filter certificate_requests: the certificate requests of the nodes of a play."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: certificate_requests
short_description: The certificate requests of the nodes of a play
version_added: 0.1.0
author:
  - The ted authors (@ted-distribution)
description:
  - Collects what M(ted.distribution.node) returned on each host, in the shape that M(ted.distribution.realm) takes.
  - The results are looked for under the name the role P(ted.distribution.node#role) registers, C(node_configured).
positional: hosts
options:
  _input:
    description: Ansible's C(hostvars).
    type: raw
    required: true
  hosts:
    description: The hosts of the play.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
---
- name: Who asks
  ansible.builtin.debug:
    msg: "{{ hostvars | ted.distribution.certificate_requests(ansible_play_hosts) }}"
"""

RETURN = r"""
---
_value:
  description: The requests, by host.
  type: dict
"""

from ansible_collections.ted.distribution.plugins.plugin_utils.inventory import certificate_requests


class FilterModule:
    """The certificate requests of the nodes of a play."""

    def filters(self):
        """Return the filter by its name."""
        return {"certificate_requests": certificate_requests}
