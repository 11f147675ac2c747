#!/usr/bin/python
# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: node
short_description: Make a node's configuration, key and trust look as described
version_added: 0.1.0
description:
  - Writes C(node.yml), on a Distributor C(topology.json), makes the node's key and certificate request, on a
    Distributor its signing keys, and places the certificate and the roots of trust that are given. All in one run,
    because each module run costs the line to the node as much as a small distribution.
  - Private keys are made on the node and never leave it.
  - A tree that C(ted check) refuses is not placed. The former one stays.
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
    details:
      - Of C(node.yml) and C(topology.json). Values below C(variables), values whose name looks like that of a secret,
        and passwords in addresses are not shown; that one of them changes is.
  idempotent:
    support: full
options:
  name:
    description:
      - The node's inventory name.
    type: str
    required: true
  working_directory:
    description:
      - Where revisions and state are kept. It is made when missing.
    type: path
    default: /var/lib/ted
  settings:
    description:
      - The text of C(node.yml), as the filter P(ted.distribution.node_settings#filter) and C(to_nice_yaml) give it.
      - Left alone when unset.
    type: str
  topology:
    description:
      - The tree, as the filter P(ted.distribution.topology#filter) gives it, in JSON. Makes this node a Distributor.
    type: json
  addresses:
    description:
      - Addresses the certificate is asked for. No key and no request is made when unset (plain HTTP in a
        trusted network).
    type: list
    elements: str
  certificate:
    description:
      - The node's certificate in PEM, as M(ted.distribution.realm) issued it.
    type: str
  authority:
    description:
      - The certificate of the realm's authority in PEM.
    type: str
  roots:
    description:
      - The roots of trust, C(root.json) as text, by Distributor. Others that are held are left alone.
    type: dict
    default: {}
  owner:
    description:
      - The user the agent runs as, when it is not the one this module runs as.
    type: str
"""

EXAMPLES = r"""
---
- name: Write what this node must know
  ted.distribution.node:
    name: "{{ inventory_hostname }}"
    settings: "{{ hostvars | ted.distribution.node_settings(groups, inventory_hostname) | to_nice_yaml }}"
    addresses: ["{{ ansible_host }}"]
  register: node

- name: Place the certificate
  ted.distribution.node:
    name: "{{ inventory_hostname }}"
    certificate: "{{ issued.certificates[inventory_hostname] }}"
    authority: "{{ issued.authority }}"
  when: node.renew
"""

RETURN = r"""
---
request:
  description: The certificate request in PEM. V(null) when there is none (yet).
  returned: success
  type: str
  sample: null
renew:
  description: Whether the node needs a (new) certificate.
  returned: success
  type: bool
  sample: false
authority:
  description: SHA-256 of the authority's certificate that is held, or an empty text.
  returned: success
  type: str
  sample: ""
root:
  description: This Distributor's own root of trust, as text. V(null) on other nodes.
  returned: success
  type: str
  sample: null
roots:
  description: SHA-256 of each root of trust that is held, by Distributor.
  returned: success
  type: dict
  sample: {}
outdated:
  description: Whether a running agent must be started anew for it. Rates and the like it takes over by itself.
  returned: success
  type: bool
  sample: false
written:
  description: What was changed, or would be.
  returned: success
  type: list
  elements: str
  sample: [node.yml]
"""

import grp
import hashlib
import json
import os
import pwd
import re
import stat
import time

from ansible_collections.ted.distribution.plugins.module_utils.secrets import SECRET
from ansible_collections.ted.distribution.plugins.module_utils.ted_cli import (
    Ted,
    flag,
    modified,
    read_text,
    ted_module,
    with_temporary,
    write_private,
)

# A certificate lives 825 days; a new one is asked for in the last third. The authority decides.
RENEW_AFTER_S = 550 * 86400
# A running agent takes these over by itself.
LIMITS = ("input_rate", "output_rates", "max_concurrent", "fill_spare_slots")
VARIABLES = ("variables", "ted_variables")
IN_ADDRESS = re.compile(r"(?<=://)\S*@")
TOP = re.compile(r"([A-Za-z_]+):(?=\s)")
WRITTEN_BY = "# Written by the role ted.distribution.node.\n"
HIDDEN = "(not shown)"


class Place:
    """One configuration directory: what is there, what was changed."""

    def __init__(self, module):
        self.module = module
        self.config = module.params["config"]
        self.texts = take_secrets(module)
        self.written = []
        self.outdated = False
        self.diffs = []

    def path(self, *parts):
        """Return the path of a part."""
        return os.path.join(self.config, *parts)

    def read(self, *parts):
        """Return a part's text, or None."""
        return read_text(self.path(*parts))

    def mode(self, *parts):
        """Return the permissions of a part that is there."""
        return stat.S_IMODE(os.stat(self.path(*parts)).st_mode)

    def directory(self, path, mode):
        """Make a directory unless it is there."""
        if os.path.isdir(path):
            return
        self.written.append(path)
        if not self.module.check_mode:
            os.makedirs(path, mode)

    def text(self, parts, text, mode=0o600, shown=True):
        """Make a part's text be C(text); return whether it was not."""
        before = self.read(*parts)
        if before == text and self.mode(*parts) == mode:
            return False
        self.written.append("/".join(parts))
        if shown:
            before_shown, after_shown = masked_pair(before or "", text)
            self.diffs.append(
                {
                    "before_header": self.path(*parts),
                    "after_header": self.path(*parts),
                    "before": before_shown,
                    "after": after_shown,
                }
            )
        if not self.module.check_mode:
            os.makedirs(os.path.dirname(self.path(*parts)), 0o750, exist_ok=True)
            write_private(self.path(*parts), text, mode)
        return True


def take_secrets(module):
    """Take the texts that may hold a password out of what is reported, and lay out the tree for people.

    C(no_log) would hide a whole file in C(--diff); here each line is judged by itself.
    """
    taken = {}
    for name in ("settings", "topology"):
        text = module.params[name]
        if text is not None:
            module.no_log_values.discard(text)
            module.params[name] = "(not shown)"
            taken[name] = text
    if "topology" in taken:
        taken["topology"] = json.dumps(json.loads(taken["topology"]), indent=1, sort_keys=True) + "\n"
    return taken


def masked_pair(before, after):
    """Return two texts, of JSON or of C(node.yml), without their secrets; one that differs is marked in the second."""
    try:
        old, new = json.loads(before or "null"), json.loads(after)
    except ValueError:
        return masked_lines(before, before), masked_lines(after, before)
    return masked_json(old, old), masked_json(new, old)


def masked_json(value, former):
    """Return a parsed tree as lines for people."""
    return json.dumps(masked(value, former), indent=1, sort_keys=True) + "\n" if value is not None else ""


def masked(value, former, hide=False):
    """Return parsed settings with each secret leaf replaced; C(former) is what stood at the same place before."""
    if isinstance(value, dict):
        known = former if isinstance(former, dict) else {}
        return {
            key: masked(item, known.get(key), hide or key in VARIABLES or bool(SECRET.search(key)))
            for key, item in value.items()
        }
    if isinstance(value, list):
        known = former if isinstance(former, list) else []
        return [masked(item, known[at] if at < len(known) else None, hide) for at, item in enumerate(value)]
    if hide:
        clear = HIDDEN
    elif isinstance(value, str):
        clear = IN_ADDRESS.sub(HIDDEN + "@", value)
    else:
        clear = value
    return clear if clear is value or clear == value or value == former else "%s, changed" % clear


def masked_lines(text, former):
    """Return a text of YAML with each setting that is, or holds, a secret replaced: no YAML is needed on the host."""
    known = dict(settings_in(former))
    lines = []
    for name, block in settings_in(text):
        if name is None or name in VARIABLES or SECRET.search(block):
            clear = "%s: %s\n" % (name or "(other lines)", HIDDEN)
        else:
            clear = IN_ADDRESS.sub(HIDDEN + "@", block)
        if clear != block and known.get(name) != block:
            clear = clear.rstrip("\n") + ", changed\n"
        lines.append(clear)
    return "".join(lines)


def settings_in(text):
    """Return C((name, lines)) of each setting at the top of a text of YAML; the name of anything else is None."""
    blocks = []
    for line in text.splitlines(True):
        found = TOP.match(line)
        if found:
            blocks.append([found.group(1), line])
        elif line == WRITTEN_BY:
            blocks.append(["#", line])
        elif blocks and blocks[-1][0] != "#" and line[0] in " -\n":
            blocks[-1][1] += line
        else:
            blocks.append([None, line])
    return [(name, block) for name, block in blocks]


def but_limits(text):
    """Return the settings in a text that an agent reads only when it starts."""
    return [item for item in settings_in(text) if item[0] not in LIMITS]


def digest(text):
    """Return the SHA-256 of a text, or nothing of nothing."""
    return hashlib.sha256(text.encode()).hexdigest() if text else ""


def write_settings(place, ted):
    """Write the settings and the tree; the tree is checked before it replaces the former one."""
    params = place.module.params
    place.directory(place.config, 0o750)
    place.directory(params["working_directory"], 0o750)
    if "settings" in place.texts:
        text = WRITTEN_BY + place.texts["settings"]
        place.outdated = but_limits(place.read("node.yml") or "") != but_limits(text)
        place.text(("node.yml",), text)
    if "topology" in place.texts:
        if place.read("topology.json") != place.texts["topology"] and not ted.missing:
            check_tree(place.module, ted, place.texts["topology"])
        place.text(("topology.json",), place.texts["topology"])


def check_tree(module, ted, topology):
    """Fail with every problem of a tree."""
    with with_temporary(module, topology, suffix=".json") as path:
        said = ted.ask("--inventory", path, "check", tolerate=(11,))
    problems = said.get("problems") or (said.get("error") or {}).get("problems") or []
    if problems or said.get("ok") is False or "error" in said:
        lines = ["%s %s: %s" % (one.get("host"), one.get("variable"), one.get("message")) for one in problems]
        message = "; ".join(lines) or (said.get("error") or {}).get("message", "the inventory is not valid")
        module.fail_json(msg="the inventory is not valid: " + message, problems=problems)


def make_keys(place, ted):
    """Make the node's key and request, and a Distributor's signing keys; return C((request, renew, root))."""
    params = place.module.params
    root, request, renew = None, None, False
    check = flag("--check", place.module.check_mode)
    if "topology" in place.texts:
        root = distributor_root(place, ted, check)
    if params["addresses"] is not None and params["certificate"] is None:
        request, changed = node_request(place, ted, check)
        age = modified(place.path("realm", "node.pem"))
        lacking = age is None or place.read("realm", "ca.pem") is None
        renew = changed or lacking or time.time() - age > RENEW_AFTER_S
    return request, renew, root


def node_request(place, ted, check):
    """Return the certificate request and whether it is new."""
    params = place.module.params
    if ted.missing:
        place.written.append("realm/node.csr")
        return None, True
    addresses = [word for address in params["addresses"] for word in ("--address", address)]
    said = ted.ask("realm", "request", *check + addresses + ["--", params["name"]])
    if said["changed"]:
        place.written.append("realm/node.csr")
    return said.get("csr"), said["changed"]


def distributor_root(place, ted, check):
    """Return the Distributor's root of trust; its keys are made the first time."""
    params = place.module.params
    if ted.missing:
        place.written.append("keys")
        return None
    where = ["--distributor", params["name"], "--working-directory", params["working_directory"]]
    said = ted.ask("keys", "create", *check + where)
    if said["changed"]:
        place.written.append("keys")
    return said.get("root")


def place_trust(place, ted):
    """Place the certificate and the roots that were given."""
    params = place.module.params
    if params["authority"] is not None:
        place.text(("realm", "ca.pem"), params["authority"], 0o644, shown=False)
    if params["certificate"] is not None and place.text(
        ("realm", "node.pem"), params["certificate"], 0o644, shown=False
    ):
        place.written[-1] = "realm/node.pem"
    elif params["certificate"] is not None and not place.module.check_mode:
        os.utime(place.path("realm", "node.pem"))  # it was asked for, and still serves
    for distributor, root in sorted(params["roots"].items()):
        if ted.missing or place.read("trust", distributor, "root.json") == root:
            continue
        with with_temporary(place.module, root) as path:
            check = flag("--check", place.module.check_mode)
            said = ted.ask("trust", "import", "--distributor", distributor, *check + ["--", path])
        if said["changed"]:
            place.written.append("trust/%s/root.json" % distributor)


def held_roots(place):
    """Return the digest of each root of trust that is held."""
    try:
        names = sorted(os.listdir(place.path("trust")))
    except OSError:
        names = []
    found = {name: digest(place.read("trust", name, "root.json")) for name in names}
    return {name: value for name, value in found.items() if value}


def give(place):
    """Make everything in the configuration, and the working directory itself, the agent's.

    A working directory that was somebody else's until now is handed over with what was received; what root installed,
    and how to undo it, stays root's. Its top comes last: after a kill the next run hands over what is left.
    """
    owner = place.module.params["owner"]
    if not owner or place.module.check_mode:
        return
    try:
        user = pwd.getpwnam(owner)
        grp.getgrgid(user.pw_gid)
    except KeyError:
        place.module.fail_json(msg="there is no user %s on this host" % owner)
    working = place.module.params["working_directory"]
    paths = [os.path.join(working, ".ted"), os.path.join(working, place.module.params["name"])]
    for top, dirs, files in os.walk(place.config):
        paths += [top] + [os.path.join(top, name) for name in dirs + files]
    for top, dirs, files in os.walk(os.path.join(working, place.module.params["name"], ".catalog")):
        paths += [top] + [os.path.join(top, name) for name in files]
    if os.path.lexists(working) and os.lstat(working).st_uid != user.pw_uid:
        for top, dirs, files in os.walk(working):
            if top == os.path.join(working, ".ted"):
                dirs[:] = [name for name in dirs if name not in ("installed", "transactions")]
            paths += [os.path.join(top, name) for name in dirs + files]
    for path in paths + [working]:
        if os.path.lexists(path) and os.lstat(path).st_uid != user.pw_uid:
            os.lchown(path, user.pw_uid, user.pw_gid)
            place.written.append(path)


def main():
    module = ted_module(
        name={"type": "str", "required": True},
        working_directory={"type": "path", "default": "/var/lib/ted"},
        settings={"type": "str", "no_log": True},
        topology={"type": "json", "no_log": True},
        addresses={"type": "list", "elements": "str"},
        certificate={"type": "str"},
        authority={"type": "str"},
        roots={"type": "dict", "default": {}},
        owner={"type": "str"},
    )
    ted, place = Ted(module), Place(module)
    if ted.missing and not module.check_mode:
        ted.command()
    write_settings(place, ted)
    request, renew, root = make_keys(place, ted)
    place_trust(place, ted)
    give(place)
    result = {
        "changed": bool(place.written),
        "written": place.written,
        "outdated": place.outdated,
        "request": request,
        "renew": renew,
        "authority": digest(place.read("realm", "ca.pem")),
        "root": root,
        "roots": held_roots(place),
    }
    if module._diff and place.diffs:  # noqa: SLF001
        result["diff"] = place.diffs
    module.exit_json(**result)


if __name__ == "__main__":
    main()
