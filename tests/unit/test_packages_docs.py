"""The examples of docs/types/rpm.md and deb.md, carried out."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from package_depot import PackageDepot, Signer, Workshop, make_repository
from web_servers import Nginx, nginx

from ted_plugins.packages.options import DebOptions, RpmOptions

TYPES = Path(__file__).parents[2] / "docs" / "types"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Nginx]:
    (tmp_path / "served").mkdir()
    with nginx(tmp_path / "nginx", tmp_path / "served") as server:
        yield server


@pytest.fixture
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signer]:
    signer = Signer(tmp_path_factory.mktemp("k"), "vendor")
    yield signer
    signer.close()


def example(kind: str, places: dict[str, str]) -> dict[str, Any]:
    """Return the options of the example, with the places of this machine for those of the page."""
    text = (TYPES / f"{kind}.md").read_text().split("```yaml\n")[1].split("```")[0]
    for place, here in places.items():
        assert place in text
        text = text.replace(place, here)
    (distribution,) = yaml.safe_load(text)["ted_distributions"].values()
    assert distribution["type"] == kind
    return dict(distribution["options"])


def test_the_example_of_the_rpm_type(tmp_path: Path, served: Nginx, signer: Signer) -> None:
    depot = PackageDepot(tmp_path, "dnf", Workshop(tmp_path / "workshop"))
    depot.have(depot.make("till-legacy"))
    packages = {
        "srv": depot.make("till", "3.2", arch="x86_64"), "srv/plugins": depot.make("scale"),
        "served": depot.make("printer", "1.4"), "served/el9": depot.make("fonts"),
    }  # fmt: skip
    for place, package in packages.items():
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        shutil.move(signer.sign(package, tmp_path / "signed"), tmp_path / place)
    make_repository(depot, tmp_path / "served" / "el9", signer)
    printer = tmp_path / "served" / "printer-1.4-2.noarch.rpm"
    (tmp_path / "served" / "printer-1.4-1.noarch.rpm").rename(printer)
    options = example("rpm", {
        "/srv/rpms": f"{tmp_path}/srv", "https://vendor.example.com": served.url,
        "https://mirror.example.com": served.url, "/etc/ted/vendor-key.asc": str(signer.key),
        "/etc/ted/mirror-key.asc": str(signer.key),
        "4b8f3c1d2e5a6978a0b1c2d3e4f5061728394a5b6c7d8e9f0a1b2c3d4e5f6071":
            hashlib.sha256(printer.read_bytes()).hexdigest(),
    })  # fmt: skip
    depot.pack(*options.pop("packages"), **options | {"signature": "required"})
    depot.extract()
    assert depot.installed() == {"till": "3.2", "scale": "1", "printer": "1.4", "fonts": "1"}
    depot.rollback()
    assert depot.installed() == {"till-legacy": "1"}


def test_the_example_of_the_deb_type(tmp_path: Path, served: Nginx, signer: Signer) -> None:
    depot = PackageDepot(tmp_path, "apt", Workshop(tmp_path / "workshop"))
    depot.have(depot.make("till-legacy"))
    (tmp_path / "srv").mkdir()
    shutil.move(depot.make("till", "3.2-1", arch="amd64"), tmp_path / "srv")
    (tmp_path / "served" / "debian" / "pool").mkdir(parents=True)
    shutil.move(depot.make("fonts-till"), tmp_path / "served" / "debian" / "pool")
    make_repository(depot, tmp_path / "served" / "debian", signer, suite=True)
    options = example("deb", {
        "/srv/debs": f"{tmp_path}/srv", "https://deb.example.com": served.url,
        "/etc/ted/archive-key.asc": str(signer.key),
    })  # fmt: skip
    depot.pack(*options.pop("packages"), **options)
    depot.extract()
    assert depot.installed() == {"till": "3.2-1", "fonts-till": "1"}
    depot.rollback()
    assert depot.installed() == {"till-legacy": "1"}


@pytest.mark.parametrize(("kind", "model"), [("rpm", RpmOptions), ("deb", DebOptions)])
def test_every_option_is_on_the_page(kind: str, model: Any) -> None:
    page = (TYPES / f"{kind}.md").read_text()
    for name, option in model.model_fields.items():
        assert f"| `{name}` |" in page
        if isinstance(option.default, bool | int | str):
            shown = {True: "true", False: "false"}.get(option.default, option.default)
            assert f"| `{name}` | `{shown}` |" in page or f"| `{name}` | {shown} |" in page
