"""The agent itself: every part of a node in one asyncio process, from start to stop.

Rules:
 * One agent per working directory: a lock on ``.ted/agent.lock`` says so, and is free again when its holder dies.
 * What a former life left open (offers, receipts) goes on at the start.
 * Extraction runs in a process of its own (``ted.agent.extractor``); the agent never writes below a target. It extracts
   only a revision that was never installed here: what was taken back is installed again when a person or a play says
   so.
 * SIGTERM and SIGINT end it; connections under way are cut, which loses nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import math
import os
import random
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

import ted.trust.client  # noqa: F401 -- every agent needs it: here, and not while a first offer waits
from ted.agent.control import ControlServer
from ted.agent.distributor import Distributor
from ted.agent.extractor import Extractor
from ted.agent.locks import hold_lock
from ted.agent.node import Node
from ted.agent.readiness import tell_ready
from ted.agent.receipts import Receipts
from ted.agent.receiver import Receiver, key_of
from ted.agent.sender import Sender
from ted.config import FILE_NAME, NodeConfig
from ted.errors import AgentError, ConfigError, FormatError, TedError
from ted.records.states import State
from ted.topology.model import OutputRates
from ted.transfer.client import Peer
from ted.transfer.pacing import PRIORITIES
from ted.transfer.server import PeerServer
from ted.transfer.slip import RoutingSlip
from ted.transfer.tls import TlsListener

log = logging.getLogger("ted.agent")

_M_ARENA_MAX = -8
_TURN_S, _TURN_AT_A_RATE_S = 0.005, 0.0005
"""How long a thread may keep the interpreter while the event loop wants it; pieces at a rate would come late."""

HOUSEKEEPING_S = 3600.0
BACKLOG = 512
WATCH_EVERY_S = 0.5
_TO_EXTRACT = frozenset({State.RECEIVED, State.EXTRACTING, State.FAILED})


@dataclass(frozen=True)
class _Asked:
    """What the parent answered last, so that the next check need not carry it again."""

    peer: Peer | None = None
    tag: str | None = None
    offers: list[Any] = field(default_factory=list)


class Agent:
    """One node at work."""

    def __init__(self, config: NodeConfig, extractor: Extractor) -> None:
        self.node = Node(config)
        self._extractor = extractor
        self._receipts = Receipts(self.node)
        self.sender = Sender(self.node, self._receipts.learn)
        self.receiver = Receiver(self.node, self.sender, self._received)
        self.distributor = Distributor(self.node, self.sender)
        self._control = ControlServer(config.working.state, {
            "send": self._send, "receive": self._pull, "mend": self._mend, "settle": self._settle,
            "status": self._status, "stop": self._stop,
        })  # fmt: skip
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._extracting: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._again: set[tuple[str, str]] = set()
        self._failure: BaseException | None = None
        self._port = config.port
        self._asked = _Asked()
        self._listener: TlsListener | None = None

    async def run(self) -> None:
        """Work until told to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        runner = await self._listen()
        await self._control.start()
        log.info("%s listens on port %d", self.node.name, self._port)
        tell_ready()
        self._background(self._receipts.run())
        self._background(self._housekeeping())
        self._background(self._watch_limits())
        if self.node.config.distributor:
            self._background(self.distributor.watch())
        if self.node.config.poll_interval:
            self._background(self._poll(self.node.config.poll_interval))
        await self.sender.resume()
        await self.receiver.resume()
        await self._extract_what_waits()
        try:
            await self._stopping.wait()
        finally:
            log.info("%s stops", self.node.name)
            await self._control.stop()
            for task in [*self._tasks, *self._extracting.values()]:
                task.cancel()
            self.node.pool.close()  # ends the threads that wait for a peer
            if self._listener is not None:
                self._listener.close()
            with suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await runner.cleanup()
            self.node.close()
        if self._failure is not None:
            raise AgentError(f"a part of the agent of {self.node.name} failed: {self._failure!r}",
                             hint="its log tells more") from self._failure  # fmt: skip

    async def _listen(self) -> web.AppRunner:
        config = self.node.config
        server = PeerServer(self.node.name, config.working_directory, self.node.packs, self,
                            executor=self.node.executor, gate=self.node.gate_out, timeout_s=config.timeout,
                            min_rate_bytes_s=config.min_rate)  # fmt: skip
        runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=0.5, keepalive_timeout=60)
        await runner.setup()
        try:
            if self.node.server_context is None:
                await web.TCPSite(runner, config.listen, config.port, backlog=BACKLOG, reuse_address=True).start()
            else:
                assert runner.server is not None
                self._listener = TlsListener(runner.server, self.node.server_context, BACKLOG)
                await self._listener.start(config.listen, config.port)
        except OSError as error:
            raise AgentError(f"{self.node.name} cannot listen on port {config.port}: {error.strerror or error}",
                             hint="another program has it; see `ss -ltnp`, or set ted_port") from error  # fmt: skip
        return runner

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # a part that died would leave a lame agent: better none, and the supervisor starts a whole one
            log.critical("a part of the agent failed", exc_info=task.exception())
            self._failure = task.exception()
            self._stopping.set()

    async def _housekeeping(self) -> None:
        while True:
            try:
                await self.node.run(self.node.journal.trim, self.node.config.log_max_age)
                if self.node.config.distributor:
                    await self.node.run(self.distributor.keep_fresh)
            except TedError as error:
                log.error("housekeeping: %s", error)
            await asyncio.sleep(HOUSEKEEPING_S)

    async def _watch_limits(self) -> None:
        """Take changed rates and concurrency from ``node.yml`` while running; anything else needs a new start."""
        directory, limits = self.node.config.config_directory, self.node.config.limits
        seen, is_wrong = None, False
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            stamp = _stamp(directory / FILE_NAME)
            if stamp == seen:
                continue
            seen = stamp
            try:
                config = await self.node.run(NodeConfig.load, directory)
                self.node.change_limits(config)
                hand_over_in_time(config)
                if is_wrong or config.limits != limits:
                    log.info("the limits of %s are taken over: %s", FILE_NAME, _in_words(config.limits))
                limits, is_wrong = config.limits, False
            except TedError as error:
                is_wrong = True
                hint = f" ({error.hint})" if error.hint else ""
                log.error("the limits stay as they are, and a new start would fail: %s%s", error, hint)

    # -- what peers say (ted.transfer.server.Exchange) ------------------------------------------------------

    async def offered(self, data: Any, peer: str) -> dict[str, Any]:
        """Take an offer from ``peer``."""
        return await self.receiver.offered(data, peer)

    async def receipts(self, data: Any, peer: str) -> None:
        """Take receipts from ``peer``."""
        await self._receipts.arrived(data, peer)

    async def offers_for(self, peer: str, every_s: float | None) -> list[dict[str, Any]]:
        """Return the newest slip of each distribution for ``peer``, one that asks by itself."""
        newest: dict[tuple[str, str], Any] = {}
        for offer in await self.node.run(self.node.journal.offers, child=peer):
            newest.setdefault((offer["distributor"], offer["distribution"]), offer["slip"])
        if every_s is not None:
            self.sender.asked_by(peer, every_s)
        return [{"slip": slip} for slip in newest.values()]

    async def priority(self, peer: str, distributor: str, distribution: str) -> str:
        """Return the priority in the newest slip that ``peer`` was offered; ``medium`` when there is none."""
        offers = await self.node.run(self.node.journal.offers, child=peer, distributor=distributor,
                                     distribution=distribution, most=1)  # fmt: skip
        priority = RoutingSlip.decode(offers[0]["slip"]).header.priority if offers else "medium"
        return priority if priority in PRIORITIES else "medium"

    # -- what commands on this machine say -----------------------------------------------------------------

    async def _send(self, asked: dict[str, Any]) -> dict[str, Any]:
        inventory, ends_at = asked.get("inventory"), asked.get("ends_at")
        sends = await self.distributor.send(
            names=asked.get("names") or (), channel=asked.get("channel"), limit=asked.get("limit"),
            revision=asked.get("revision"), inventory=None if inventory is None else Path(inventory),
            ends_at=None if ends_at is None else datetime.fromisoformat(ends_at),
        )  # fmt: skip
        return {"sends": sends}

    async def _pull(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Ask the parent for what this node should have, and start on it."""
        names = set(asked.get("names") or ())
        peer = await self.node.run(self._parent)
        offers, changed = await self._ask(peer)
        taken, refused = [], []
        for offer in offers:
            try:
                slip = RoutingSlip.decode(offer["slip"] if isinstance(offer, dict) else None)
                key = key_of(slip)
                if names and key[1] not in names:
                    continue
                is_open = bool(slip.left_s(datetime.now(UTC)))  # else it failed once, and that is enough
                if changed or (is_open and not await self.node.run(self.node.working.is_received, *key)):
                    await self.receiver.offered(offer, peer.name)
                taken.append(list(key))
            except TedError as error:  # one that is too old says nothing about the others
                refused.append(error.to_dict())
        if names or refused:
            self._asked = _Asked()  # not all of it was taken: the next check starts afresh
        return {"offers": taken, "refused": refused}

    async def _mend(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Fetch again what is damaged of a revision that is stored here."""
        return await self.receiver.mend(asked["distributor"], asked["distribution"], asked["revision"])

    async def _poll(self, every_s: float) -> None:
        """Ask the parent again and again: a node that cannot be reached from outside has no other way to hear."""
        while True:
            try:
                refused = (await self._pull({}))["refused"]
                if refused:
                    log.warning("refused: %s", refused[0]["message"])
            except TedError as error:
                log.info("poll: %s", error)
            await asyncio.sleep(every_s * random.uniform(0.9, 1.0))  # noqa: S311 -- siblings shall not keep step

    async def _ask(self, peer: Peer) -> tuple[list[Any], bool]:
        """Return what ``peer`` offers, and whether that is news."""
        every_s = self.node.config.poll_interval
        path = "/v1/offers" if every_s is None else f"/v1/offers?every={math.ceil(every_s)}"
        known = self._asked if self._asked.peer == peer else _Asked()
        tag, answer = await self.node.call(self.node.pool.call_if_changed, peer, path, known.tag)
        if answer is None and known.tag is not None:
            return known.offers, False
        offers = answer.get("offers") if isinstance(answer, dict) else None
        if not isinstance(offers, list):
            raise FormatError(f"{peer} answers with what is not a list of offers")
        self._asked = _Asked(peer, tag, offers)
        return offers, True

    def _parent(self) -> Peer:
        if self.node.parent is not None:
            return self.node.parent
        for offer in self.node.journal.offers(child=""):
            sender = RoutingSlip.decode(offer["slip"]).sender
            if sender is not None:
                return Peer(sender.name, sender.address, sender.port)
        raise ConfigError(f"{self.node.name} does not know whom to ask",
                          hint="set ted_parent for it and run playbooks/install.yml, or send to it once")  # fmt: skip

    async def _settle(self, _asked: dict[str, Any]) -> dict[str, Any]:
        return {"settled": await self._receipts.settle()}

    async def _status(self, _asked: dict[str, Any]) -> dict[str, Any]:
        return {"node": self.node.name, "pid": os.getpid(), "port": self._port,
                "outdated": await self.node.run(self._is_outdated)}  # fmt: skip

    def _is_outdated(self) -> bool:
        """Return whether ``node.yml`` says what only a new start takes up."""
        try:
            return not self.node.config.is_but_for_limits(NodeConfig.load(self.node.config.config_directory))
        except TedError:
            return True

    async def _stop(self, _asked: dict[str, Any]) -> dict[str, Any]:
        self._stopping.set()
        return {}

    # -- extraction by itself --------------------------------------------------------------------------------

    async def _received(self, slip: RoutingSlip) -> None:
        self._receipts.poke()
        if not (self.node.config.extracts_immediately and slip.hop.target):
            return
        distributor, distribution, revision = key_of(slip)
        rows = await self.node.run(self.node.journal.states, node=self.node.name, distributor=distributor,
                                   distribution=distribution)  # fmt: skip
        # What is installed is not installed again, and what an operator took back stays so.
        if any(row.revision == revision and row.state in _TO_EXTRACT for row in rows):
            self._extract_soon((distributor, distribution))

    def _extract_soon(self, key: tuple[str, str]) -> None:
        self._again.add(key)  # a revision that comes while another is being extracted has its turn after it
        if key not in self._extracting:
            self._extracting[key] = asyncio.create_task(self._extract_all(key))

    async def _extract_all(self, key: tuple[str, str]) -> None:
        try:
            while key in self._again:
                self._again.discard(key)
                await self._extract(*key)
        except OSError as error:
            log.error("extract %s cannot be started: %s", key[1], error)
        finally:
            self._extracting.pop(key, None)

    async def _extract_what_waits(self) -> None:
        """Extract what a former life received and did not extract any more."""
        if not self.node.config.extracts_immediately:
            return
        states = await self.node.run(self.node.journal.states, node=self.node.name)
        waiting = {(row.distributor, row.distribution) for row in states
                   if row.state in {State.RECEIVED, State.EXTRACTING}}  # fmt: skip
        for offer in await self.node.run(self.node.journal.offers, child=""):
            key = (offer["distributor"], offer["distribution"])
            if key in waiting and RoutingSlip.decode(offer["slip"]).hop.target:
                self._extract_soon(key)

    async def _extract(self, distributor: str, distribution: str) -> None:
        said = await self._extractor.run(["--config", str(self.node.config.config_directory), "--json", "extract",
                                          distribution, "--distributor", distributor])  # fmt: skip
        message, news = _heard(said)
        if message:
            log.error("extract %s: %s", distribution, message)
        for revision, state in news:
            log.info("extract %s %s: %s", distribution, revision, state)
        self._receipts.poke()


def _heard(said: bytes) -> tuple[str | None, list[tuple[str, str]]]:
    """Return what went wrong, if anything, and the revisions and states of what ``ted extract --json`` changed."""
    try:
        answer = json.loads(said)
        if error := answer.get("error"):
            return error["message"], []
        return None, [(row["revision"], row["state"]) for row in answer["distributions"] if row["changed"]]
    except (ValueError, AttributeError, KeyError, TypeError):  # a type that prints is heard too
        return None if said else "it ended without an answer", []


def _in_words(limits: dict[str, Any]) -> str:
    """Return limits as a line of a log: those that are set."""
    rates = {f"output_rates.{name}": rate for name, rate in asdict(limits["output_rates"]).items()}
    flat = {name: limit for name, limit in limits.items() if name != "output_rates"} | rates
    return ", ".join(f"{name} {limit}" for name, limit in flat.items() if limit) or "none"


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what tells one writing of a file from another."""
    with suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size
    return None


def run_agent(config: NodeConfig, extractor: Extractor) -> None:
    """Run the agent of this node in this process until it is told to stop; the lock ends with the process."""
    hold_lock(config.working.state, "agent.lock")
    if config.extracts_immediately:
        extractor.start()
    _share_memory()
    hand_over_in_time(config)
    asyncio.run(_run(config, extractor))


def hand_over_in_time(config: NodeConfig) -> None:
    """Let threads hand the interpreter over sooner where there are output rates to keep; elsewhere it costs 7 % CPU."""
    sys.setswitchinterval(_TURN_S if config.output_rates == OutputRates() else _TURN_AT_A_RATE_S)


def _share_memory() -> None:
    """Let all threads have their memory from two arenas; an arena for each keeps some MiB. Source: mallopt(3)."""
    with suppress(OSError, AttributeError):  # another C library has no such arenas
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


async def _run(config: NodeConfig, extractor: Extractor) -> None:
    await Agent(config, extractor).run()
