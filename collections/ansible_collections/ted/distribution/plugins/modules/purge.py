#!/usr/bin/python
# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: purge
short_description: Remove orphaned distributions and old revisions from a node
version_added: 0.1.0
description:
  - Removes what no kept revision needs and what no longer belongs to any distribution the node receives or owns.
  - A revision that is installed or being sent is never removed.
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
"""

EXAMPLES = r"""
---
- name: Remove what nobody needs any more
  ted.distribution.purge:
"""

RETURN = r"""
---
removed:
  description: What was removed, or would be in check mode.
  returned: success
  type: list
  elements: dict
  sample: []
bytes:
  description: Space this frees, in bytes.
  returned: success
  type: int
  sample: 0
"""

from ansible_collections.ted.distribution.plugins.module_utils.ted_cli import Ted, flag, ted_module


def main():
    module = ted_module()
    module.exit_json(**Ted(module).ask("purge", *flag("--apply", not module.check_mode)))


if __name__ == "__main__":
    main()
