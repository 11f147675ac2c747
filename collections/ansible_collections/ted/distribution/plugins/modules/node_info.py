#!/usr/bin/python
# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: node_info
short_description: Read what a node knows about itself
version_added: 0.1.0
description:
  - Returns the version of ted, whether the agent runs, which Distributors are trusted, and which types are known.
author:
  - The ted authors (@ted-distribution)
extends_documentation_fragment:
  - ted.distribution.common
  - ted.distribution.attributes.info
"""

EXAMPLES = r"""
---
- name: What is on this node
  ted.distribution.node_info:
  register: node

- name: It can extract files
  ansible.builtin.assert:
    that: node.types | selectattr('name', 'eq', 'file') | map(attribute='available') | first
"""

RETURN = r"""
---
installed:
  description: Whether there is a C(ted) at all. The other values are missing when not.
  returned: success
  type: bool
  sample: true
executable:
  description: The program.
  returned: success
  type: str
  sample: /opt/ted/venv/bin/ted
config:
  description: The configuration directory.
  returned: success
  type: str
  sample: /etc/ted
version:
  description: Its version.
  returned: when installed
  type: str
  sample: 0.1.0
agent:
  description: What C(ted agent status) says.
  returned: when installed
  type: dict
  sample: {running: true}
trust:
  description: The Distributors this node trusts, as C(ted trust list) says.
  returned: when installed
  type: list
  elements: dict
  sample: []
types:
  description: The distribution types known here, with their options.
  returned: when installed
  type: list
  elements: dict
  sample: [{available: true, name: file}]
"""

from ansible_collections.ted.distribution.plugins.module_utils.ted_cli import Ted, ted_module


def version(module, ted):
    """Return the version C(ted --version) prints."""
    rc, out, dummy = module.run_command(ted.command()[:1] + ["--version"])
    return out.split()[-1] if rc == 0 and out.split() else None


def main():
    module = ted_module()
    ted = Ted(module)
    if ted.missing:
        module.exit_json(changed=False, installed=False, executable=None, config=ted.config)
    agent = ted.ask("agent", "status", tolerate=(10, 70))
    agent.pop("error", None)
    module.exit_json(
        changed=False,
        installed=True,
        executable=ted.executable,
        config=ted.config,
        version=version(module, ted),
        agent=agent,
        trust=ted.ask("trust", "list").get("distributors", []),
        types=ted.ask("types"),
    )


if __name__ == "__main__":
    main()
