"""Parts of the answer with blocks: what is read at once, and the watch over writes."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import random
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import ClientSession, web

from ted.content.blocks import BlockList, PartialPack
from ted.content.builder import RevisionBuilder
from ted.content.record import PackRef
from ted.errors import BusyError, DamagedError, FormatError, MissingContentError
from ted.transfer.packs import Incoming, PackStore, ServedPack
from ted.transfer.server import PeerServer, _CutShort, _for_s, _wanted, _Watch, errors_have_one_shape

DATA = random.Random(2).randbytes(300_000)
BLOCK_BYTES = 65536


def served(path: Path) -> ServedPack:
    path.write_bytes(DATA)
    blocks = -(-len(DATA) // BLOCK_BYTES)
    ref = PackRef(revision="", bytes=len(DATA), block_bytes=BLOCK_BYTES, blocks=blocks, root="", live=((0, blocks),))
    return ServedPack(path, ref, None, None)


def test_what_is_in_memory_is_read_at_once_on_a_disk_and_on_a_file_system_in_memory(tmp_path: Path) -> None:
    assert os.access("/dev/shm", os.W_OK), "this test needs a file system in memory at /dev/shm"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        for place in (tmp_path, Path(memory)):
            pack = served(place / "pack")
            buffer = memoryview(bytearray(1000))
            read = [pack.read_cached(2, 500, buffer) for _ in range(2)]
            assert read[1], f"nothing is read at once in {place}"
            assert buffer == DATA[2 * BLOCK_BYTES + 500 : 2 * BLOCK_BYTES + 1500]
            pack.close()


def test_a_pack_that_is_too_short_is_said_to_be(tmp_path: Path) -> None:
    pack = served(tmp_path / "pack")
    os.truncate(tmp_path / "pack", 100_000)
    buffer = memoryview(bytearray(1000))
    assert not pack.read_cached(3, 0, buffer)
    with pytest.raises(MissingContentError, match="shorter than it should be"):
        pack.read(3, 0, buffer)
    pack.close()


def test_a_block_of_a_pack_that_came_only_in_part_is_not_served_as_if_it_were_here(tmp_path: Path) -> None:
    whole = BlockList.of_pack(_written(tmp_path / "whole"), BLOCK_BYTES)
    ref = PackRef("20261122T125447123456Z", len(DATA), BLOCK_BYTES, len(whole), whole.root.hex(), ((0, len(whole)),))
    directory = tmp_path / "hq" / "app" / ref.revision
    pack = PartialPack.prepare(directory, ref, whole.digests)
    pack.write(0, DATA[:BLOCK_BYTES])
    pack.flush()
    pack.close()
    store, key = PackStore(tmp_path, "s01"), ("hq", "app", ref.revision)
    with store.open(key, ref) as served_pack:
        assert (served_pack.has(0), served_pack.has(1)) == (True, False)
        with pytest.raises(MissingContentError):
            asyncio.run(served_pack.available(1, 1))


def test_a_size_that_no_record_tells_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A peer says it, so it proves nothing of what is here."""
    with RevisionBuilder(tmp_path / "hq" / "app", "hq", "app", "file", {}, {}) as builder:
        builder.add_bytes("data/file", b"text")
        (own,) = builder.finish().record.packs
    store, key = PackStore(tmp_path, "s01"), ("hq", "app", own.revision)
    wrong = replace(own, bytes=own.bytes + 1)
    with pytest.raises(MissingContentError, match="other sizes"), store.open(key, wrong):
        pass
    assert not caplog.records
    os.truncate(tmp_path.joinpath(*key, "DISTFILE.TED"), own.bytes - 1)
    with pytest.raises(DamagedError, match="damaged at s01"), store.open(key, own):
        pass


