"""``ted agent``: the process, in the foreground or kept running in the background."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from ted.agent import supervisor
from ted.cli.main import Settings, emit, main
from ted.config import NodeConfig
from ted.errors import AgentError

_WOULD_BE = {"start": "started", "stop": "stopped", "restart": "started anew"}


@click.command("agent")
@click.argument("action", required=False, default="run",
                type=click.Choice(["run", "start", "stop", "restart", "status", "supervise"]))  # fmt: skip
@click.option("--check", is_flag=True, help="Say what would change, and change nothing.")
@click.pass_obj
def command(settings: Settings, action: str, check: bool) -> None:
    """Run this node's agent, or start, stop and look after one in the background.

    Without ACTION it runs in the foreground until SIGTERM, as a service manager wants it. `status` ends with
    exit code 70 when no agent runs.
    """
    config = NodeConfig.load(settings.config)
    if action in {"run", "supervise"}:
        logging.basicConfig(
            stream=sys.stderr, level=logging.DEBUG if settings.verbose else logging.INFO,
            format=f"%(asctime)s {config.node} %(levelname)s %(name)s: %(message)s",
        )  # fmt: skip
        logging.getLogger("aiohttp").setLevel(logging.WARNING)
        if action == "run":
            from ted.agent.extractor import Extractor
            from ted.agent.service import run_agent

            run_agent(config, Extractor(_ready_to_extract))
        else:
            supervisor.supervise(config)
        logging.shutdown()
        os._exit(0)  # threads may still wait for a peer; what they would do is done again by the next agent
    now = supervisor.status(config)
    if action == "status" and not now["running"]:
        raise _not_running(now)
    if check:
        changed = {"start": not now["running"], "stop": now["running"], "restart": True, "status": False}[action]
    else:
        changed = _act(action, config)
        now = supervisor.status(config)
    word = _word(action, now, ended=changed and not check)
    if check and changed:
        word += f"; would be {_WOULD_BE[action]}"
    emit(settings, {"changed": changed, **now}, f"agent of {now['node']}: {word}")


def _ready_to_extract() -> Callable[[list[str]], None]:
    """Return the command line, with what `ted extract` needs imported; types but the most usual are left to it."""
    for name in ("ted.cli.extract_cmd", "ted_plugins.file"):
        importlib.import_module(name)
    return main


def _word(action: str, now: dict[str, Any], *, ended: bool) -> str:
    if now["running"]:
        return f"running, process {now['pid']}, port {now['port']}"
    return "stopped" if action == "stop" and ended else "not running"


def _not_running(now: dict[str, Any]) -> AgentError:
    """Return the error ``ted agent status`` ends with: nothing is there, or a process that does not answer."""
    if now["pid"]:
        error = AgentError(f"the agent of {now['node']} does not answer: process {now['pid']}",
                           hint="`ted agent restart` ends it and starts another")  # fmt: skip
    else:
        error = AgentError(f"the agent of {now['node']} is not running",
                           hint="`ted agent start` starts it in the background")  # fmt: skip
    error.data = {"changed": False, **now}
    return error


def _act(action: str, config: NodeConfig) -> bool:
    if action == "start":
        return supervisor.start(config)
    if action == "stop":
        return supervisor.stop(config)
    if action == "restart":
        supervisor.stop(config)
        return supervisor.start(config)
    return False
