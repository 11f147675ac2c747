"""Plugins: found, called for their own type only, and harmless to others when they break."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest
from install_depot import DISTRIBUTOR, Depot

from ted import hookspecs
from ted.content.builder import RevisionBuilder
from ted.errors import BuildError, OptionsError, PluginError
from ted.install.extract import extract
from ted.install.rollback import rollback
from ted.install.verify import verify_installed
from ted.plugins import OWN, Plugins

NOTE_TYPE = """
from pydantic import BaseModel, ConfigDict, Field
from ted import hookimpl
from ted.errors import BuildError
from ted.hookspecs import BuildContext, Drift, InstallContext, TypeInfo

class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str = Field(description="What the note says.")
    directory: str = Field("%DEST_VOLUME%", description="Where it goes.")

@hookimpl
def ted_type():
    return TypeInfo("note", "A note.", Options)

@hookimpl
def ted_build(build):
    if build.options.text == "refuse":
        raise BuildError("no such note", hint="write another")
    if build.options.text == "crash":
        raise RuntimeError("oops")
    build.log.warning("the note is short")
    for number in range(1, 251 if build.options.text == "nag" else 1):
        build.log.warning("number %d", number)
    (build.scratch / "seen").write_text("x")
    build.add_bytes("note.txt", build.options.text.encode())

@hookimpl
def ted_extract(install):
    root = install.expand(install.options.directory)
    for number in range(250 if install.options.text == "nag" else 0):
        install.log.warning("number %d", number)
    for entry in install.entries():
        if entry.kind == "f":
            install.transaction.write(root, entry.path, install.read(entry), size=entry.size)

@hookimpl
def ted_verify(install):
    return [Drift("note", "faded")] if install.options.text == "fades" else []

@hookimpl
def ted_rollback(install):
    install.transaction.write(install.expand("%DEST_VOLUME%"), b"gone.txt", [b"taken back"], size=10)
"""

WRAPPER = """
from ted import hookimpl

calls = []

@hookimpl(wrapper=True)
def ted_build(build):
    calls.append(("before build", build.distribution))
    result = yield
    calls.append(("after build", build.distribution))
    return result

@hookimpl(wrapper=True)
def ted_extract(install):
    calls.append(("before extract", install.distribution))
    result = yield
    calls.append(("after extract", install.distribution))
    return result
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], EntryPoint]:
    """Return a function that makes a module and its entry point."""
    monkeypatch.syspath_prepend(tmp_path / "modules")
    (tmp_path / "modules").mkdir()
    made: list[str] = []

    def make(name: str, text: str) -> EntryPoint:
        (tmp_path / "modules" / f"{name}.py").write_text(textwrap.dedent(text))
        made.append(name)
        return EntryPoint(name.removeprefix("ted_test_"), name, "ted")

    yield make  # type: ignore[misc]
    for name in made:
        sys.modules.pop(name, None)


FILE = EntryPoint("file", "ted_plugins.file", "ted")


def build(depot: Depot, plugins: Plugins, text: str, name: str = "n") -> list[str]:
    import hashlib

    options = plugins.validate_options("note", {"text": text})
    with RevisionBuilder(
        depot.working.distribution(DISTRIBUTOR, name), DISTRIBUTOR, name, "note", {}, options.model_dump(mode="json")
    ) as builder:
        warnings = plugins.gather("note", builder, options, depot.working.state / "build")
        depot.signed.add(hashlib.sha256(builder.finish().record_bytes).hexdigest())
    return warnings


