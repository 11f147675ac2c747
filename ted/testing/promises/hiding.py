"""Secrets stay where they were written."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import os
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ted.content.revision import Revision
from ted.errors import TedError
from ted.plugins import installed
from ted.testing.children import STARTING, in_child, told_by_os, watch
from ted.testing.looks import shortened
from ted.testing.machines import NODE
from ted.testing.promise import Scene, Trial, promise, told
from ted.testing.promises.ending import vanish
from ted.testing.sample import is_secret, leaves

_MOST_BYTES = 64 << 20


@promise("secrets", "no secret reaches a revision, a log, an error, a journal, a file, or the words or environment of "
         "another process")  # fmt: skip
def secrets(trial: Trial) -> None:
    """Give each secret option a canary, do everything, and look for it everywhere."""
    secret = [leaf for leaf, info in leaves(trial.known.info.options).items() if is_secret(info)]
    scene = trial.scene()
    given = scene.bench.secret in json.dumps(scene.options, default=str)
    if secret and not given:
        trial.broken(f"the sample gives no value to the secret option {secret[0]!r}", "set it to bench.secret")
    if not secret:
        return
    _refused_silently(scene)
    found = _everything_watched(scene, _build_and_extract)
    _not_in(scene, found)
    gone = trial.scene()
    if vanish(gone):
        _not_in(gone, _everything_watched(gone, _fail))


def _build_and_extract(scene: Scene) -> list[str]:
    scene.distributor.build(scene.options)
    results = [scene.subscriber.extract(check=True, diff=True), scene.subscriber.extract(diff=True)]
    problems = scene.subscriber.verify()
    results.append(scene.subscriber.rollback(diff=True))
    return [json.dumps(result.to_dict(), default=str) for result in results] + [str(problems)]


def _fail(scene: Scene) -> list[str]:
    with contextlib.suppress(TedError, OSError):
        scene.distributor.build(scene.options)
        return []
    try:
        scene.distributor.build(scene.options)
    except (TedError, OSError) as error:
        return [_whole(error)]
    return []


def _whole(error: BaseException | None) -> str:
    """Return an error with its hint and those behind it, as logs and ``--verbose`` show them."""
    words = []
    while error is not None:
        words.append(f"{type(error).__name__}: {error} {getattr(error, 'hint', '')} {error.args!r}")
        error = error.__cause__ or error.__context__
    return "an error: " + " / ".join(words)


def _everything_watched(scene: Scene, work: Any) -> dict[str, str]:
    """Do ``work`` in a process of its own; return what was said where: place -> text."""

    def doing() -> dict[str, str]:
        said: dict[str, list[str]] = {}
        spoken, logged = io.StringIO(), io.StringIO()
        handler = logging.StreamHandler(logged)
        handler.setFormatter(_Everything())
        logging.getLogger().addHandler(handler)
        logging.getLogger().setLevel(logging.DEBUG)
        logging.disable(logging.NOTSET)

        def tell(event: str, arguments: tuple[Any, ...]) -> None:
            if event in STARTING:
                words, environment = told_by_os(event, arguments)
                said.setdefault("the words of a process", []).append(words)
                said.setdefault("the environment of a process", []).append(environment)

        watch(tell)
        with contextlib.redirect_stdout(spoken), contextlib.redirect_stderr(spoken):
            said["what was answered"] = work(scene)
        said["a log"] = [logged.getvalue()]
        said["standard output or error"] = [spoken.getvalue()]
        said["the environment of this process"] = [json.dumps(dict(os.environ))]
        return {place: "\n".join(texts) for place, texts in said.items()}

    ended = in_child(doing, files=scene.trial.files)
    if ended.raised is not None:
        scene.trial.broken("the sample cannot be built and extracted", *told(ended.raised))
    found: dict[str, str] = ended.value
    return found


class _Everything(logging.Formatter):
    """A record with its arguments and its traceback, as some log."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{super().format(record)} {record.args!r}"


def _not_in(scene: Scene, said: Mapping[str, str]) -> None:
    spellings = _spellings(scene.bench.secret)
    for place, text in said.items():
        for spelling in spellings:
            if spelling.decode() in text:
                scene.trial.broken(f"a secret leaks into {place}", _around(text, spelling.decode(), scene.bench.secret))
    leaks = [f"{place}" for place, data in _stored(scene) if any(spelling in data for spelling in spellings)]
    if leaks:
        scene.trial.broken(f"a secret leaks into a file: {shortened(leaks)}")


def _around(text: str, spelling: str, secret: str) -> str:
    at = text.index(spelling)
    return "... " + text[max(at - 60, 0) : at + len(spelling) + 20].replace(spelling, "<the secret>").replace(
        secret, "<the secret>"
    ).replace("\n", " ") + " ..."


def _spellings(secret: str) -> list[bytes]:
    raw = secret.encode()
    # The middle of base64, wherever it began: three ways to cut it.
    encoded = [base64.b64encode(b"x" * shift + raw)[4 if shift else 0 : -4] for shift in range(3)]
    return [raw, raw.hex().encode(), urllib.parse.quote(secret, safe="").encode(), raw[::-1], *encoded]


def _stored(scene: Scene) -> Iterator[tuple[str, bytes]]:
    """Yield everything that lies on either machine: files as they are, and the content of revisions."""
    for top in (scene.bench.base / "machines", scene.bench.root):
        for directory, _, names in os.walk(top):
            if inside_sources(scene, directory):
                continue
            for name in names:
                path = Path(directory) / name
                with contextlib.suppress(OSError):
                    if path.is_file() and not path.is_symlink() and path.stat().st_size < _MOST_BYTES:
                        yield os.path.relpath(path, scene.bench.base), path.read_bytes()
                yield f"the name of {os.path.relpath(directory, scene.bench.base)}/...", os.fsencode(name)
    distributor = scene.distributor
    for stamp in distributor.revisions:
        record = distributor.working.record(NODE, distributor.name, stamp)
        with Revision(distributor.directory, record).open() as reader:
            for entry in reader.entries():
                head = entry.path + b"\0" + (entry.link or b"") + repr(entry.xattrs).encode()
                pieces = (each for each in reader.chunks(entry) if isinstance(each, bytes)) if entry.kind == "f" else ()
                yield f"{os.fsdecode(entry.path)} of the revision", head + b"".join(pieces)


def inside_sources(scene: Scene, directory: str) -> bool:
    """Return whether a directory is among the sources, where secrets may well be."""
    return directory == str(scene.bench.sources) or directory.startswith(f"{scene.bench.sources}/")


def _refused_silently(scene: Scene) -> None:
    """Break the options in every place: what is said of them must not tell the secret."""
    model = scene.trial.known.info.options
    for name in {leaf.partition(".")[0] for leaf, info in leaves(model).items() if is_secret(info)}:
        for odd in ({**scene.options, name: {"no": scene.bench.secret}}, {**scene.options, "no_such_option": 1}):
            try:
                installed().validate_options(scene.trial.type, odd)
            except TedError as error:
                if scene.bench.secret in error.message:
                    scene.trial.broken("a secret leaks into the error about invalid options",
                                       "a validator's message must not repeat the value")  # fmt: skip