def test_who_asks_for_what_came_no_further_hears_that_it_is_damaged_until_it_comes_in_anew(tmp_path: Path) -> None:
    whole = BlockList.of_pack(_written(tmp_path / "whole"), BLOCK_BYTES)
    ref = PackRef("20261122T125447123456Z", len(DATA), BLOCK_BYTES, len(whole), whole.root.hex(), ((0, len(whole)),))
    pack = PartialPack.prepare(tmp_path / "hq" / "app" / ref.revision, ref, whole.digests)
    pack.make()
    store, key = PackStore(tmp_path, "s01"), ("hq", "app", ref.revision)

    async def scenario() -> None:
        incoming = Incoming(pack, asyncio.get_running_loop())
        store.announce(key, incoming)
        store.withdraw(key, incoming, DamagedError("block 0 is damaged at hq"))
        with store.open(key, ref) as served_pack, pytest.raises(DamagedError, match="damaged at hq"):
            await served_pack.available(0, 1)
        store.announce(key, incoming)
        store.withdraw(key, incoming)
        with store.open(key, ref) as served_pack, pytest.raises(MissingContentError):
            await served_pack.available(0, 1)

    asyncio.run(scenario())
    pack.close()


class Coming:
    """A pack whose block comes while somebody looks for it: at the look of that number, before or after the answer."""

    def __init__(self, at_look: int, *, seen: bool) -> None:
        self.incoming = Incoming(cast("PartialPack", self), asyncio.get_running_loop())
        self.looks = 0
        self._at_look, self._seen, self._is_here = at_look, seen, False

    def has(self, _block: int) -> bool:
        self.looks += 1
        answer = self._is_here
        if self.looks == self._at_look:
            writer = threading.Thread(target=self._write)
            writer.start()
            writer.join()
            answer = self._seen
        return answer

    def _write(self) -> None:
        self._is_here = True
        self.incoming.advanced()


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("at_look", [1, 2])
def test_no_block_is_missed_that_comes_while_somebody_looks_for_it(at_look: int, seen: bool) -> None:
    async def scenario() -> None:
        coming = Coming(at_look, seen=seen)
        await coming.incoming.available(0, 5)
        assert not coming.incoming._waiting

    begun_s = time.monotonic()
    asyncio.run(scenario())
    assert time.monotonic() - begun_s < 4


def test_a_block_that_nobody_waits_for_wakes_nobody() -> None:
    async def scenario() -> None:
        coming = Coming(1, seen=True)
        coming.incoming._loop = cast("Any", None)  # whoever woke it would find nothing
        await coming.incoming.available(0, 5)
        with pytest.raises(BusyError):
            await Coming(99, seen=False).incoming.available(0, 0.05)
        given_up = Coming(99, seen=False)
        waiting = asyncio.create_task(given_up.incoming.available(0, 5))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        given_up.incoming._loop = cast("Any", None)
        given_up.incoming.advanced()

    asyncio.run(scenario())


def test_each_waits_for_a_block_for_as_long_as_it_said_and_one_timer_serves_all() -> None:
    async def scenario() -> None:
        coming = Coming(99, seen=False)
        incoming, begun_s = coming.incoming, time.monotonic()
        ended: list[str] = []

        async def wait(name: str, within_s: float) -> None:
            with pytest.raises(BusyError):
                await incoming.available(0, within_s)
            assert time.monotonic() - begun_s >= within_s
            ended.append(name)

        patient = asyncio.create_task(incoming.available(0, 60))
        await asyncio.sleep(0)
        first = incoming._timer
        waits = [asyncio.create_task(wait(*each)) for each in (("later", 0.3), ("sooner", 0.1))]
        await asyncio.sleep(0)
        assert first is not None
        assert first.cancelled(), "there is one for whoever gives up first"
        await asyncio.wait_for(asyncio.gather(*waits), 30)
        assert ended == ["sooner", "later"]
        assert not patient.done()
        coming._write()
        await asyncio.wait_for(patient, 30)
        incoming.stop(MissingContentError("it ends"))
        assert incoming._timer is not None
        assert incoming._timer.cancelled(), "it would keep the pack for as long as somebody was ready to wait"

    asyncio.run(scenario())


def _written(path: Path) -> Path:
    path.write_bytes(DATA)
    return path


@pytest.mark.parametrize("size", [float("inf"), 10**400, "x", None])
def test_a_request_with_impossible_numbers_is_refused(size: object) -> None:
    with pytest.raises(FormatError):
        _wanted("r", {"bytes": size, "block_bytes": BLOCK_BYTES, "runs": [[0, 1]]})


