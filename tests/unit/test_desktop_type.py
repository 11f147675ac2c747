"""The Desktop type, from the Distributor's files to a menu that the desktop's own programs accept."""

from __future__ import annotations

import grp
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from install_depot import NAME, Depot
from install_trees import snapshot

from ted import plugins
from ted.errors import BuildError, EmptySourceError, OptionsError, TargetError
from ted.install.verify import verify_installed
from ted_plugins import desktop
from ted_plugins.desktop.entry import in_turn, launcher_of, quoted, with_defaults

GROUP = f"tedtest{os.getpid()}"
ICON = b"\x89PNG not looked at"


@pytest.fixture(scope="session", autouse=True)
def programs_are_here() -> None:
    missing = [name for name in ("desktop-file-validate", "update-mime-database") if shutil.which(name) is None]
    assert not missing, f"{missing} missing: scripts/test-packages installs desktop-file-utils and shared-mime-info"


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    return Depot(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "golden"
    for name in ("till", "viewer"):
        (root / name / "bin").mkdir(parents=True)
        program = root / name / "bin" / name
        program.write_text(f"#!/bin/sh\necho {name} \"$@\"\n")
        program.chmod(0o755)
        (root / f"{name}.png").write_bytes(ICON + name.encode())
    return root


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


@pytest.fixture
def no_group() -> Iterator[None]:
    yield
    subprocess.run(["groupdel", GROUP], capture_output=True, check=False)


def till(source: Path, **more: Any) -> dict[str, Any]:
    return {
        "name": "till", "version": "1.0", "from": [f"{source}/till/"], "icons": {"48x48": f"{source}/till.png"},
        "entry": {"Name": "Till", "Name[de]": "Kasse", "Exec": "bin/till %f", "Categories": "Office;"},
        "mime": [{"type": "application/x-till", "comment": "Receipt", "patterns": ["*.till"], "default": True}],
        **more,
    }  # fmt: skip


def viewer(source: Path, **more: Any) -> dict[str, Any]:
    return {"name": "viewer", "from": [f"{source}/viewer/"], "entry": {"Name": "Viewer", "Exec": "bin/viewer"}, **more}


def entry(target: Path, name: str = "till") -> dict[str, str]:
    """Return the keys of an entry on the Subscriber, once the desktop's own program has accepted it."""
    path = target / "usr/local/share/applications" / f"{name}.desktop"
    subprocess.run(["desktop-file-validate", "--no-hints", path], check=True)
    return dict(line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)


def test_an_application_arrives_with_files_entry_icon_and_kind_of_file(
    depot: Depot, source: Path, target: Path
) -> None:
    depot.build(type="desktop", applications=[till(source)])
    result = depot.extract()
    assert (result.state, result.changed) == ("extracted", True)
    keys = entry(target)
    assert keys["Exec"] == f"{target}/opt/till/bin/till %f"
    assert (keys["Name"], keys["Name[de]"], keys["Icon"]) == ("Till", "Kasse", "till")
    assert keys["MimeType"] == "application/x-till;"
    done = subprocess.run([f"{target}/opt/till/bin/till", "one"], capture_output=True, text=True, check=True)
    assert done.stdout == "till one\n"
    share = target / "usr/local/share"
    assert (share / "icons/hicolor/48x48/apps/till.png").read_bytes() == ICON + b"till"
    assert "application/x-till=till.desktop" in (share / "applications/mimeinfo.cache").read_text()
    assert "application/x-till:*.till" in (share / "mime/globs").read_text()
    assert not (share / "applications/mimeapps.list").exists()  # only with maintain_associations


def test_a_second_extraction_by_force_finds_everything_as_it_should_be(depot: Depot, source: Path) -> None:
    depot.build(type="desktop", applications=[till(source)])
    depot.extract()
    result = depot.extract(force=True)
    assert not result.changed
    assert set(result.actions) == {"unchanged"}


def test_check_mode_foretells_and_changes_nothing(depot: Depot, source: Path, target: Path) -> None:
    depot.build(type="desktop", applications=[till(source)])
    foretold = depot.extract(check=True, diff=True)
    assert not target.exists()
    done = depot.extract(diff=True)
    assert foretold.actions == done.actions
    assert [(c.path, c.change) for c in foretold.diff] == [(c.path, c.change) for c in done.diff]


def test_verify_names_what_drifted_and_not_the_command_that_would_follow(
    depot: Depot, source: Path, target: Path
) -> None:
    depot.build(type="desktop", applications=[till(source)])
    depot.extract()
    (target / "usr/local/share/applications/till.desktop").write_text("[Desktop Entry]\nName=Mine\n")
    (problem,) = verify_installed(depot.host, "hq", NAME)
    assert (problem.path, problem.what) == (f"{target}/usr/local/share/applications/till.desktop", "content")


def test_a_rollback_leaves_nothing_of_it_nor_of_its_caches(depot: Depot, source: Path, target: Path) -> None:
    target.mkdir()
    (target / "theirs").write_text("theirs")
    before = snapshot(target)
    depot.build(type="desktop", applications=[till(source)])
    depot.extract()
    result = depot.rollback()
    assert result.warnings == []
    assert snapshot(target) == before


def test_a_rollback_to_the_revision_before_makes_its_caches_anew(depot: Depot, source: Path, target: Path) -> None:
    depot.build(type="desktop", applications=[till(source)])
    depot.extract()
    kinds = [{"type": "application/x-receipt", "comment": "Receipt", "patterns": ["*.rcp"]}]
    depot.build(type="desktop", applications=[till(source, version="2.0", mime=kinds)])
    depot.extract()
    cache = target / "usr/local/share/applications/mimeinfo.cache"
    assert "application/x-receipt" in cache.read_text()
    depot.rollback()
    assert "application/x-receipt" not in cache.read_text()
    assert "application/x-till=till.desktop" in cache.read_text()
    assert entry(target)["X-TED-Version"] == "1.0"


def test_an_entry_is_overwritten_but_for_what_is_preserved(depot: Depot, source: Path, target: Path) -> None:
    depot.build(type="desktop", applications=[till(source)], preserve=["Comment", "Hidden"])
    depot.extract()
    path = target / "usr/local/share/applications/till.desktop"
    path.write_text(path.read_text().replace("Name=Till", "Name=Mine") + "Comment=Ours\n")
    changed = till(source, version="1.1")
    changed["entry"] = {**changed["entry"], "Comment": "Theirs"}
    depot.build(type="desktop", applications=[changed], preserve=["Comment", "Hidden"])
    depot.extract()
    keys = entry(target)
    assert (keys["Name"], keys["Comment"], keys["X-TED-Version"]) == ("Till", "Ours", "1.1")


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: making a group needs root")
def test_associations_make_missing_groups_without_members_and_defaults(
    depot: Depot, source: Path, target: Path, no_group: None
) -> None:
    shared = target / "usr/local/share/applications/mimeapps.list"
    shared.parent.mkdir(parents=True)
    theirs = "[Added Associations]\ntext/plain=theirs.desktop;\n\n[Default Applications]\ntext/plain=theirs.desktop\n"
    shared.write_text(theirs)
    before = snapshot(target)
    depot.build(type="desktop", applications=[till(source, groups=[GROUP, "root"])], maintain_associations=True)
    depot.extract()
    assert grp.getgrnam(GROUP).gr_mem == []
    assert shared.read_text() == f"{theirs}application/x-till=till.desktop\n"
    assert not depot.extract(force=True).changed
    depot.rollback()
    with pytest.raises(KeyError):
        grp.getgrnam(GROUP)
    assert snapshot(target) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: making a group needs root")
def test_a_group_that_somebody_else_made_in_the_meantime_stays(
    depot: Depot, source: Path, no_group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["groupadd", GROUP], check=True)
    monkeypatch.setattr(desktop, "_is_group", lambda _name: False)
    depot.build(type="desktop", applications=[till(source, groups=[GROUP])], maintain_associations=True)
    depot.extract()
    depot.rollback()
    assert grp.getgrnam(GROUP).gr_mem == []


def test_the_tree_of_the_source_is_mirrored_and_requirements_come_first(
    depot: Depot, source: Path, target: Path
) -> None:
    applications = [till(source, folder="Shop/Front", requires=["viewer"]), viewer(source, folder="Shop")]
    told = {"maintain_tree": True, "maintain_associations": True, "source_root": str(source)}
    depot.build(type="desktop", applications=applications, **told)
    result = depot.extract(diff=True)
    assert entry(target)["Exec"] == f"{target}/opt/Shop/Front/till/bin/till %f"
    written = [change.path for change in result.diff if change.path.endswith(("bin/till", "bin/viewer"))]
    assert written == [f"{target}/opt/Shop/viewer/bin/viewer", f"{target}/opt/Shop/Front/till/bin/till"]
    folder = target / "usr/local/share/desktop-directories/Shop-Front.directory"
    assert "Name=Front" in folder.read_text()
    folder.write_text("[Desktop Entry]\nType=Directory\nName=Theirs\n")
    assert not depot.extract(force=True).changed  # what describes a folder that is there stays
    depot.build(type="desktop", applications=applications, overwrite_folders=True, **told)
    depot.extract()
    assert "Name=Front" in folder.read_text()


def test_applications_start_from_the_first_place_that_has_them(
    depot: Depot, source: Path, target: Path, tmp_path: Path
) -> None:
    mirror = tmp_path / "share of all"
    shutil.copytree(source / "till", mirror / "till")
    depot.build(
        type="desktop", applications=[till(source)], mirrors=["/nowhere", str(mirror)],
        mirror_order="fault_tolerance",
    )  # fmt: skip
    depot.extract()
    command = entry(target)["Exec"]
    assert command == f"{target}/usr/local/share/ted/launch till/bin/till %f"
    shutil.rmtree(target / "opt/till")
    done = subprocess.run([command.split()[0], "till/bin/till", "x"], capture_output=True, text=True, check=True)
    assert done.stdout == "till x\n"


def test_load_is_spread_and_always_the_same_for_one_host() -> None:
    sources = ["/opt", "/mnt/a", "/mnt/b"]
    turns = [tuple(in_turn(sources, f"s{number:02}")) for number in range(60)]
    assert {turn[0] for turn in turns} == set(sources)
    assert all(sorted(turn) == sorted(sources) for turn in turns)
    assert turns == [tuple(in_turn(sources, f"s{number:02}")) for number in range(60)]


def test_paths_can_be_kept_with_variables_of_the_subscriber(depot: Depot, source: Path, target: Path) -> None:
    application = till(source, entry={"Name": "Till", "Exec": "/mnt/shop-%SHOP%/till %F", "Icon": "/mnt/%SHOP%.png"})
    depot.build(type="desktop", applications=[application], keep_source_paths=True)
    depot.extract()
    assert entry(target)["Exec"] == "/mnt/shop-7/till %F"
    assert entry(target)["Icon"] == "/mnt/7.png"


def test_paths_of_the_source_are_led_to_where_the_files_are(depot: Depot, source: Path, target: Path) -> None:
    application = till(source, entry={"Name": "Till", "Exec": f'"{source}/till/bin/till" --open %U', "Path": "data/x"})
    depot.build(type="desktop", applications=[application])
    depot.extract()
    assert entry(target)["Exec"] == f"{target}/opt/till/bin/till --open %U"
    assert entry(target)["Path"] == f"{target}/opt/till/data/x"


def test_without_a_raised_version_there_is_no_new_revision_when_that_is_asked_for(
    depot: Depot, source: Path
) -> None:
    told: dict[str, Any] = {"type": "desktop", "rebuild_on_version_only": True}
    first = depot.build(applications=[till(source)], **told)
    (source / "till" / "bin" / "till").write_text("#!/bin/sh\necho another\n")
    assert depot.build(applications=[till(source, groups=["x"])], **told) == first
    assert depot.build(applications=[till(source, version="1.1")], **told) > first


def test_a_change_of_a_file_alone_makes_a_revision_otherwise(depot: Depot, source: Path) -> None:
    first = depot.build(type="desktop", applications=[till(source)])
    (source / "till" / "bin" / "till").write_text("#!/bin/sh\necho another\n")
    assert depot.build(type="desktop", applications=[till(source)]) > first


def test_an_application_that_went_loses_its_entry_with_synchronize(depot: Depot, source: Path, target: Path) -> None:
    depot.build(type="desktop", applications=[till(source), viewer(source)], synchronize=True)
    depot.extract()
    depot.build(type="desktop", applications=[viewer(source)], synchronize=True)
    depot.extract()
    share = target / "usr/local/share"
    assert not (share / "applications/till.desktop").exists()
    assert not (share / "mime/packages/till.xml").exists()
    assert entry(target, "viewer")["Name"] == "Viewer"
    depot.rollback()
    assert entry(target)["Name"] == "Till"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"applications": []}, "applications"),
        ({"more": 1}, "more: is no option"),
        ({"mirror_order": "load_balance"}, "needs mirrors"),
        ({"mirrors": ["/mnt"]}, "mirror_order"),
        ({"path": "opt"}, "not absolute"),
        ({"path": "/opt/../etc"}, "'..'"),
        ({"source_root": "/somewhere/else"}, "does not lie below source_root"),
        ({"preserve": ["No Key"]}, "preserve"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(source: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionsError, match=said.replace("[", r"\[")):
        plugins.validate_options("desktop", {"applications": [till(source)], **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "../till"}, "letters, digits"),
        ({"entry": {"Exec": "till"}}, "needs a Name"),
        ({"entry": {"Name": "a\nExec=evil"}}, "one line"),
        ({"entry": {"Name": "a", "Type": "Link"}}, "only Application"),
        ({"entry": {"Name": "a", "Bad Key": "x"}}, "no key"),
        ({"icons": {"huge": "/x.png"}}, "no size of an icon"),
        ({"icons": {"48x48": "/x.exe"}}, "icons are"),
        ({"mime": [{"type": "nonsense"}]}, "mime"),
        ({"groups": ["-g 0"]}, "no name of a group"),
        ({"folder": "a/../b"}, "names between single slashes"),
        ({"requires": ["nobody"]}, "does not hold"),
        ({"from": ["relative"]}, "not absolute"),
    ],
)
def test_applications_that_cannot_be_meant_are_refused(source: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionsError, match=said):
        plugins.validate_options("desktop", {"applications": [till(source, **change)]})


