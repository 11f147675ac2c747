#!/usr/bin/python
# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: trust
short_description: Place or remove a Distributor's root of trust on a node
version_added: 0.1.0
description:
  - A node takes content only from Distributors whose C(root.json) it holds. This is the step that TED calls
    resolving certificates.
  - The file is made by C(ted trust export) on the Distributor. It is public, but must reach the node unaltered.
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
  distributor:
    description:
      - Name of the Distributor.
    type: str
    required: true
  root:
    description:
      - The text of the Distributor's C(root.json). Required with O(state=present).
    type: str
  state:
    description:
      - Whether the Distributor shall be trusted.
    type: str
    choices: [present, absent]
    default: present
  force:
    description:
      - Replace the root that is held even by an older one or another Distributor's of the same name.
    type: bool
    default: false
"""

EXAMPLES = r"""
---
- name: Read the Distributor's root of trust
  ansible.builtin.command: ted --json trust export
  delegate_to: hq
  register: exported
  changed_when: false
  check_mode: false

- name: Trust the Distributor
  ted.distribution.trust:
    distributor: hq
    root: "{{ exported.stdout }}"

- name: Trust it no longer
  ted.distribution.trust:
    distributor: hq
    state: absent
"""

RETURN = r"""
---
distributor:
  description: The Distributor.
  returned: success
  type: str
  sample: hq
version:
  description: Version of the root that is held.
  returned: when it is trusted
  type: int
  sample: 1
"""

from ansible_collections.ted.distribution.plugins.module_utils.ted_cli import Ted, flag, ted_module, with_temporary


def main():
    module = ted_module(
        distributor={"type": "str", "required": True},
        root={"type": "str"},
        state={"type": "str", "choices": ["present", "absent"], "default": "present"},
        force={"type": "bool", "default": False},
        rules={"required_if": [("state", "present", ("root",))]},
    )
    ted, params = Ted(module), module.params
    check = flag("--check", module.check_mode)
    if params["state"] == "absent":
        module.exit_json(**ted.ask("trust", "remove", *check + ["--", params["distributor"]]))
    with with_temporary(module, params["root"]) as path:
        said = ted.ask(
            "trust",
            "import",
            "--distributor",
            params["distributor"],
            *check + flag("--force", params["force"]) + ["--", path],
        )
    module.exit_json(**said)


if __name__ == "__main__":
    main()
