#!/usr/bin/python
# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: realm
short_description: Issue the certificates of a realm's nodes
version_added: 0.1.0
description:
  - Makes the realm's authority the first time, and issues a certificate for each request that is given.
  - Runs on the host that holds the authority, once for all nodes. The role P(ted.distribution.node#role) uses
    the first
    Distributor.
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
    details: A certificate that still serves is given again, not issued anew.
options:
  realm:
    description:
      - Name of the realm.
    type: str
    default: ted
  requests:
    description:
      - By node, a mapping with C(request) (in PEM), C(renew) (whether it needs a certificate) and C(authority)
        (SHA-256 of the authority's certificate it holds), as M(ted.distribution.node) returns them.
      - A node that holds this authority's certificate and needs no new one is passed over.
    type: dict
    default: {}
"""

EXAMPLES = r"""
---
- name: Issue what is asked for
  ted.distribution.realm:
    realm: shops
    requests:
      s01:
        request: "{{ hostvars.s01.node.request }}"
        renew: "{{ hostvars.s01.node.renew }}"
        authority: "{{ hostvars.s01.node.authority }}"
  delegate_to: hq
  run_once: true
  register: issued
"""

RETURN = r"""
---
authority:
  description: The authority's certificate in PEM. V(null) in check mode before the authority is made.
  returned: success
  type: str
  sample: null
certificates:
  description: The certificates in PEM, by node. V(null) for those that would be issued, in check mode.
  returned: success
  type: dict
  sample: {}
issued:
  description: The nodes whose certificate is new.
  returned: success
  type: list
  elements: str
  sample: []
"""

import hashlib

from ansible_collections.ted.distribution.plugins.module_utils.ted_cli import Ted, flag, ted_module


def lacking(requests, authority):
    """Return the requests of those nodes that need a certificate of this authority."""
    mine = hashlib.sha256(authority.encode()).hexdigest() if authority else None
    return {node: one for node, one in sorted(requests.items()) if one.get("renew") or one.get("authority") != mine}


def main():
    module = ted_module(
        realm={"type": "str", "default": "ted"},
        requests={"type": "dict", "default": {}},
    )
    ted, check = Ted(module), flag("--check", module.check_mode)
    if ted.missing and module.check_mode:
        wanted = sorted(module.params["requests"])
        module.exit_json(changed=True, authority=None, certificates=dict.fromkeys(wanted), issued=wanted)
    made = ted.ask("realm", "create", *check + ["--", module.params["realm"]])
    authority, certificates, issued = made.get("ca"), {}, []
    for node, one in lacking(module.params["requests"], authority).items():
        if not one.get("request") or not authority:
            certificates[node] = None
            issued.append(node)
            continue
        said = ted.ask("realm", "issue", "--csr", "-", *check + ["--", node], stdin=one["request"])
        certificates[node] = said.get("certificate")
        if said["changed"]:
            issued.append(node)
    module.exit_json(
        changed=bool(made["changed"] or issued), authority=authority, certificates=certificates, issued=issued
    )


if __name__ == "__main__":
    main()
