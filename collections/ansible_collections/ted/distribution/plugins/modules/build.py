#!/usr/bin/python
# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: build
short_description: Build a revision of a distribution on its Distributor
version_added: 0.1.0
description:
  - Gathers what the distribution's type says, and signs and publishes a new revision if anything changed.
  - Runs on the Distributor that owns the distribution.
author:
  - The ted authors (@ted-distribution)
extends_documentation_fragment:
  - ted.distribution.common
  - ted.distribution.common.foretold
  - ted.distribution.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details: Revision and counts of each distribution that is built, or would be.
  idempotent:
    support: full
    details: An unchanged source gives no new revision.
options:
  name:
    description:
      - Names of the distributions. All active distributions of this Distributor when unset.
    type: list
    elements: str
    aliases: [distribution]
  force:
    description:
      - Make a new revision even if nothing changed.
    type: bool
    default: false
"""

EXAMPLES = r"""
---
- name: Build everything this Distributor owns
  ted.distribution.build:

- name: Build one distribution
  ted.distribution.build:
    name: dat
  register: built

- name: Say what was built
  ansible.builtin.debug:
    msg: "{{ built.revision }} holds {{ built.bytes }} new bytes"
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
      description: The newest revision's time stamp after the build, or the one it would be based on in check mode.
      type: str
      returned: always
    changed:
      description: Whether a new revision was made (or would be).
      type: bool
      returned: always
    bytes:
      description: Size of the new pack, in bytes. V(0) when nothing changed.
      type: int
      returned: always
    patch_bytes:
      description: Size of the patch from the revision before, in bytes; none where there is none.
      type: int
      returned: always
    former:
      description: The revision that was the newest one before; none before the first.
      type: str
      returned: always
    frames:
      description: Frames that no earlier revision holds.
      type: int
      returned: always
    files:
      description: Files in the revision.
      type: int
      returned: always
    content_bytes:
      description: Size of the content as it will lie on a Subscriber, in bytes.
      type: int
      returned: always
    duration_s:
      description: How long the build took, in seconds.
      type: float
      returned: always
    warnings:
      description: What the build came across, such as damage in what is stored. Each is a warning of the task as well.
      type: list
      elements: str
      returned: always
  sample:
    - bytes: 20480
      changed: true
      content_bytes: 67108864
      distribution: dat
      distributor: hq
      duration_s: 1.2
      files: 214
      former: 20261121T090000000000Z
      frames: 3
      patch_bytes: 532
      revision: 20261122T125447123456Z
      warnings: []
revision:
  description: The revision, when exactly one distribution was named.
  returned: when one distribution was built
  type: str
  sample: 20261122T125447123456Z
bytes:
  description: Size of the new pack in bytes, when exactly one distribution was named.
  returned: when one distribution was built
  type: int
  sample: 20480
frames:
  description: New frames, when exactly one distribution was named.
  returned: when one distribution was built
  type: int
  sample: 3
duration_s:
  description: Seconds the build took, when exactly one distribution was named.
  returned: when one distribution was built
  type: float
  sample: 1.2
"""

from ansible_collections.ted.distribution.plugins.module_utils.ted_cli import (
    FORETOLD,
    Ted,
    flag,
    foretold_tree,
    lifted,
    names,
    ted_module,
)

COUNTS = {"files": "files", "content_bytes": "content_bytes", "frames": "frames", "bytes": "bytes of new content",
          "patch_bytes": "bytes of the patch"}
"""Keys of a row, and what --diff calls them."""


def diff_of(row):
    """Return what --diff shows of one distribution that is built, or would be."""
    name, check = row["distribution"], row.get("check")
    before, after = row.get("revision" if check else "former") or "none", "a new one" if check else row["revision"]
    lines = ["revision: %s" % after]
    lines += ["%s: %s" % (words, row[key]) for key, words in COUNTS.items() if row.get(key) is not None]
    return {
        "before_header": name,
        "after_header": name,
        "before": "revision: %s\n" % before,
        "after": "\n".join(lines) + "\n",
    }


def main():
    module = ted_module(
        name={"type": "list", "elements": "str", "aliases": ["distribution"]},
        force={"type": "bool", "default": False},
        **FORETOLD,
    )
    ted = Ted(module)
    ted.foretell_unset(distributions=[])
    tree, given = foretold_tree(module)
    options = flag("--check", module.check_mode) + flag("--force", module.params["force"])
    said = ted.ask(*tree, "build", *options, "--", *names(module.params), **given)
    result = lifted(said, "distributions", ("revision", "bytes", "frames", "files", "content_bytes", "duration_s"))
    for row in said.get("distributions") or []:
        for warning in row.get("warnings") or []:
            module.warn("%s: %s" % (row["distribution"], warning))
    if module._diff:  # noqa: SLF001
        result["diff"] = [diff_of(row) for row in said.get("distributions") or [] if row.get("changed")]
    module.exit_json(**result)


if __name__ == "__main__":
    main()