def test_chains_need_their_tree_and_never_go_in_a_circle(source: Path) -> None:
    chain = [till(source, requires=["viewer"]), viewer(source)]
    with pytest.raises(OptionsError, match="set maintain_tree and maintain_associations"):
        plugins.validate_options("desktop", {"applications": chain})
    circle = [till(source, requires=["viewer"]), viewer(source, requires=["till"])]
    with pytest.raises(OptionsError, match=r"circle: .*till"):
        plugins.validate_options(
            "desktop", {"applications": circle, "maintain_tree": True, "maintain_associations": True}
        )


def test_an_entry_the_desktop_would_not_take_fails_the_build(depot: Depot, source: Path) -> None:
    bad = till(source, entry={"Name": "Till", "Exec": "bin/till", "Terminal": "perhaps"})
    with pytest.raises(OptionsError, match=r"(?s)the entry of till: .*Terminal"):
        depot.build(type="desktop", applications=[bad])


def test_a_source_that_is_gone_or_leads_out_of_its_root_fails_the_build(
    depot: Depot, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(EmptySourceError):
        depot.build(type="desktop", applications=[till(source, **{"from": [f"{source}/nothing/"]})])
    (source / "out").symlink_to(tmp_path)
    with pytest.raises(BuildError, match="out of source_root"):
        depot.build(
            type="desktop", applications=[till(source, **{"from": [f"{source}/out/"]})], source_root=str(source)
        )


def test_a_share_that_is_no_directory_is_told_with_its_path(depot: Depot, source: Path, target: Path) -> None:
    (target / "usr/local/share").mkdir(parents=True)
    (target / "usr/local/share/applications").write_text("a file\n")
    before = snapshot(target)
    depot.build(type="desktop", applications=[till(source)])
    with pytest.raises(TargetError, match="applications"):
        depot.extract()
    assert snapshot(target) == before


def test_without_the_programs_of_a_desktop_the_type_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert desktop.ted_type().available() is None
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    assert desktop.ted_type().available() == (
        "desktop-file-validate and update-desktop-database missing: install desktop-file-utils"
    )


def test_a_validator_that_cannot_be_asked_is_told(
    depot: Depot, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("desktop-file-validate", "update-desktop-database"):
        (programs / name).write_text("#!/bin/sh\nexec sleep 30\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(desktop, "_VALIDATOR_S", 0.2)
    with pytest.raises(BuildError, match="desktop-file-validate: did not end"):
        depot.build(type="desktop", applications=[till(source)])
    (programs / "desktop-file-validate").write_text("#!/nowhere/sh\n")
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(BuildError, match="desktop-file-validate: cannot be started"):
        depot.build(type="desktop", applications=[till(source)])


def test_words_of_a_command_are_spelled_as_the_desktop_reads_them() -> None:
    assert quoted("/opt/app/run") == "/opt/app/run"
    assert quoted('/opt/my "$app`') == '"/opt/my \\"\\$app\\`"'


def test_a_launcher_with_odd_places_is_still_a_script(tmp_path: Path) -> None:
    place = tmp_path / "it's $HOME; odd"
    place.mkdir()
    (place / "run").write_text("#!/bin/sh\necho here\n")
    (place / "run").chmod(0o755)
    script = tmp_path / "launch"
    script.write_text(launcher_of(["/nowhere", str(place)]))
    done = subprocess.run(["sh", script, "run"], capture_output=True, text=True, check=True)
    assert done.stdout == "here\n"
    none = subprocess.run(["sh", script, "other"], capture_output=True, text=True, check=False)
    assert none.returncode == 127
    assert "in none of the places" in none.stderr


def test_defaults_are_put_into_a_list_of_others_and_only_there() -> None:
    assert with_defaults("", {"a/b": "x.desktop"}) == "[Default Applications]\na/b=x.desktop\n"
    before = "# ours\n[Default Applications]\na/b=old.desktop\nc/d=y.desktop\n\n[Removed Associations]\ne/f=z.desktop\n"
    assert with_defaults(before, {"a/b": "x.desktop"}) == (
        "# ours\n[Default Applications]\nc/d=y.desktop\na/b=x.desktop\n\n[Removed Associations]\ne/f=z.desktop\n"
    )
