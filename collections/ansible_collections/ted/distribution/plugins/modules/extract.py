#!/usr/bin/python
# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: extract
short_description: Install a received revision on a Subscriber
version_added: 0.1.0
description:
  - Applies the newest complete revision (or the one named) inside one transaction. A failure leaves what was
    there before.
  - A distribution whose type is not installed on the host is V(skipped), with a warning. The task does not fail, since
    the host passes it on all the same.
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
    support: full
  idempotent:
    support: full
options:
  name:
    description:
      - Names of the distributions. All that were received when unset.
    type: list
    elements: str
    aliases: [distribution]
  distributor:
    description:
      - The Distributor that owns the distribution. Needed only when two Distributors use the same name.
    type: str
  revision:
    description:
      - The revision's time stamp. The newest complete one when unset.
    type: str
  force:
    description:
      - Apply it even when it is the one that is installed, so that drift is repaired.
    type: bool
    default: false
"""

EXAMPLES = r"""
---
- name: Install everything that was received
  ted.distribution.extract:

- name: Install one revision of one distribution
  ted.distribution.extract:
    name: dat
    revision: 20261122T125447123456Z
"""

RETURN = r"""
---
distributions:
  description: What happened to each distribution.
  returned: success
  type: list
  elements: dict
  contains:
    distributor:
      description: The Distributor that owns it.
      type: str
      returned: always
    distribution:
      description: Its name.
      type: str
      returned: always
    revision:
      description: The revision that is (or would be) installed.
      type: str
      returned: always
    state:
      description: V(extracted), V(skipped), V(failed) or V(rolled_back).
      type: str
      returned: always
    changed:
      description: Whether anything in the target was changed (or would be).
      type: bool
      returned: always
    actions:
      description: How many files were written, deleted and so on.
      type: dict
      returned: always
    things:
      description: >-
        What became of things that are no files, such as packages: dictionaries with C(name), C(what) (V(installed),
        V(upgraded), V(unchanged) and so on), and the versions C(before) and C(after).
      type: list
      elements: dict
      returned: always
    error:
      description: Why it failed.
      type: dict
      returned: always
    reason:
      description: Why it was skipped.
      type: str
      returned: always
    hint:
      description: What to do that it is not skipped, where its type is missing on the host; a warning says it too.
      type: str
      returned: always
  sample:
    - actions: {deleted: 1, written: 2}
      changed: true
      distribution: dat
      distributor: hq
      error: null
      revision: 20261122T125447123456Z
      state: extracted
revision:
  description: The revision, when exactly one distribution was concerned.
  returned: when one distribution was concerned
  type: str
  sample: 20261122T125447123456Z
state:
  description: The state, when exactly one distribution was concerned.
  returned: when one distribution was concerned
  type: str
  sample: extracted
"""

from ansible_collections.ted.distribution.plugins.module_utils.ted_cli import (
    Ted,
    flag,
    lifted,
    names,
    option,
    ted_module,
    warn_of_skipped,
    with_diff,
)


def main():
    module = ted_module(
        name={"type": "list", "elements": "str", "aliases": ["distribution"]},
        distributor={"type": "str"},
        revision={"type": "str"},
        force={"type": "bool", "default": False},
    )
    params = module.params
    ted = Ted(module)
    ted.foretell_unset(distributions=[])
    said = ted.ask(
        "extract",
        *option("--distributor", params["distributor"])
        + option("--revision", params["revision"])
        + flag("--force", params["force"])
        + flag("--check", module.check_mode)
        + flag("--diff", module._diff)  # noqa: SLF001
        + ["--"]
        + names(params),
    )
    warn_of_skipped(module, said)
    module.exit_json(**with_diff(module, lifted(said, "distributions", ("revision", "state", "actions"))))


if __name__ == "__main__":
    main()
