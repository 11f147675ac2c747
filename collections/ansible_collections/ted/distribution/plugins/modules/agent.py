#!/usr/bin/python
# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: agent
short_description: Start or stop the agent of a node
version_added: 0.1.0
description:
  - Starts, stops or restarts C(ted agent) as a process of its own that outlives the play.
  - Where systemd runs, use the unit C(ted-agent) instead. The role P(ted.distribution.node#role) decides.
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
    support: partial
    details: V(restarted) always restarts.
options:
  state:
    description:
      - V(started) starts it unless it runs, V(stopped) ends it, V(restarted) always makes a new process.
      - V(status) only asks.
    type: str
    choices: [started, stopped, restarted, status]
    default: started
  fresh:
    description:
      - With O(state=started), restart an agent that is older than its configuration, its certificate or its program.
    type: bool
    default: false
"""

EXAMPLES = r"""
---
- name: The agent runs
  ted.distribution.agent:
    state: started

- name: The agent runs, with its newest configuration
  ted.distribution.agent:
    state: started
    fresh: true

- name: Ask
  ted.distribution.agent:
    state: status
  register: agent
"""

RETURN = r"""
---
running:
  description: Whether the agent runs now (or would).
  returned: success
  type: bool
  sample: true
pid:
  description: Its process.
  returned: when it runs
  type: int
  sample: 4711
"""

from ansible_collections.ted.distribution.plugins.module_utils.ted_cli import Ted, is_stale, sentence, ted_module


def main():
    module = ted_module(
        state={"type": "str", "choices": ["started", "stopped", "restarted", "status"], "default": "started"},
        fresh={"type": "bool", "default": False},
    )
    ted, state = Ted(module), module.params["state"]
    before = {} if ted.missing and module.check_mode else ted.ask("agent", "status", tolerate=(10, 70))
    broken = "running" not in before  # the node's configuration cannot be read; that no agent runs is no error here
    if "error" in before and broken and state in ("started", "restarted") and not module.check_mode:
        module.fail_json(msg=sentence(before["error"]), rc=10)
    before.pop("error", None)
    # A process that does not answer is there all the same: it holds the port, and must be ended before all else.
    there = bool(before.get("running") or before.get("pid") or before.get("supervisor_pid"))
    running = bool(before.get("running")) and before.get("supervised", True)
    stale = there and (not running or (module.params["fresh"] and is_stale(ted, before)))
    stop = there and (state in ("stopped", "restarted") or (state == "started" and stale))
    start = state in ("started", "restarted") and (stop or not there)
    if (stop or start) and not module.check_mode:
        before = ted.ask("agent", "restart" if stop and start else "start" if start else "stop")
    module.exit_json(**dict(before, changed=stop or start, running=(running and not stop) or start))


if __name__ == "__main__":
    main()