def test_a_type_of_an_outside_package_builds_extracts_verifies_and_rolls_back(
    tmp_path: Path, plugin: Callable[[str, str], EntryPoint]
) -> None:
    plugins = Plugins([FILE, plugin("ted_test_note", NOTE_TYPE)])
    assert [known.info.name for known in plugins.types()] == ["file", "note"]
    depot = Depot(tmp_path, given_plugins=plugins)
    assert build(depot, plugins, "hello") == ["the note is short"]
    result = extract(depot.host, DISTRIBUTOR, "n")
    assert (tmp_path / "target" / "note.txt").read_text() == "hello"
    assert result.actions == {"directories": 1, "written": 1}
    build(depot, plugins, "fades")
    extract(depot.host, DISTRIBUTOR, "n")
    assert [problem.what for problem in verify_installed(depot.host, DISTRIBUTOR, "n")][-1] == "faded"
    rollback(depot.host, DISTRIBUTOR, "n")
    assert (tmp_path / "target" / "note.txt").read_text() == "hello"
    assert (tmp_path / "target" / "gone.txt").read_text() == "taken back"


def test_of_warnings_the_first_hundred_are_told_and_how_many_more(
    tmp_path: Path, plugin: Callable[[str, str], EntryPoint]
) -> None:
    plugins = Plugins([FILE, plugin("ted_test_note", NOTE_TYPE)])
    depot = Depot(tmp_path, given_plugins=plugins)
    told = build(depot, plugins, "nag")
    assert (len(told), told[99], told[100]) == (101, "number 99", "and 151 more warnings")
    told = extract(depot.host, DISTRIBUTOR, "n").warnings
    assert (len(told), told[99], told[100]) == (101, "number 99", "and 150 more warnings")


def test_wrappers_of_other_plugins_stand_around_build_and_extract_of_every_type(
    tmp_path: Path, plugin: Callable[[str, str], EntryPoint]
) -> None:
    plugins = Plugins([FILE, plugin("ted_test_note", NOTE_TYPE), plugin("ted_test_wrapper", WRAPPER)])
    depot = Depot(tmp_path, given_plugins=plugins)
    build(depot, plugins, "hello")
    extract(depot.host, DISTRIBUTOR, "n")
    calls = sys.modules["ted_test_wrapper"].calls
    assert calls == [("before build", "n"), ("after build", "n"), ("before extract", "n"), ("after extract", "n")]


def test_only_the_plugin_of_the_type_is_called(tmp_path: Path, plugin: Callable[[str, str], EntryPoint]) -> None:
    other = NOTE_TYPE.replace('"note"', '"other"').replace("build.add_bytes", "raise SystemError; build.add_bytes")
    plugins = Plugins([plugin("ted_test_note", NOTE_TYPE), plugin("ted_test_other", other)])
    depot = Depot(tmp_path, given_plugins=plugins)
    build(depot, plugins, "hello")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("import no_such_module_anywhere", "no_such_module_anywhere"),
        ("raise SystemExit(3)", "SystemExit"),
        ("def (", "SyntaxError"),
        ("from ted import hookimpl\n@hookimpl\ndef ted_biuld(build): ...", "ted_build"),
        ("from ted import hookimpl\n@hookimpl\ndef ted_build(build, more): ...", "more"),
        ("from ted import hookimpl\n@hookimpl\ndef ted_type(): return 'x'", "not TypeInfo"),
        (NOTE_TYPE.replace("def ted_extract", "def _unused").replace("@hookimpl\ndef _unused", "def _unused"),
         "no ted_extract"),
    ],
)  # fmt: skip
def test_a_broken_plugin_is_named_with_its_cause_and_other_types_go_on(
    plugin: Callable[[str, str], EntryPoint], text: str, cause: str
) -> None:
    plugins = Plugins([plugin("ted_test_broken", text), FILE])
    assert [known.info.name for known in plugins.types()] == ["file"]
    (broken,) = plugins.broken
    assert cause in broken.cause
    with pytest.raises(PluginError, match="ted_test_broken"):
        plugins.type_named("broken")


def test_hooks_that_a_later_ted_calls_are_no_fault(plugin: Callable[[str, str], EntryPoint]) -> None:
    more = "\n@hookimpl\ndef ted_plan(plan): ...\n@hookimpl\ndef ted_carrier(): ...\n"
    assert Plugins([plugin("ted_test_note", NOTE_TYPE + more)]).broken == []


