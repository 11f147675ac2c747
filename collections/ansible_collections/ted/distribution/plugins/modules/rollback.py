#!/usr/bin/python
# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rollback
short_description: Take a distribution back to an earlier revision on a Subscriber
version_added: 0.1.0
description:
  - Restores what was installed before the newest extraction, or before ted came, or the revision named.
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
    support: partial
    details: With O(revision) the second run reports no change. Without it each run goes back one revision further.
options:
  name:
    description:
      - Name of the distribution.
    type: str
    required: true
    aliases: [distribution]
  distributor:
    description:
      - The Distributor that owns the distribution. Needed only when two Distributors use the same name.
    type: str
  revision:
    description:
      - Go back to this revision. The one before the installed one when unset.
    type: str
"""

EXAMPLES = r"""
---
- name: Take back the newest revision
  ted.distribution.rollback:
    name: dat

- name: Go back to a certain one
  ted.distribution.rollback:
    name: dat
    revision: 20261120T020000000000Z
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
    option,
    ted_module,
    warn_of_skipped,
    with_diff,
)

INSTALLED = "is what is installed"


def main():
    module = ted_module(
        name={"type": "str", "required": True, "aliases": ["distribution"]},
        distributor={"type": "str"},
        revision={"type": "str"},
    )
    params = module.params
    ted = Ted(module)
    ted.foretell_unset(distributions=[])
    words = (
        ["rollback"]
        + option("--distributor", params["distributor"])
        + option("--revision", params["revision"])
        + flag("--check", module.check_mode)
        + flag("--diff", module._diff)  # noqa: SLF001
        + ["--", params["name"]]
    )
    said = ted.ask(*words, tolerate=(45,))
    error = said.get("error")
    if error and not (params["revision"] and INSTALLED in error["message"]):
        ted.fail(ted.command(*words), 45, said, "", "")
    elif error:
        # The command calls it a mistake to go where one is; a task that names a state has reached it.
        said = {
            "changed": False,
            "distributions": [dict(row, error=None, state="extracted") for row in said.get("distributions", [])],
        }
    warn_of_skipped(module, said)
    module.exit_json(**with_diff(module, lifted(said, "distributions", ("revision", "state", "actions"))))


if __name__ == "__main__":
    main()
