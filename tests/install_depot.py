"""A Distributor's working directory that tests build File distributions in and install from: real packs and records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ted import plugins
from ted.content.builder import RevisionBuilder
from ted.content.working import WorkingDirectory
from ted.errors import TrustError
from ted.install.extract import ExtractResult, extract
from ted.install.host import Host
from ted.install.rollback import rollback
from ted.install.variables import Variables, predefined

DISTRIBUTOR, NAME = "hq", "pos"


class Depot:
    """One node that holds what ``hq`` built; what was not built here is not signed."""

    def __init__(self, root: Path, **host: Any) -> None:
        self.root = root
        self.working = WorkingDirectory(root / "var")
        self.working.path.mkdir(parents=True, exist_ok=True)
        self.signed: set[str] = set()
        variables = predefined(
            node="s01", config_directory=root / "etc", working_directory=self.working.path, address="192.0.2.1"
        )
        self.host = Host(
            self.working, self._verify, Variables(variables, {"DEST_VOLUME": str(root / "target"), "SHOP": "7"}),
            (str(self.working.path),), wait_s=0.5, **host,
        )  # fmt: skip

    def _verify(self, distributor: str, distribution: str, stamp: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() not in self.signed:
            raise TrustError(f"{distribution} {stamp} of {distributor} is not signed")

    def build(
        self,
        *targets: dict[str, Any],
        name: str = NAME,
        settings: dict[str, Any] | None = None,
        tests: dict[str, str] | None = None,
        before_finish: Callable[[RevisionBuilder], None] = lambda _builder: None,
        type: str = "file",  # noqa: A002 -- the inventory's word
        **options: Any,
    ) -> str:
        """Build a revision (of a File distribution, unless another type is named) and return its stamp."""
        model = plugins.validate_options(type, {**({"targets": list(targets)} if targets else {}), **options})
        with RevisionBuilder(
            self.working.distribution(DISTRIBUTOR, name), DISTRIBUTOR, name, type, settings or {},
            model.model_dump(mode="json", by_alias=True), allow_empty=True,
        ) as builder:  # fmt: skip
            plugins.gather(type, builder, model, self.working.state / "build")
            for file, text in (tests or {}).items():
                builder.add_bytes(f"verify/{file}", text.encode())
            before_finish(builder)
            result = builder.finish()
        self.signed.add(hashlib.sha256(result.record_bytes).hexdigest())
        return result.record.revision

    def extract(self, name: str = NAME, **options: Any) -> ExtractResult:
        return extract(self.host, DISTRIBUTOR, name, **options)

    def rollback(self, name: str = NAME, **options: Any) -> ExtractResult:
        return rollback(self.host, DISTRIBUTOR, name, **options)

    def leftovers(self, target: Path) -> list[Path]:
        """Return what of ted is left in a target: nothing, ever."""
        return [path for path in target.rglob("*") if path.name.startswith(".ted")]