def test_two_packages_with_one_type_are_both_named(plugin: Callable[[str, str], EntryPoint]) -> None:
    plugins = Plugins([plugin("ted_test_one", NOTE_TYPE), plugin("ted_test_two", NOTE_TYPE)])
    with pytest.raises(PluginError, match=r"ted_test_one.*ted_test_two"):
        plugins.type_named("note")


def test_a_plugins_own_error_is_shown_as_it_is_and_a_crash_names_the_plugin(
    tmp_path: Path, plugin: Callable[[str, str], EntryPoint]
) -> None:
    plugins = Plugins([plugin("ted_test_note", NOTE_TYPE)])
    depot = Depot(tmp_path, given_plugins=plugins)
    with pytest.raises(BuildError, match="no such note"):
        build(depot, plugins, "refuse")
    where = r"ted_test_note failed in ted_build \(ted_test_note\.py:\d+\): RuntimeError: oops"
    with pytest.raises(PluginError, match=where):
        build(depot, plugins, "crash")


def test_a_type_that_is_not_available_here_skips_with_the_reason(
    tmp_path: Path, plugin: Callable[[str, str], EntryPoint]
) -> None:
    plugins = Plugins([plugin("ted_test_note", NOTE_TYPE)])
    depot = Depot(tmp_path, given_plugins=plugins)
    build(depot, plugins, "hello")
    text = NOTE_TYPE.replace('"A note.", Options', '"A note.", Options, available=lambda: "no paper"')
    depot.host.given_plugins = Plugins([plugin("ted_test_without", text)])
    result = extract(depot.host, DISTRIBUTOR, "n")
    assert (result.state, result.reason) == ("skipped", "type 'note' cannot work on this machine: no paper")
    assert result.hint is None
    depot.host.given_plugins = Plugins([FILE])
    result = extract(depot.host, DISTRIBUTOR, "n")
    assert result.state == "skipped"
    assert "note" in str(result.reason)
    assert "install the package that brings it" in str(result.to_dict()["hint"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, ["targets: Field required"]),
        ({"targets": []}, ["targets:"]),
        ({"targets": [{"form": ["/x"]}], "ovrwrite": 1}, ["targets.0.form", "'from'", "'overwrite'"]),
        *[({"targets": [{"mode": number}]}, ["targets.0.mode", "'0644'"]) for number in (644, 755, 400, 440, True)],
        ({"targets": [{"mode": "0899"}]}, ["targets.0.mode"]),
        ({"targets": [{"remove": ["../x"]}]}, ["targets.0.remove", "../x"]),
        ({"targets": [{}], "overwrite": "sometimes"}, ["overwrite", "'newer'"]),
    ],
)
def test_every_problem_of_options_is_told_with_its_place(options: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(OptionsError) as caught:
        Plugins([FILE]).validate_options("file", options)
    assert all(text in caught.value.message for text in told)


def test_options_travel_as_the_inventory_spells_them() -> None:
    plugins = Plugins([FILE])
    model = plugins.validate_options("file", {"targets": [{"path": "/x", "from": ["/y/"], "mode": "1777"}]})
    for number in (0o644, 0o600, 0o640, 0o755, 0o750, 0o400, 0o444):  # what YAML makes of 0644 and the like
        targets = [{"path": "/x", "from": ["/y/"], "mode": number}]
        assert plugins.validate_options("file", {"targets": targets}).targets[0].mode == number
    dumped = model.model_dump(mode="json")
    assert dumped["targets"][0]["from"] == ["/y/"]
    assert dumped["targets"][0]["mode"] == "1777"
    assert plugins.validate_options("file", dumped) == model


def test_every_option_is_described_in_the_page_of_the_type() -> None:
    page = (Path(__file__).parents[2] / "docs" / "types" / "file.md").read_text()
    schema = Plugins([FILE]).type_named("file").info.options.model_json_schema()
    for fields in (schema["properties"], schema["$defs"]["Target"]["properties"]):
        for name, field in fields.items():
            assert field.get("description"), name
            assert f"| `{name}` |" in page, name


def test_only_the_plugin_that_is_asked_for_is_loaded() -> None:
    ask = "import sys; from ted.plugins import installed; installed().type_named('file'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    loaded = [name for name in done.stdout.split() if name.startswith("ted_plugins.")]
    assert "ted_plugins.file" in loaded
    assert not {"ted_plugins.http", "ted_plugins.rpm", "ted_plugins.desktop"} & set(loaded)


def test_teds_own_plugins_bring_the_type_they_are_called_by_and_no_more() -> None:
    """So a plugin that waits is missed by nobody: it wraps nothing and has no commands."""
    of_a_type = {"ted_type", "ted_build", "ted_extract", "ted_verify", "ted_rollback", "ted_sample"}
    for entry_point in entry_points(group="ted"):
        if entry_point.module.startswith(OWN):
            plugin = entry_point.load()
            found = {name: getattr(each, "ted_impl", None) for name, each in vars(plugin).items()}
            hooks = {name for name, options in found.items() if isinstance(options, dict)}
            assert plugin.ted_type().name == entry_point.name
            assert hooks <= of_a_type
            assert not any(getattr(plugin, name).ted_impl["wrapper"] for name in hooks)


def test_a_strangers_plugin_of_one_of_teds_types_is_found_at_once(plugin: Callable[[str, str], EntryPoint]) -> None:
    text = NOTE_TYPE.replace('TypeInfo("note"', 'TypeInfo("file"')
    plugins = Plugins([FILE, plugin("ted_test_stranger", text)])
    with pytest.raises(PluginError, match="brought by more than one package"):
        plugins.type_named("file")


@pytest.mark.parametrize("type_name", ["note", "file"])
def test_a_strangers_plugin_may_have_the_name_of_one_of_teds(
    plugin: Callable[[str, str], EntryPoint], type_name: str
) -> None:
    stranger = plugin("ted_test_file", NOTE_TYPE.replace('TypeInfo("note"', f'TypeInfo("{type_name}"'))
    assert stranger.name == FILE.name
    for found in ([FILE, stranger], [stranger, FILE]):
        plugins = Plugins(found)
        if type_name == "file":
            with pytest.raises(PluginError, match="brought by more than one package"):
                plugins.type_named("file")
        else:
            for name in ("file", "note"):
                assert plugins._has(plugins.type_named(name).plugin, "ted_build")
        assert plugins.broken == []


def test_every_hook_is_on_the_page_for_authors_with_its_signature() -> None:
    page = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
    for name, hook in vars(hookspecs.Hooks).items():
        if name.startswith("ted_"):
            parameters = [each for each in inspect.signature(hook).parameters if each != "self"]
            assert f"`{name}({', '.join(parameters)})`" in page, name
            assert hook.__doc__
            assert "versionadded" in hook.__doc__


def test_the_example_of_the_page_for_authors_works(tmp_path: Path, plugin: Callable[[str, str], EntryPoint]) -> None:
    import hashlib

    page = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
    code = page.split("```python\n# ted_motd.py\n")[1].split("```")[0]
    plugins = Plugins([plugin("ted_motd", code)])
    assert plugins.broken == []
    depot = Depot(tmp_path, given_plugins=plugins)
    options = plugins.validate_options("motd", {"text": "Closed on Sunday", "path": "%DEST_VOLUME%/etc"})
    with RevisionBuilder(
        depot.working.distribution(DISTRIBUTOR, "m"), DISTRIBUTOR, "m", "motd", {}, options.model_dump(mode="json")
    ) as builder:
        plugins.gather("motd", builder, options, depot.working.state / "build")
        depot.signed.add(hashlib.sha256(builder.finish().record_bytes).hexdigest())
    assert extract(depot.host, DISTRIBUTOR, "m").changed
    assert (tmp_path / "target" / "etc" / "motd").read_text() == "Closed on Sunday\n"
    assert not extract(depot.host, DISTRIBUTOR, "m", force=True).changed
    rollback(depot.host, DISTRIBUTOR, "m")
    assert not (tmp_path / "target").exists()
