"""A dumb folder, and a web server that shows it, serve those whom no agent reaches; damage is found."""

from __future__ import annotations

import functools
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fleet import CommandError, Fleet, same_trees, two_tiers


class _Quiet(SimpleHTTPRequestHandler):
    """Python's own static server: it knows no ranges, so pulls must manage with whole answers."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "mirror"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def pushed(fleet: Fleet) -> Path:
    two_tiers(fleet, leaves=1)
    fleet.install()
    fleet.ted("hq", "build")
    folder = fleet.root / "mirror"
    planned = fleet.ted("hq", "mirror", "push", str(folder), "--check")
    assert not list(folder.glob("hq"))
    done = fleet.ted("hq", "mirror", "push", str(folder))
    assert planned["files"] == done["files"]
    assert not fleet.ted("hq", "mirror", "push", str(folder))["changed"]
    return folder


def test_a_pull_from_a_folder_brings_the_same_tree(fleet: Fleet) -> None:
    folder = pushed(fleet)
    assert fleet.ted("e01", "mirror", "pull", str(folder), "--check")["changed"]
    assert fleet.ted("e01", "mirror", "pull", str(folder))["changed"]
    assert not fleet.ted("e01", "mirror", "pull", str(folder))["changed"]
    fleet.ted("e01", "extract")
    assert same_trees(fleet.root / "source", fleet.root / "e01" / "dest" / "app") == ""


def test_a_pull_from_a_web_server_without_ranges(fleet: Fleet, web: str) -> None:
    pushed(fleet)
    assert fleet.ted("e01", "mirror", "check", web)["ok"]
    assert fleet.ted("e01", "mirror", "pull", web)["distributions"][0]["state"] == "received"


def test_damage_is_found_and_never_received(fleet: Fleet) -> None:
    folder = pushed(fleet)
    (pack,) = folder.glob("hq/app/*/DISTFILE.TED")
    with pack.open("r+b") as file:
        file.seek(200)
        file.write(b"damaged")
    with pytest.raises(CommandError) as caught:
        fleet.ted("e01", "mirror", "check", str(folder))
    assert "block 0 is damaged" in caught.value.error["message"]
    with pytest.raises(CommandError):
        fleet.ted("e01", "mirror", "pull", str(folder))
    assert not list(fleet.working("e01").glob("hq/app/*/DISTSTATUS.TED"))


def test_a_node_without_the_root_takes_nothing(fleet: Fleet) -> None:
    folder = pushed(fleet)
    fleet.ted("e01", "trust", "remove", "hq")
    with pytest.raises(CommandError) as caught:
        fleet.ted("e01", "mirror", "pull", "--distributor", "hq", str(folder))
    assert caught.value.error["type"] == "UntrustedDistributorError"


def test_what_is_here_can_be_installed_and_mended_when_the_catalog_lists_it_no_more(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.hostvars["hq"]["ted_distributions"]["app"]["max_revisions"] = 1
    fleet.install()
    folder, target = str(fleet.root / "mirror"), fleet.root / "e01" / "dest" / "app"
    (first,) = (row["revision"] for row in fleet.ted("hq", "build")["distributions"])
    fleet.ted("hq", "mirror", "push", folder)
    fleet.ted("e01", "mirror", "pull", folder)
    shutil.copytree(fleet.root / "source", fleet.root / "first", symlinks=True)
    (fleet.root / "source" / "later").write_text("later")
    fleet.ted("hq", "build")
    fleet.ted("hq", "mirror", "push", folder)
    fleet.ted("e01", "mirror", "pull", folder, "--check")  # brings the catalog, and no content
    fleet.ted("e01", "verify", "--stored")
    assert [row["revision"] for row in fleet.ted("e01", "extract")["distributions"]] == [first]
    assert not (target / "later").exists()
    (target / "d0" / "file00000.txt").write_text("drifted")
    assert fleet.ted("e01", "extract", "--force")["changed"]
    assert (target / "d0" / "file00000.txt").read_text() == (fleet.root / "first/d0/file00000.txt").read_text()
    (record,) = fleet.working("e01").glob("hq/app/*/REVISION.TED")
    record.write_bytes(record.read_bytes().replace(b'"files":', b'"files":1'))
    for words in (("extract", "--force"), ("verify", "--stored")):
        with pytest.raises(CommandError) as caught:
            fleet.ted("e01", *words)
        assert first in caught.value.error["message"]
