# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""Options every module of this collection has. Paired with C(COMMON) in module_utils/ted_cli.py."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  config:
    description:
      - The node's configuration directory, where C(node.yml) lies.
      - The environment variable E(TED_CONFIG) of the target is used when this is unset.
    type: path
    default: /etc/ted
  executable:
    description:
      - The C(ted) program on the target.
      - When unset, C(/opt/ted/venv/bin/ted) is used if it is there, else C(ted) from the target's E(PATH).
    type: path
  timeout:
    description:
      - The seconds C(ted) may take. Then it is ended, and the task fails. V(0) sets no limit.
    type: int
    default: 3600
    version_added: 0.1.0
requirements:
  - ted on the target (the role P(ted.distribution.node#role) installs it)
notes:
  - The module runs the node's own C(ted ... --json) and passes on what it says, so a play and a command never differ.
  - O(config) and O(executable) can be set once for a play with C(module_defaults) and the action group
    C(group/ted.distribution.ted).
  - An error of C(ted) fails the task. Its message and its hint are RV(ignore:msg), its class is RV(ignore:error),
    its exit code is RV(ignore:rc).
seealso:
  - module: ted.distribution.node_info
"""

    # What a check goes by. Paired with C(FORETOLD) in module_utils/ted_cli.py.
    FORETOLD = r"""
options:
  topology:
    description:
      - In check mode, go by this tree (JSON, as the filter P(ted.distribution.topology#filter) returns it) and not by
        the one that is installed. So a check of F(playbooks/site.yml) foretells what a changed inventory leads to.
      - Without check mode the tree that is installed counts.
    type: json
"""
