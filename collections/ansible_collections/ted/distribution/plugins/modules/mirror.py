#!/usr/bin/python
# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: mirror
short_description: Copy revisions to a dumb repository, take them from one, or check one
version_added: 0.1.0
description:
  - A mirror is a folder, or what a web server shows of one. It needs no ted and holds no secret.
  - Whoever pulls checks every byte against the Distributor's signature.
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
  url:
    description:
      - The repository. A path or C(file:), and for V(pulled) and V(checked) also C(http:) and C(https:).
    type: str
    required: true
  state:
    description:
      - V(pushed) copies what the mirror lacks to it, V(pulled) takes the newest revisions from it.
      - V(checked) reads all of it and fails if anything is not as signed.
    type: str
    choices: [pushed, pulled, checked]
    default: pushed
  name:
    description:
      - Names of the distributions. All when unset.
    type: list
    elements: str
    aliases: [distribution]
  distributor:
    description:
      - Whose distributions. This node when it is a Distributor, else the only one it trusts.
    type: str
"""

EXAMPLES = r"""
---
- name: Copy one distribution to a share
  ted.distribution.mirror:
    url: /mnt/share/ted
    name: dat

- name: Take it from a web server, on a Subscriber that no agent can reach
  ted.distribution.mirror:
    url: https://mirror.example.com/ted
    state: pulled
    name: dat
"""

RETURN = r"""
---
bytes:
  description: Bytes copied to the mirror, or that would be.
  returned: when pushed
  type: int
  sample: 20480
files:
  description: The files copied to the mirror, or that would be.
  returned: when pushed
  type: list
  elements: dict
  sample: []
distributions:
  description: What was taken from the mirror, or would be.
  returned: when pulled
  type: list
  elements: dict
  sample: []
"""

from ansible_collections.ted.distribution.plugins.module_utils.ted_cli import Ted, flag, names, option, ted_module

ACTIONS = {"pushed": "push", "pulled": "pull", "checked": "check"}


def main():
    module = ted_module(
        url={"type": "str", "required": True},
        state={"type": "str", "choices": list(ACTIONS), "default": "pushed"},
        name={"type": "list", "elements": "str", "aliases": ["distribution"]},
        distributor={"type": "str"},
    )
    ted, params = Ted(module), module.params
    ted.foretell_unset()
    # What checks only reads, whatever the mode.
    check = flag("--check", module.check_mode and params["state"] != "checked")
    words = option("--distributor", params["distributor"]) + check
    module.exit_json(**ted.ask("mirror", *words + ["--", ACTIONS[params["state"]], params["url"]] + names(params)))


if __name__ == "__main__":
    main()
