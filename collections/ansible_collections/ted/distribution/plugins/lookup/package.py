# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""The lookup package: what pip is to install, and what tells it from another."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: package
short_description: What pip is to install, and what tells it from another
version_added: 0.1.0
author:
  - The ted authors (@ted-distribution)
description:
  - Returns for each term whether it is a wheel on the controller or a requirement for pip, and a text that is another
    one when something else is to be installed.
  - A wheel is told by its content, since one that is built again often keeps its name.
options:
  _terms:
    description:
      - Wheels on the controller (they end in C(.whl)), or requirements for pip.
      - A relative path is looked for where M(ansible.builtin.copy) looks.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
---
- name: See what tells this wheel from the one that was installed
  ansible.builtin.debug:
    msg: "{{ lookup('ted.distribution.package', '/srv/wheels/ted_notes-0.1.0-py3-none-any.whl').state }}"
"""

RETURN = r"""
---
_raw:
  description: >-
    Dictionaries with C(wheel) (its whole path, empty for a requirement), C(requirement) (empty for a wheel) and
    C(state) (SHA-256 of the wheel, else of the requirement).
  type: list
  elements: dict
"""

import hashlib
import os

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase


def requirement(text):
    """Return what is known of a requirement."""
    return {"wheel": "", "requirement": text, "state": hashlib.sha256(text.encode()).hexdigest()}


def wheel(path):
    """Return what is known of a wheel that is there."""
    with open(path, "rb") as stream:
        return {"wheel": path, "requirement": "", "state": hashlib.sha256(stream.read()).hexdigest()}


class LookupModule(LookupBase):
    """What pip is to install, and what tells it from another."""

    def run(self, terms, variables=None, **kwargs):
        """Return what is known of each term."""
        self.set_options(var_options=variables, direct=kwargs)
        texts = [str(term).strip() for term in terms]
        return [self._wheel(text, variables) if text.endswith(".whl") else requirement(text) for text in texts]

    def _wheel(self, text, variables):
        path = self.find_file_in_search_path(variables or {}, "files", text, ignore_missing=True)
        if not path or not os.path.isfile(path):
            raise AnsibleError(
                "package: there is no wheel %s on the controller. Build it, or write its whole path, "
                "such as {{ inventory_dir }}/wheels/%s" % (text, os.path.basename(text))
            )
        return wheel(path)
