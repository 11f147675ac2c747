# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""What is wrong with the inventory."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: problems
short_description: What is wrong with the inventory
version_added: 0.1.0
author:
  - The ted authors (@ted-distribution)
description:
  - Asks C(ted check) of the controller about this inventory, as Ansible has templated it.
  - What is only in doubt is not returned but shown as warnings of Ansible, ten at most, what several hosts have alike
    as one.
  - Returns nothing where the controller has no C(ted). Then the Distributors find out for themselves.
"""

EXAMPLES = r"""
---
- name: The inventory keeps the contract
  ansible.builtin.assert:
    that: problems | length == 0
    fail_msg: "{{ problems | join('; ') }}"
  run_once: true
  vars:
    problems: "{{ lookup('ted.distribution.problems', wantlist=true) }}"
"""

RETURN = r"""
---
_raw:
  description: One text for each problem, with its host and variable.
  type: list
  elements: str
"""

from ansible.plugins.lookup import LookupBase
from ansible_collections.ted.distribution.plugins.plugin_utils.controller import ask_controller, ted_of_controller
from ansible_collections.ted.distribution.plugins.plugin_utils.inventory import topology
from ansible_collections.ted.distribution.plugins.plugin_utils.progress import some

WARNINGS_SHOWN = 10
HOSTS_SHOWN = 4


def warning_texts(warnings):
    """Return a bounded number of texts; what several hosts have alike is said once."""
    alike = {}
    for warning in warnings:
        kind = tuple(warning.get(key) for key in ("variable", "message", "hint"))
        alike.setdefault(kind, []).append(str(warning.get("host") or "inventory"))
    texts = [
        as_text({"host": some(hosts, HOSTS_SHOWN), "variable": variable, "message": message, "hint": hint})
        for (variable, message, hint), hosts in alike.items()
    ]
    if len(texts) > WARNINGS_SHOWN:
        more = len(texts) - WARNINGS_SHOWN
        texts[WARNINGS_SHOWN:] = ["%d more doubts about the inventory; `ted check -i INVENTORY` tells them all" % more]
    return texts


def as_text(problem):
    """Return a problem as one line."""
    said = ": ".join(str(problem[key]) for key in ("host", "variable", "message") if problem.get(key))
    return "%s (%s)" % (said, problem["hint"]) if problem.get("hint") else said


class LookupModule(LookupBase):
    """What is wrong with the inventory."""

    def run(self, terms, variables=None, **kwargs):  # noqa: ARG002
        """Return one text for each problem."""
        self.set_options(var_options=variables, direct=kwargs)
        program = ted_of_controller()
        if not program:
            return []
        said = ask_controller(program, topology(variables["hostvars"], variables["groups"]), ["check"])
        found = said.get("problems") or ([said["error"]] if said.get("error") else [])
        for doubt in warning_texts(said.get("warnings") or []):
            self._display.warning(doubt)
        return [as_text(problem) for problem in found]
