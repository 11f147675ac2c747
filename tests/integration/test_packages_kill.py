"""Scripts that fail and kill -9 of everything while packages are installed: the next run ends right."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from install_depot import DISTRIBUTOR, NAME
from package_depot import PackageDepot, Workshop

from ted.errors import TedError

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

SCRIPTS = {"pre": "preinst", "post": "postinst", "preun": "prerm", "postun": "postrm"}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(params=["rpm", "apt"])
def depot(tmp_path: Path, workshop: Workshop, request: pytest.FixtureRequest) -> PackageDepot:
    return PackageDepot(tmp_path, request.param, workshop)


def with_script(depot: PackageDepot, name: str, version: str, when: str, text: str) -> Path:
    """Return a package with a script, in the words of rpm."""
    if depot.kind == "rpm":
        return depot.make(name, version, scripts=f"%{when}\n{text}\n")
    return depot.make(name, version, scripts={SCRIPTS[when]: text})


def a_node_with(depot: PackageDepot, when: str, text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Have ``lib`` 1 and ``old`` there, and a revision that upgrades one and erases the other, with a script.

    Returns:
        What is installed, and the packages' files, before.
    """
    depot.with_a_shell()
    goes = when in ("preun", "postun")  # a script of the version that goes
    depot.have(with_script(depot, "lib", "1", when, text) if goes else depot.make("lib"), depot.make("old"))
    new = depot.make("lib", "2") if goes else with_script(depot, "lib", "2", when, text)
    depot.pack(new, depot.make("app"), erase=["old"])
    return depot.installed(), depot.files()


def in_a_child(work: object) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()  # type: ignore[operator]
        except BaseException:  # noqa: BLE001 -- nothing may return into the parent's tests
            os._exit(7)
        os._exit(0)
    return pid


AFTER = {"lib": "2", "app": "1"}


@pytest.mark.parametrize("when", ["pre", "preun"])
def test_a_script_that_fails_in_the_middle_undoes_everything(depot: PackageDepot, when: str) -> None:
    once = "if [ ! -e /may ]; then exit 1; fi"
    before, files = a_node_with(depot, when, once)
    with pytest.raises(TedError):
        depot.extract()
    assert (depot.installed(), depot.files()) == (before, files)
    assert list(depot.host.states.transactions.iterdir()) == []
    (depot.system / "may").touch()
    depot.extract()
    assert depot.installed() == AFTER


@pytest.mark.parametrize(("when", "whom"), [("pre", "$PPID"), ("post", "0"), ("preun", "0"), ("postun", "$PPID")])
def test_a_package_manager_killed_in_a_script_is_undone(depot: PackageDepot, when: str, whom: str) -> None:
    once = f"[ -e /killed ] || {{ : > /killed; kill -9 {whom}; }}"
    before, files = a_node_with(depot, when, once)
    with pytest.raises(TedError):
        depot.extract()
    assert (depot.system / "killed").exists()
    assert (depot.installed(), depot.files()) == (before, files)
    assert depot.extract().state == "extracted"
    assert depot.installed() == AFTER
    assert depot.rollback().warnings == []
    assert (depot.installed(), depot.files()) == (before, files)


def test_ted_killed_while_the_package_manager_goes_on_waits_for_it_the_next_time(depot: PackageDepot) -> None:
    wait = "if [ ! -e /reached ]; then : > /reached; while [ ! -e /go ]; do :; done; fi"
    before, files = a_node_with(depot, "pre", wait)
    child = in_a_child(depot.extract)
    deadline = time.monotonic() + 60
    while not (depot.system / "reached").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    threading.Timer(1.0, (depot.system / "go").touch).start()
    result = depot.extract()
    assert (result.state, depot.installed()) == ("extracted", AFTER)
    assert [step.state for step in depot.host.states.load(DISTRIBUTOR, NAME).chain] == ["extracted"]
    depot.rollback()
    assert (depot.installed(), depot.files()) == (before, files)


def test_an_extraction_or_rollback_killed_at_any_step_is_finished_or_undone(depot: PackageDepot) -> None:
    before, files = a_node_with(depot, "pre", "true")

    def killing(at: int) -> None:
        steps = 0

        def on_act(_phase: str, _number: int) -> None:
            nonlocal steps
            steps += 1
            if steps == at:
                os.kill(os.getpid(), signal.SIGKILL)

        depot.host.on_act = on_act

    for step in range(1, 100):
        killing(step)
        status = os.waitpid(in_a_child(depot.extract), 0)[1]
        depot.host.on_act = None
        assert depot.installed() in (before, AFTER)
        assert depot.extract().state == "extracted"
        assert depot.installed() == AFTER
        killing(step)
        back = os.waitpid(in_a_child(depot.rollback), 0)[1]
        depot.host.on_act = None
        if depot.host.states.load(DISTRIBUTOR, NAME).chain:
            depot.rollback()
        assert (depot.installed(), depot.files()) == (before, files), step
        assert list(depot.host.states.transactions.iterdir()) == []
        if status == back == 0:
            assert step > 4
            return
    pytest.fail("it never came to its end")
