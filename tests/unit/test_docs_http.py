"""docs/types/http.md: its example builds and installs, and it names every option."""

from __future__ import annotations

import hashlib
import logging
import re
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from install_depot import NAME, Depot
from web_servers import PASSWORD, USER, nginx

from ted import plugins
from ted.content.builder import RevisionBuilder
from ted_plugins.http import Entry, Options
from ted_plugins.http import Target as HttpTarget

PAGE = (Path(__file__).parents[2] / "docs" / "types" / "http.md").read_text()


def test_the_example_of_the_page_builds_and_installs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = tmp_path / "served"
    (served / "repository" / "old").mkdir(parents=True)
    for name in ("a.rpm", "b.rpm", "c.tmp", "old/a.rpm"):
        (served / "repository" / name).write_text(name)
    (served / "tool").write_text("#!/bin/sh\n")
    sums = subprocess.run(["sha256sum", "a.rpm", "b.rpm"], cwd=served / "repository", check=True, capture_output=True)
    (served / "repository" / "SHA256SUMS").write_bytes(sums.stdout)
    with nginx(tmp_path / "nginx", served) as server:
        options = example({
            "https://files.example.org": server.tls_url, "%DEST_VOLUME%": str(tmp_path / "dest"),
            "/opt/tool": str(tmp_path / "opt"), "/etc/ted/example-ca.pem": server.ca,
            "username: shops": f"username: {USER}", "{{ vault_tool_password }}": PASSWORD,
        })  # fmt: skip
        # The example trusts the system's authorities for its first address; this one's is the test's own.
        monkeypatch.setattr("ssl.get_default_verify_paths", lambda: Paths(server.ca))
        depot = Depot(tmp_path / "node")
        checked = plugins.validate_options("http", options)
        directory = depot.working.distribution("hq", NAME)
        with RevisionBuilder(directory, "hq", NAME, "http", {}, checked.model_dump(mode="json")) as builder:
            plugins.gather("http", builder, checked, tmp_path / "scratch")
            depot.signed.add(hashlib.sha256(builder.finish().record_bytes).hexdigest())
    depot.extract()
    found = {str(path.relative_to(tmp_path)) for place in ("dest", "opt") for path in (tmp_path / place).rglob("*.*")}
    assert found == {f"dest/srv/repository/{name}" for name in ("a.rpm", "b.rpm")}
    assert (tmp_path / "opt" / "tool").stat().st_mode & 0o777 == 0o755


class Paths:
    def __init__(self, cafile: str) -> None:
        self.cafile = cafile


def example(places: dict[str, str]) -> Any:
    block = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    text = block[1]
    for name, value in places.items():
        assert name in text
        text = text.replace(name, value)
    return yaml.safe_load(text)["ted_distributions"]["repository"]["options"]


def test_the_page_names_every_option_and_its_default() -> None:
    for model in (Options, HttpTarget, Entry):
        for name, field in model.model_fields.items():
            assert f"`{field.alias or name}`" in PAGE, name


def test_the_source_of_the_plugin_page_mirrors(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
    block = next(code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Shelf" in code)
    names: dict[str, Any] = {}
    exec(block, names)

    class Build:
        scratch, log, progress = tmp_path, logging.getLogger("test"), None
        added: ClassVar[list[Any]] = []

        class options:  # noqa: N801
            files: ClassVar[dict[str, tuple[str, bytes]]] = {"d/a": ("1", b"A")}

        def add_tree(self, source: Path, at: str, **_more: bool) -> None:
            self.added.append((source, at))

    build = Build()
    names["ted_build"](build)
    assert build.added == [(tmp_path / "shelf" / "files", "")]
    assert (tmp_path / "shelf" / "files" / "d" / "a").read_bytes() == b"A"
