#!/usr/bin/python
# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: distribution_info
short_description: Read the state of distributions as a node knows it
version_added: 0.1.0
description:
  - On a Distributor, what is where. One row for each node and distribution.
  - On a Subscriber, its own rows.
author:
  - The ted authors (@ted-distribution)
extends_documentation_fragment:
  - ted.distribution.common
  - ted.distribution.attributes.info
options:
  name:
    description:
      - Names of the distributions. All when unset.
    type: list
    elements: str
    aliases: [distribution]
  distributor:
    description:
      - Only distributions of this Distributor.
    type: str
  node:
    description:
      - Only rows of these nodes.
    type: list
    elements: str
"""

EXAMPLES = r"""
---
- name: Who has what
  ted.distribution.distribution_info:
    name: dat
  register: info

- name: Everybody has it
  ansible.builtin.assert:
    that: info.status | rejectattr('state', 'in', ['received', 'extracted']) | length == 0
"""

RETURN = r"""
---
status:
  description: One row for each node and distribution, as C(ted status) prints them.
  returned: success
  type: list
  elements: dict
  sample:
    - at: "2026-11-22T12:54:47Z"
      distribution: dat
      distributor: hq
      error: null
      installed: 20261122T125447123456Z
      node: s01
      revision: 20261122T125447123456Z
      state: extracted
states:
  description: How many rows are in each state.
  returned: success
  type: dict
  sample: {extracted: 1}
"""

from ansible_collections.ted.distribution.plugins.module_utils.ted_cli import Ted, names, ted_module


def wanted(row, params):
    """Say whether C(row) is one the task asked for."""
    return (
        (not params["name"] or row.get("distribution") in names(params))
        and (not params["distributor"] or row.get("distributor") == params["distributor"])
        and (not params["node"] or row.get("node") in params["node"])
    )


def main():
    module = ted_module(
        name={"type": "list", "elements": "str", "aliases": ["distribution"]},
        distributor={"type": "str"},
        node={"type": "list", "elements": "str"},
    )
    rows = [row for row in Ted(module).ask("status") if wanted(row, module.params)]
    counts = {}
    for row in rows:
        counts[row.get("state")] = counts.get(row.get("state"), 0) + 1
    module.exit_json(changed=False, status=rows, states=counts)


if __name__ == "__main__":
    main()
