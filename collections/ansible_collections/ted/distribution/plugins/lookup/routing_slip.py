# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""The lookup routing_slip: who passes what to whom."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: routing_slip
short_description: Who passes a channel's distributions to whom
version_added: 0.1.0
author:
  - The ted authors (@ted-distribution)
description:
  - Runs the controller's own C(ted routes) over the inventory of this play, so a play and a command never differ.
  - Needs C(ted) on the controller, beside the Python that runs Ansible or on its E(PATH).
options:
  _terms:
    description: Names of channels. All channels when there is none.
    type: list
    elements: str
  distributor:
    description: Only what this Distributor sends.
    type: str
  limit:
    description: Only the routes to these hosts.
    type: list
    elements: str
"""

EXAMPLES = r"""
---
- name: Show the path of everybody on a channel
  ansible.builtin.debug:
    msg: "{{ (lookup('ted.distribution.routing_slip', 'antivirus')).paths }}"

- name: Show what one Distributor sends, all channels
  ansible.builtin.debug:
    msg: "{{ query('ted.distribution.routing_slip', distributor='hq') }}"
"""

RETURN = r"""
---
_raw:
  description:
    - One item for each Distributor and channel, with C(distributor), C(channel), C(distributions), C(edges)
      (pairs of sender and receiver, sender first), C(paths) (by receiver) and C(warnings).
  type: list
  elements: dict
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase
from ansible_collections.ted.distribution.plugins.plugin_utils.inventory import plain, topology


def ted_of_controller():
    """Return the path of the C(ted) that belongs to this Ansible."""
    beside = os.path.join(os.path.dirname(sys.executable), "ted")
    found = beside if os.access(beside, os.X_OK) else shutil.which("ted")
    if not found:
        raise AnsibleError("routing_slip: no ted on the controller (looked for %s and on PATH)" % beside)
    return found


def routes(tree, words):
    """Return what C(ted routes) says about a tree."""
    with tempfile.TemporaryDirectory(prefix="ted-") as directory:
        path = os.path.join(directory, "topology.json")
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(tree, stream)
        command = [ted_of_controller(), "--json", "--inventory", path, "routes"] + words
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    try:
        said = json.loads(done.stdout)
    except ValueError as error:
        raise AnsibleError("routing_slip: ted routes said: %s" % (done.stderr.strip() or "nothing")) from error
    if "routes" not in said:
        raise AnsibleError("routing_slip: %s" % (said.get("error") or {}).get("message", done.stderr.strip()))
    return said["routes"]


class LookupModule(LookupBase):
    """Who passes what to whom."""

    def run(self, terms, variables=None, **kwargs):
        """Return one item for each Distributor and channel."""
        self.set_options(var_options=variables, direct=kwargs)
        words = []
        if self.get_option("distributor"):
            words += ["--distributor", str(self.get_option("distributor"))]
        if self.get_option("limit"):
            words += ["--limit", ",".join(plain(self.get_option("limit")))]
        tree = topology(variables["hostvars"], variables["groups"])
        if not terms:
            return routes(tree, words)
        return [slip for term in terms for slip in routes(tree, words + ["--channel", str(term)])]
