"""What the parts of an agent share: configuration, journal, identity, connections, packs."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import ParamSpec, TypeVar

from ted.agent.records import open_journal
from ted.config import NodeConfig
from ted.content.working import WorkingDirectory
from ted.errors import UnreachableError
from ted.transfer.client import Peer, Pool
from ted.transfer.gates import InputGate, OutputGate
from ted.transfer.pacing import OutputLimits
from ted.transfer.packs import PackStore
from ted.trust.realm import NodeIdentity
from ted.trust.view import CatalogView, Fetch, KeptChain

P = ParamSpec("P")
R = TypeVar("R")

WORKERS = 24  # journal, disk and what is served: these never wait for a peer
TELL_EVERY_S = 5.0  # a transfer under way is told of at least so often, while something comes
CALLERS = 256  # threads that mostly wait for a peer: one for each fetch or offer under way


def output_limits(config: NodeConfig) -> OutputLimits:
    """Return what a node may give out, from its configuration."""
    return OutputLimits(**asdict(config.output_rates), max_concurrent=config.max_concurrent,
                        fill_spare_slots=config.fill_spare_slots)  # fmt: skip


class Node:
    """One node's own things, made once for its agent's life."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.name = config.node
        self.working: WorkingDirectory = config.working
        self.journal = open_journal(config)
        self.packs = PackStore(config.working_directory, config.node)
        self.executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="ted-work")
        self._callers = ThreadPoolExecutor(CALLERS, thread_name_prefix="ted-call")
        self.server_context: ssl.SSLContext | None = None
        client_context: ssl.SSLContext | None = None
        if config.transport == "https":
            identity = NodeIdentity(config.realm_directory)
            self.server_context, client_context = identity.server_context(), identity.client_context()
        self.gate_out = OutputGate(output_limits(config))
        self.gate_in = InputGate(config.input_rate)
        self.pool = Pool(config.node, client_context, config.timeout)
        self._catalog_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._catalogs_verified: defaultdict[str, KeptChain] = defaultdict(KeptChain)

    @property
    def parent(self) -> Peer | None:
        """Who sends to this node, as its configuration says; ``None`` where it says nothing."""
        config = self.config
        if config.parent is None or config.parent_address is None:
            return None
        return Peer(config.parent, config.parent_address, config.parent_port)

    @property
    def silent_for_s(self) -> float:
        """How long nothing may be heard of a transfer elsewhere before it counts as given up, in seconds."""
        return max(2 * self.config.retry_for + self.config.timeout, 3 * TELL_EVERY_S)

    def change_limits(self, config: NodeConfig) -> None:
        """Take the rates and the concurrency of ``config``, and nothing else of it; for the event loop."""
        self.gate_out.change(output_limits(config))
        self.gate_in.change(config.input_rate)

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run something that blocks on this machine in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, partial(function, *args, **kwargs))

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run something that waits for a peer in a thread of its own kind, so that no peer can hold up the node."""
        return await asyncio.get_running_loop().run_in_executor(self._callers, partial(function, *args, **kwargs))

    @contextmanager
    def catalog_of(self, distributor: str, within_s: float) -> Iterator[None]:
        """Hold the right to refresh a Distributor's catalog here.

        Raises:
            UnreachableError: Another refresh takes longer than ``within_s`` seconds.
        """
        lock = self._catalog_locks[distributor]
        if not lock.acquire(timeout=within_s):
            raise UnreachableError(f"{self.name} is busy with the catalog of {distributor}", hint="it is tried again")
        try:
            yield
        finally:
            lock.release()

    def view(self, distributor: str, fetch: Fetch | None = None) -> CatalogView:
        """Return the verified view of a Distributor's catalog; hold ``catalog_of`` while refreshing it.

        Raises:
            UntrustedDistributorError: This node holds no root of that Distributor.
        """
        directory, root = self.working.catalog(distributor), self.config.trust_root(distributor)
        kept = self._catalogs_verified[distributor] if root.is_file() else None  # any name may be asked for
        return CatalogView(distributor, root, directory, fetch, node=self.name, kept=kept)

    def close(self) -> None:
        """Give back threads, connections and the journal."""
        self.pool.close()
        for executor in (self._callers, self.executor):
            executor.shutdown(wait=False, cancel_futures=True)
        self.journal.close()
