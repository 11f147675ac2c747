#!/usr/bin/python
# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: send
short_description: Send distributions down the tree and show the progress
version_added: 0.1.0
description:
  - Offers the newest revision of each distribution to the first tier. Every parent passes it on while it still
    receives.
  - Runs on the Distributor, once, whatever the number of Subscribers.
  - An action plugin of the same name starts the send and then asks the Distributor for its progress over the
    same connection. No further module is run, and no fork is held on any Subscriber.
  - In check mode it returns the bytes each link would carry, and sends nothing.
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
    support: none
    details: The bytes of each link are in the result.
  idempotent:
    support: full
    details: Receivers that have the revision are not offered it again.
options:
  name:
    description:
      - Names of the distributions. All active distributions of this Distributor when unset.
    type: list
    elements: str
    aliases: [distribution]
  channel:
    description:
      - Send on this channel only.
    type: str
  revision:
    description:
      - Send this revision and not the newest. Needs exactly one O(name).
    type: str
  limit:
    description:
      - Send only to these Subscribers. The relays on the way to them take part, others do not.
    type: list
    elements: str
  ends_at:
    description:
      - End of the window of the send.
      - A time of day on the Distributor (V(05:00)), a duration (V(2h)), or a date and time.
      - What is not received by then waits for the next send, and goes on where it stopped.
    type: str
    aliases: [until]
  wait:
    description:
      - Follow the send until every receiver has it, is given up, or O(timeout) is over.
      - With V(false) the task ends as soon as the send is on its way. It goes on without Ansible.
    type: bool
    default: true
  timeout:
    description:
      - How long to wait, in seconds. The send itself goes on afterwards, with the node's own retries.
    type: int
    default: 3600
  interval:
    description:
      - The longest pause between two looks at the progress, in seconds.
      - Without it 5 on a terminal and 20 elsewhere, where nobody sees a line redrawn. The end is seen at once anyway.
    type: int
  watch:
    description:
      - Do not send. Follow the sends with these identities (RV(sends[].send) of a task with O(wait=false)).
    type: list
    elements: str
  allow_incomplete:
    description:
      - Do not fail when a receiver does not have it in the end. RV(incomplete) names those that do not.
    type: bool
    default: false
  built:
    description:
      - In check mode, what the check of M(ted.distribution.build) foretold on this Distributor, RV(sends) being those
        after that build. What would be built has no RV(sends[].revision) yet; its bytes are the most a link carries.
      - Counts for nothing without check mode, and when O(revision) names another one.
    type: list
    elements: dict
"""

EXAMPLES = r"""
---
- name: Send everything to everybody who subscribes
  ted.distribution.send:

- name: Send one distribution on one channel to two Subscribers
  ted.distribution.send:
    name: dat
    channel: antivirus
    limit: [s03, s04]
    timeout: 600

- name: Send until five in the morning, the rest another night
  ted.distribution.send:
    channel: antivirus
    ends_at: "05:00"
    allow_incomplete: true

- name: Start a send and go on with the play
  ted.distribution.send:
    name: dat
    wait: false
  register: started

- name: Follow it later
  ted.distribution.send:
    watch: "{{ started.sends | map(attribute='send') }}"
"""

RETURN = r"""
---
sends:
  description:
    - One item for each distribution and channel.
    - Of a send that fails since a receiver does not have it, an item holds who lacks it (C(incomplete)) and why
      (C(errors)) in place of C(edges), C(states) and C(duration_s).
  returned: always
  type: list
  elements: dict
  contains:
    send:
      description: Identity of the send, for O(watch). Empty in check mode.
      type: str
      returned: always
    distribution:
      description: The distribution's name.
      type: str
      returned: always
    channel:
      description: The channel it goes out on.
      type: str
      returned: always
    revision:
      description: The revision that is sent. Empty in check mode when it is still to be built.
      type: str
      returned: always
    changed:
      description: Whether any receiver lacked it.
      type: bool
      returned: always
    bytes:
      description: Bytes over all links, in bytes.
      type: int
      returned: always
    edges:
      description: Every link of the routing slip and what crosses it, C(sender), C(receiver), C(bytes).
      type: list
      elements: dict
      returned: always
    states:
      description: The state of each receiver, as in C(ted status).
      type: dict
      returned: always
    unasked:
      description:
        - Receivers that the Distributor, or who was to pass it on, could not reach, and that had the revision when
          they were last heard of. They count as having it; a warning tells why they could not be asked.
      type: list
      elements: str
      returned: when there is a send
    duration_s:
      description: Seconds from the first offer to the last receiver.
      type: float
      returned: always
  sample:
    - bytes: 40960
      changed: true
      channel: antivirus
      distribution: dat
      duration_s: 3.1
      edges:
        - {bytes: 20480, receiver: s01, sender: hq}
        - {bytes: 20480, receiver: e01, sender: s01}
      revision: 20261122T125447123456Z
      send: "12"
      states: {e01: received, s01: received}
bytes:
  description: Bytes over all links of all sends.
  returned: success
  type: int
  sample: 40960
