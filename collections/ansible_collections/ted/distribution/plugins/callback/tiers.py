# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""A table of tiers at the end of a run."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: tiers
type: aggregate
short_description: A table of tiers at the end of a run
version_added: 0.1.0
author:
  - The ted authors (@ted-distribution)
description:
  - When a run sent something with M(ted.distribution.send), prints for each send who passed it to whom, how
    many bytes
    crossed that link, and in what state the receiver is.
  - When a run asked M(ted.distribution.distribution_info), prints the state of each node.
  - Prints nothing otherwise, and one line for a send that found that everybody has it.
requirements:
  - Enable it with C(callbacks_enabled = ted.distribution.tiers) in C(ansible.cfg), or
    C(ANSIBLE_CALLBACKS_ENABLED=ted.distribution.tiers).
options:
  rows:
    description: The most rows a table has.
    type: int
    default: 60
    ini:
      - section: callback_tiers
        key: rows
    env:
      - name: TED_TIERS_ROWS
"""

from ansible.plugins.callback import CallbackBase
from ansible_collections.ted.distribution.plugins.plugin_utils.progress import status_table, table, total


class CallbackModule(CallbackBase):
    """Collects sends and states while a run goes on, and prints them at its end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "ted.distribution.tiers"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self):
        super(CallbackModule, self).__init__()
        self._sends = {}
        self._rows = {}

    def v2_runner_on_ok(self, result):
        """Keep what a task said."""
        self._keep(result)

    def v2_runner_on_failed(self, result, ignore_errors=False):  # noqa: ARG002
        """Keep what a task said: an incomplete send is the one to look at."""
        self._keep(result)

    def v2_runner_item_on_ok(self, result):
        """Keep what one turn of a loop said."""
        self._keep(result)

    def v2_runner_item_on_failed(self, result):
        """Keep what one turn of a loop said."""
        self._keep(result)

    def v2_playbook_on_stats(self, stats):  # noqa: ARG002
        """Print the tables."""
        for send in self._sends.values():
            self._print(table(send, self.get_option("rows")))
        if self._rows:
            rows = [self._rows[key] for key in sorted(self._rows)]
            self._print(status_table(rows[: self.get_option("rows")]))

    def _print(self, lines):
        self._display.display("")
        for line in lines:
            self._display.display(line)

    def _keep(self, result):
        """Remember the newest news of each send and node."""
        said = getattr(result, "result", None) or getattr(result, "_result", None) or {}
        for send in self._listed(said.get("invocation") or {}, "sends") or self._listed(said, "sends"):
            key = (send.get("distribution"), send.get("channel"), send.get("revision"))
            if send.get("edges") and (total(send.get("bytes")) or key not in self._sends):
                self._sends[key] = send  # one that found everything there tells less than the one before it
        for row in self._listed(said, "status"):
            if "distribution" in row and "node" in row:
                self._rows[tuple(str(row.get(key)) for key in ("distributor", "distribution", "node"))] = row

    @staticmethod
    def _listed(said, key):
        """Return the mappings in a list that a result may hold."""
        items = said.get(key)
        return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
