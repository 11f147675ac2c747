"""The word to the service manager."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ted.agent.readiness import tell_ready


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_hears_it_and_no_child_says_it_again(
    abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"ted-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else name)
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        tell_ready()
        assert manager.recv(100) == b"READY=1"
    assert "NOTIFY_SOCKET" not in os.environ
    tell_ready()  # nobody waits for it: nothing to say