incomplete:
  description: Receivers that do not have it, with their state, by distribution.
  returned: success
  type: dict
  sample: {}
executable:
  description: The C(ted) that was used.
  returned: success
  type: str
  sample: /opt/ted/venv/bin/ted
config:
  description: The configuration directory that was used.
  returned: success
  type: str
  sample: /etc/ted
"""

from ansible_collections.ted.distribution.plugins.module_utils.ted_cli import (
    FORETOLD,
    Ted,
    flag,
    foretold_tree,
    names,
    option,
    ted_module,
)

# Here C(timeout) is for the whole way down the tree; the process that starts or foretells it has this long at least.
START_LIMIT_S = 600
# A send that finds everything there is over by then, and needs no further look.
FIRST_LOOK_S = 1


def words(params, check_mode):
    """Return the words that start (or foretell) the send; waiting is the action plugin's work."""
    return (
        ["send"]
        + option("--channel", params["channel"])
        + option("--revision", params["revision"])
        + option("--until", params["ends_at"])
        + option("--limit", ",".join(params["limit"] or []))
        + flag("--check", check_mode)
        + flag("--no-wait", not check_mode)
        + option("--timeout", FIRST_LOOK_S if params["wait"] and not check_mode else None)
        + ["--"]
        + names(params)
    )


def foretold_rows(module):
    """Return what the check of a build said of the distributions that are meant; nothing if the newest is not sent."""
    if not module.check_mode or module.params["revision"]:
        return []
    rows, wanted = module.params["built"] or [], names(module.params)
    return [row for row in rows if not wanted or row["distribution"] in wanted]


def foretell(ted, module):
    """Return the sends as they would be after the builds that were foretold."""
    tree, given = foretold_tree(module)
    rows = foretold_rows(module)
    built = {row["distribution"]: row["bytes"] for row in rows if row.get("check") and row["changed"]}
    unbuilt = [row for row in rows if row["distribution"] in built and not row["revision"]]
    said = {"sends": []}
    if not unbuilt:
        said = ted.ask(*tree + words(module.params, module.check_mode), **given)
    elif len(unbuilt) < len(rows):  # of the others there is a revision to ask about
        asked = [row["distribution"] for row in rows if row not in unbuilt]
        said = ted.ask(*tree + words(dict(module.params, name=asked), module.check_mode), **given)
    if unbuilt:
        asked = (
            option("--distributor", unbuilt[0].get("distributor"))
            + option("--channel", module.params["channel"])
            + option("--limit", ",".join(module.params["limit"] or []))
        )
        routes = ted.ask(*tree + ["routes"] + asked, **given)["routes"]
        said["sends"] += first_sends(routes, [row["distribution"] for row in unbuilt])
    said["sends"] = [
        after_build(send, built[send["distribution"]]) if send["distribution"] in built else send
        for send in said["sends"]
    ]
    said["changed"] = any(send["changed"] for send in said["sends"])
    return said


def first_sends(routes, wanted):
    """Return the sends of distributions that have no revision yet, in the shape of C(ted send --check)."""
    return [
        {
            "send": None,
            "distributor": route["distributor"],
            "distribution": name,
            "channel": route["channel"],
            "edges": [{"sender": sender, "receiver": receiver, "bytes": 0} for sender, receiver in route["edges"]],
            "states": {receiver: "pending" for dummy, receiver in route["edges"]},
            "duration_s": 0.0,
        }
        for route in routes
        for name in route["distributions"]
        if name in wanted
    ]


def after_build(send, pack_bytes):
    """Return a send of the revision that would be built: each link carries what it lacks now, and the new pack."""
    edges = [dict(edge, bytes=edge["bytes"] + pack_bytes) for edge in send["edges"]]
    return dict(
        send,
        revision=None,
        changed=bool(edges),
        edges=edges,
        bytes=sum(edge["bytes"] for edge in edges),
        states=dict.fromkeys(send["states"], "pending"),
    )


def main():
    module = ted_module(
        name={"type": "list", "elements": "str", "aliases": ["distribution"]},
        channel={"type": "str"},
        revision={"type": "str"},
        limit={"type": "list", "elements": "str"},
        ends_at={"type": "str", "aliases": ["until"]},
        wait={"type": "bool", "default": True},
        timeout={"type": "int", "default": 3600},
        interval={"type": "int"},
        watch={"type": "list", "elements": "str"},
        allow_incomplete={"type": "bool", "default": False},
        **FORETOLD,
        built={"type": "list", "elements": "dict"},
        rules={"mutually_exclusive": [("watch", "name"), ("watch", "channel"), ("watch", "limit")]},
    )
    ted = Ted(module)
    ted.limit_s = max(module.params["timeout"], START_LIMIT_S)
    ted.foretell_unset(sends=[])
    if module.params["watch"]:
        said = ted.ask("send", *[word for identity in module.params["watch"] for word in ("--watch", identity)])
        said["changed"] = False
    elif module.check_mode:
        said = foretell(ted, module)
    else:
        said = ted.ask(*words(module.params, module.check_mode))
    module.exit_json(executable=ted.executable, config=ted.config, **said)


if __name__ == "__main__":
    main()