def test_how_long_blocks_are_wanted_is_bounded() -> None:
    assert (_for_s({}), _for_s({"for_s": 1.5}), _for_s({"for_s": 10**400})) == (math.inf, 1.5, math.inf)
    for impossible in (-1, float("nan"), "1", True, None):
        with pytest.raises(FormatError):
            _for_s({"for_s": impossible})


@asynccontextmanager
async def transport() -> AsyncIterator[asyncio.Transport]:
    here, there = socket.socketpair()
    made, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=here)
    with there:
        yield made
        made.abort()
        await asyncio.sleep(0)


def test_one_write_that_takes_too_long_is_cut() -> None:
    async def test() -> None:
        async with transport() as made:
            watch = _Watch(made)
            watch.begins(asyncio.get_running_loop().time() + 0.1)
            async with asyncio.timeout(10):
                while not watch.has_cut:
                    await asyncio.sleep(0.01)
            assert made.is_closing()

    asyncio.run(test())


def test_many_writes_in_time_are_not() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        async with transport() as made:
            watch = _Watch(made)
            until_s = loop.time() + 0.5
            while loop.time() < until_s:
                watch.begins(loop.time() + 0.3)
                await asyncio.sleep(0)
                watch.ends()
            await asyncio.sleep(0.4)
            watch.close()
            assert not watch.has_cut
            assert not made.is_closing()

    asyncio.run(test())


@pytest.mark.parametrize("cut", [False, True])
def test_an_answer_that_ends_in_the_middle_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture, cut: bool) -> None:
    ended: list[BaseException] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 2**30
        await response.prepare(request)
        await response.write(DATA)
        if cut:
            raise _CutShort("the reader takes less than ted_min_rate")
        try:
            while True:
                await response.write(DATA)
                await asyncio.sleep(0.01)
        except ConnectionError as error:
            ended.append(error)
            raise

    async def test() -> None:
        app = web.Application(middlewares=[errors_have_one_shape])
        app.router.add_get("/v1/long", answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
        writer.write(b"GET /v1/long HTTP/1.1\r\nHost: here\r\n\r\n")
        if cut:
            received = await asyncio.wait_for(reader.read(-1), 10)
            assert received.endswith(DATA), "what was written before arrives, and nothing after it"
        else:
            await reader.readexactly(1000)
        writer.transport.abort()
        for _ in range(200):
            if caplog.records:
                break
            await asyncio.sleep(0.01)
        await runner.cleanup()

    with caplog.at_level(logging.INFO):
        asyncio.run(test())
    assert bool(ended) != cut
    assert [(record.levelname, record.exc_info) for record in caplog.records] == [("INFO", None)]
    why = "cut short: the reader takes less than ted_min_rate" if cut else "the peer went away"
    assert caplog.messages == [f"GET /v1/long: {why}"]


async def answers(root: Path, *paths: str) -> list[tuple[int, str]]:
    """Return status and text of what a server at ``root`` says to ``s01``."""
    nobody: Any = None
    with ThreadPoolExecutor(1) as executor:
        server = PeerServer("hq", root, nobody, nobody, executor=executor, gate=nobody, timeout_s=10,
                            min_rate_bytes_s=0)  # fmt: skip
        runner = web.AppRunner(server.application(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
            said = []
            for path in paths:
                async with session.get(path, headers={"X-Ted-Node": "s01"}) as answer:
                    said.append((answer.status, await answer.text()))
        await runner.cleanup()
    return said


def test_the_end_of_a_chain_of_roots_is_no_news_and_other_metadata_that_lacks_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [f"/v1/catalog/hq/{name}" for name in ("2.root.json", "timestamp.json")]
    with caplog.at_level(logging.INFO):
        assert [status for status, _ in asyncio.run(answers(tmp_path, *paths))] == [404, 404]
    assert caplog.messages == ["GET /v1/catalog/hq/timestamp.json: hq has no metadata timestamp.json of hq"]


@pytest.mark.parametrize(("code", "said"), [(errno.EIO, "DamagedError"), (errno.EMFILE, "BusyError")])
def test_only_what_the_disk_cannot_read_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    def read_bytes(_path: Path) -> bytes:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    ((_, text),) = asyncio.run(answers(tmp_path, "/v1/blocks/hq/app/20261122T125447123456Z"))
    assert f'"type": "{said}"' in text, text
