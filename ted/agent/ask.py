"""Asking the agent of this node; the other side is ``ted.agent.control``."""

from __future__ import annotations

import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any

from ted import errors
from ted.errors import AgentError, TedError

SOCKET = "agent.sock"
TIMEOUT_S = 120.0


def call_agent(state_directory: Path, name: str, *, timeout_s: float = TIMEOUT_S, **arguments: Any) -> Any:
    """Ask the agent of this node; returns its JSON answer.

    Raises:
        AgentError: It is not running, or does not answer within ``timeout_s`` seconds.
        TedError: What the agent answered with.
    """
    connection = http.client.HTTPConnection("localhost", timeout=timeout_s)
    try:
        connection.sock = _connect(state_directory, timeout_s)
        connection.request("POST", f"/{name}", json.dumps(arguments), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        data = json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise AgentError(
            f"the agent of this node does not answer ({error or type(error).__name__})",
            hint="start it: `ted agent start`, or the service ted-agent; its log is agent.log in "
            f"{state_directory}",
        ) from error
    finally:
        connection.close()
    if answer.status >= 400:
        raise _as_raised(data["error"])
    return data


def _connect(state_directory: Path, timeout_s: float) -> socket.socket:
    fd = os.open(state_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_s)
        try:
            connection.connect(f"/proc/self/fd/{fd}/{SOCKET}")
        except OSError:
            connection.close()
            raise
        return connection
    finally:
        os.close(fd)


def _as_raised(data: dict[str, Any]) -> TedError:
    kind = getattr(errors, str(data.get("type")), TedError)
    if kind is errors.InventoryError:
        return errors.InventoryError(data["message"], problems=data.get("problems", []), hint=data.get("hint"))
    error: TedError = kind(data["message"], hint=data.get("hint"))
    return error
