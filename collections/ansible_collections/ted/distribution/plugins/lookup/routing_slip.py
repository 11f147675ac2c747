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

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase
from ansible_collections.ted.distribution.plugins.plugin_utils.controller import ask_controller, ted_of_controller
from ansible_collections.ted.distribution.plugins.plugin_utils.inventory import plain, topology


def routes(tree, words):
    """Return what C(ted routes) says about a tree."""
    program = ted_of_controller()
    if not program:
        raise AnsibleError("routing_slip: no ted on the controller (looked beside its Python and on PATH)")
    said = ask_controller(program, tree, ["routes"] + words)
    if "routes" not in said:
        raise AnsibleError("routing_slip: %s" % (said.get("error") or {}).get("message", "ted routes failed"))
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
