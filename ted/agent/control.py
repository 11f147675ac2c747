"""The door of the agent for commands on the same machine: HTTP over a Unix socket that only its user can open.

Rules:
 * The socket lies in the working directory, mode 0600; whoever can open it is the agent's own user or root.
 * Its path is opened through a directory descriptor, since a socket's path may have 107 bytes only.
 * Errors have the shape of the protocol; they come out of the caller as the errors they were.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from ted.agent.ask import SOCKET
from ted.errors import AgentError
from ted.transfer.server import errors_have_one_shape

STOP_WITHIN_S = 2.0
"""How long calls that are under way are waited for when the agent ends."""

Handler = Callable[[dict[str, Any]], Awaitable[Any]]


class ControlServer:
    """Serves named calls: ``POST /<name>`` with a JSON object, answered with JSON."""

    def __init__(self, state_directory: Path, calls: dict[str, Handler]) -> None:
        self._directory = state_directory
        self._calls = calls
        self._runner: web.AppRunner | None = None
        self._fd = -1

    async def start(self) -> None:
        """Open the socket; an old one of a dead agent is replaced (the caller holds the agent's lock)."""
        app = web.Application(middlewares=[errors_have_one_shape])
        app.add_routes([web.post("/{name}", self._call)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_WITHIN_S)
        await self._runner.setup()
        self._fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        path = f"/proc/self/fd/{self._fd}/{SOCKET}"
        if os.path.lexists(path):
            os.unlink(path)
        mask = os.umask(0o177)
        try:
            await web.UnixSite(self._runner, path).start()
        finally:
            os.umask(mask)

    async def stop(self) -> None:
        """Close the socket."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._fd >= 0:
            os.close(self._fd)

    async def _call(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self._calls:
            raise AgentError(f"the agent knows no call {name!r}", hint="is the agent of another version? restart it")
        return web.json_response(await self._calls[name](await request.json()))
