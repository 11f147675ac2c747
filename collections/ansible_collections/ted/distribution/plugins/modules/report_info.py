#!/usr/bin/python
# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: report_info
short_description: Read a report of a Distributor or node
version_added: 0.1.0
description:
  - Returns what C(ted report NAME) prints.
author:
  - The ted authors (@ted-distribution)
extends_documentation_fragment:
  - ted.distribution.common
  - ted.distribution.attributes.info
options:
  name:
    description:
      - Name of the report, as C(ted report) lists them.
    type: str
    required: true
"""

EXAMPLES = r"""
---
- name: Read a report
  ted.distribution.report_info:
    name: sends
  register: report
"""

RETURN = r"""
---
report:
  description: The report, as C(ted report NAME --json) prints it.
  returned: success
  type: raw
  sample: []
"""

from ansible_collections.ted.distribution.plugins.module_utils.ted_cli import Ted, ted_module


def main():
    module = ted_module(name={"type": "str", "required": True})
    said = Ted(module).ask("report", "--", module.params["name"])
    module.exit_json(changed=False, report=said)


if __name__ == "__main__":
    main()
