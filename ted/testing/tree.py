"""A tree of two: a Distributor and its Subscribers, with real keys, catalogs and trust, by ``ted``'s own commands.

What a Distributor built goes to the Subscribers by way of a folder (``ted mirror``), so no agent has to run.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

CHANNEL = "everyone"


class CommandFailedError(AssertionError):
    """A command of ``ted`` failed; ``answer`` is what it printed as JSON."""

    def __init__(self, words: Sequence[str], answer: Any) -> None:
        self.answer = answer
        self.hint = None
        error = answer.get("error") if isinstance(answer, dict) else None
        super().__init__(f"ted {' '.join(words)}: {(error or {}).get('message', answer)}")


class Tree:
    """A Distributor ``hq`` and its Subscribers below one directory.

    .. versionadded:: 0.1
    """

    def __init__(
        self, root: Path, *, subscribers: Sequence[str] = ("s01",), variables: Mapping[str, str] | None = None
    ) -> None:
        self.root = root
        self.subscribers = list(subscribers)
        self._distributions: dict[str, Any] = {}
        for name in ("hq", *self.subscribers):
            self.config(name).mkdir(parents=True)
            settings = {
                "node": name, "working_directory": str(self.working(name)), "distributor": name == "hq",
                "address": "127.0.0.1", "variables": dict(variables or {}),
            }  # fmt: skip
            (self.config(name) / "node.yml").write_text(yaml.safe_dump(settings))
        self.ted("hq", "keys", "create")
        trusted = self._said("hq", ["trust", "export"])
        (root / "root.json").write_text(trusted)
        for name in self.subscribers:
            self.ted(name, "trust", "import", "--distributor", "hq", str(root / "root.json"))

    def config(self, node: str) -> Path:
        """Return the configuration directory of a node."""
        return self.root / node / "etc"

    def working(self, node: str) -> Path:
        """Return the working directory of a node."""
        return self.root / node / "var"

    def build(self, type_name: str, options: Mapping[str, Any], *, name: str = "sample", **settings: Any) -> str:
        """Build a distribution (``settings`` as in an inventory) and return the revision that is newest then.

        Raises:
            CommandFailedError: It cannot be built.
        """
        self._distributions[name] = {"type": type_name, "channels": [CHANNEL], "options": dict(options), **settings}
        (self.config("hq") / "topology.json").write_text(json.dumps(self._inventory()))
        answer = self.ted("hq", "build", name)
        return str(answer["distributions"][0]["revision"])

    def carry(self) -> None:
        """Bring everything that was built to each Subscriber, verified."""
        mirror = str(self.root / "mirror")
        self.ted("hq", "mirror", "push", mirror)
        for name in self.subscribers:
            self.ted(name, "mirror", "pull", mirror)

    def extract(self, *words: str, node: str | None = None) -> dict[str, Any]:
        """Run ``ted extract`` on a Subscriber (the first) and return the row of its first distribution."""
        row: dict[str, Any] = self.ted(node or self.subscribers[0], "extract", *words)["distributions"][0]
        return row

    def rollback(self, name: str = "sample", *words: str, node: str | None = None) -> dict[str, Any]:
        """Run ``ted rollback`` on a Subscriber (the first) and return its row."""
        row: dict[str, Any] = self.ted(node or self.subscribers[0], "rollback", name, *words)["distributions"][0]
        return row

    def ted(self, node: str, *words: str) -> Any:
        """Run ``ted --json`` on a node and return what it says.

        Raises:
            CommandFailedError: It failed.
        """
        text = self._said(node, ["--json", *words])
        return json.loads(text) if text.strip() else None

    def _said(self, node: str, words: Sequence[str]) -> str:
        from ted.cli.main import main

        spoken, talk = io.StringIO(), io.StringIO()
        code: Any = 0
        with contextlib.redirect_stdout(spoken), contextlib.redirect_stderr(talk):
            try:
                main(["--config", str(self.config(node)), *words])
            except SystemExit as ended:
                code = ended.code
        if code:
            try:
                answer = json.loads(spoken.getvalue())
            except ValueError:
                answer = talk.getvalue()
            raise CommandFailedError(words, answer)
        return spoken.getvalue()

    def _inventory(self) -> dict[str, Any]:
        everyone: dict[str, Any] = {"ted_channels": {CHANNEL: {}}, "ted_address": "127.0.0.1"}
        hostvars: dict[str, Any] = {name: {**everyone} for name in ("hq", *self.subscribers)}
        hostvars["hq"] |= {"ted_distributions": self._distributions}
        groups = {"distributors": {"hosts": ["hq"]}, "subscribers": {"hosts": self.subscribers},
                  CHANNEL: {"hosts": self.subscribers}}  # fmt: skip
        return {"_meta": {"hostvars": hostvars}, "all": {"children": [*groups, "ungrouped"]}, **groups}
