#!/usr/bin/python
# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: receive
short_description: Pull distributions from a Subscriber's parent now
version_added: 0.1.0
description:
  - Asks the parent for revisions this Subscriber lacks, and fetches them. Useful behind a firewall that lets
    nothing in.
  - Runs on a Subscriber.
author:
  - The ted authors (@ted-distribution)
extends_documentation_fragment:
  - ted.distribution.common
  - ted.distribution.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  name:
    description:
      - Names of the distributions. All it subscribes to when unset.
    type: list
    elements: str
    aliases: [distribution]
"""

EXAMPLES = r"""
---
- name: Fetch whatever is new
  ted.distribution.receive:

- name: Fetch one distribution
  ted.distribution.receive:
    name: dat
"""

RETURN = r"""
---
distributions:
  description: What happened to each distribution.
  returned: success
  type: list
  elements: dict
  sample:
    - {changed: true, distribution: dat, distributor: hq, revision: 20261122T125447123456Z, state: received}
"""

from ansible_collections.ted.distribution.plugins.module_utils.ted_cli import Ted, flag, lifted, names, ted_module


def main():
    module = ted_module(name={"type": "list", "elements": "str", "aliases": ["distribution"]})
    ted = Ted(module)
    ted.foretell_unset(distributions=[])
    said = ted.ask("receive", *(flag("--check", module.check_mode) + ["--"]) + names(module.params))
    module.exit_json(**lifted(said, "distributions", ("revision", "state", "bytes")))


if __name__ == "__main__":
    main()
