"""A word to the service manager: whoever asked it to start the agent is told when that serves, or that it does not."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def tell_ready() -> None:
    """Say that this process serves now, where systemd waits to hear it (``Type=notify``); elsewhere do nothing."""
    address = os.environ.pop("NOTIFY_SOCKET", "")  # what this process starts has nothing to say there
    if address:
        # as the manager's own library does: a word that nobody hears ends no agent
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.sendto(b"READY=1", "\0" + address[1:] if address[0] == "@" else address)
