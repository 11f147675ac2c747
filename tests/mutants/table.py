"""Every mutant: what is broken in the good plugin (``keeper.py``), the promise that must tell, and the patch for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    promise: str
    name: str
    patches: tuple[tuple[str, str], ...]

    def of(self, good: str) -> str:
        """Return the broken plugin's source."""
        for old, new in self.patches:
            assert good.count(old) == 1, f"{self.name}: {old!r} is {good.count(old)} times in the good plugin"
            good = good.replace(old, new)
        return good


def m(promise: str, name: str, *patches: tuple[str, str]) -> Mutant:
    return Mutant(promise, name, patches)


# Places in the good plugin.
CHECKED = '"checked": checked}'
DEBUG = '    build.log.debug("building from %s", source)\n'
EXPAND = "    root = install.expand(options.target)\n"
HELPER = '    subprocess.run(["sh", "-c", "read password"], input=f"{password}\\n".encode(), check=True)\n'
EACH = "        put(install, root, path, entry)\n"
ATTRIBUTES = (
    "return Attributes(None if link else mode, owner, group, entry.mtime_ns, None if link else dict(entry.xattrs))"
)
WRITE = "install.transaction.write(root, path, install.read(entry), size=entry.size, attributes=attributes)"
DIFFERING = (
    'elif now is None or not is_kind(now, "f") or not same_attributes(now, attributes) or differs(install, root, entry):'
)
REGISTERED = "    if now == word:\n        return\n"
UNDO = ', undo=[*TELL, path, now] if now else ["rm", "-f", path])'
NOT_THERE = (
    'raise EmptySourceError(f"{source}: is not there, or not a kept directory", hint="name a directory with a lock")'
)
COPY = """    new = copy.with_suffix(".new")
    new.write_bytes((source / "lock").read_bytes())
    os.replace(new, copy)
"""
TREE = 'build.add_tree(source, "files", exclude=["/lock"] if options.hidden else ["/lock", ".*"], contents_only=True)'
VERIFY = "@hookimpl\ndef ted_verify"


def checked(words: str) -> tuple[str, str]:
    return (CHECKED, f'"checked": {words}}}')


def before(place: str, line: str) -> tuple[str, str]:
    return (place, line + place)


def after(place: str, line: str) -> tuple[str, str]:
    return (place, place + line)


MUTANTS = [
    # -- what it says of itself
    m("described", "an option is not described", ('description="A word that goes into the index."', "")),
    m("described", "unknown options are taken", ('extra="forbid"', 'extra="ignore"')),
    m("described", "the type has no description", ('"Files that are kept behind a password"', '""')),
    m("described", "the password is plain text",
      ("password: SecretStr", "password: str"), ("options.password.get_secret_value()", "options.password")),
    # -- options
    m("options", "the label is ignored", ('"label": options.label', '"label": ""')),
    m("options", "the mode is ignored", ("if install.options.mode and entry.kind", "if False and entry.kind")),
    m("options", "hidden files are never taken", ('["/lock"] if options.hidden else', '["/lock", ".*"] if True else')),
    m("options", "the target is ignored", ("install.expand(options.target)", 'install.expand("%DEST_VOLUME%/keep")')),
    m("options", "the registry is always the same one",
      ("register(install, install.expand(options.registry), root)",
       'register(install, install.expand("%DEST_VOLUME%/registry"), root)')),
    m("options", "the password is not asked for",
      ("if not hmac.compare_digest(hashlib.sha256(password.encode()).hexdigest(), wanted):", "if not wanted:")),
    m("options", "a validator fails with a strange error",
      ("from pydantic import BaseModel,", "from pydantic import AfterValidator, BaseModel,"),
      ("label: str = Field(", "label: Annotated[str, AfterValidator(lambda text: text[:1] + text[40])] = Field("),
      ("from typing import Any", "from typing import Annotated, Any")),
    # -- determinism
    m("deterministic", "the time of building", checked('__import__("time").time()')),
    m("deterministic", "the day of building", checked('str(__import__("datetime").date.today())')),
    m("deterministic", "a random number", checked('__import__("random").random()')),
    m("deterministic", "a unique id", checked('str(__import__("uuid").uuid4())')),
    m("deterministic", "the process's number", checked("os.getpid()")),
    m("deterministic", "the host's name", checked("os.uname().nodename")),
    m("deterministic", "a hash of a text", checked('hash("keeper")')),
    m("deterministic", "the order of a set", ("names = sorted({", "names = list({")),
    m("deterministic", "the order of a dictionary made from a set",
      checked('list(dict.fromkeys({"alpha", "beta", "gamma", "delta", "epsilon"}))')),
    m("deterministic", "the order of a listing", checked("os.listdir(source)")),
    m("deterministic", "the local time of the sources",
      checked('__import__("time").strftime("%c", __import__("time").localtime(source.stat().st_mtime))')),
    m("deterministic", "the home directory", checked('os.environ["HOME"]')),
    m("deterministic", "the time at which it was fetched", after(f"    {TREE}\n", '    build.add_file("l", build.scratch / "lock")\n')),
    m("deterministic", "the umask decides modes",
      after(f"    {TREE}\n", '    os.utime(build.scratch / "lock", (1, 1))\n    build.add_file("l", build.scratch / "lock")\n')),
    m("deterministic", "it remembers earlier builds in the process",
      ('LOG = logging.getLogger("keeper")', "SEEN: list[int] = []"), before(DEBUG, "    SEEN.append(1)\n"),
      checked("len(SEEN)")),
    # -- noticing
    m("notices", "every build makes a new revision",
      after(COPY, '    count = build.scratch / "count"\n'
                  '    count.write_text((count.read_text() if count.exists() else "") + "x")\n'
                  "    return count.stat().st_size\n")),
    m("notices", "what was built first is built for ever",
      ("    return json.dumps(lines, sort_keys=True).encode()",
       "    return KEPT.setdefault(str(source), json.dumps(lines, sort_keys=True).encode())"),
      ('LOG = logging.getLogger("keeper")', "KEPT: dict[str, bytes] = {}"),
      (TREE, "build.add_bytes('files/a', b'')")),
    m("notices", "it builds from a stale copy",
      (f"    {TREE}", "    import shutil\n    mine = build.scratch / 'copy'\n    if not mine.exists():\n"
                      "        shutil.copytree(source, mine, symlinks=True)\n    build.add_tree(mine, 'files', contents_only=True)"),
      ("build.add_bytes(\"index.json\", index(source, options, checked))",
       "build.add_bytes(\"index.json\", index(mine, options, checked))")),
    m("notices", "what went from the sources stays in the copy",
      (f"    {TREE}", "    import shutil\n    mine = build.scratch / 'copy'\n"
                      "    shutil.copytree(source, mine, symlinks=True, dirs_exist_ok=True, ignore=lambda *_: ['link'])\n"
                      "    build.add_tree(mine, 'files', contents_only=True)")),
    # -- sources
    m("sources", "it touches its sources", before(DEBUG, "    os.utime(source / 'a.txt')\n")),
    m("sources", "it leaves a mark in its sources", before(DEBUG, "    (source / 'built').touch()\n")),
    m("sources", "it changes modes of its sources", before(DEBUG, "    os.chmod(source / 'a.txt', 0o400)\n")),
    m("sources", "it writes where it was called", before(DEBUG, "    Path('keeper.log').write_text('built')\n")),
    m("sources", "it writes in the home directory",
      before(DEBUG, "    Path('~/.keeper').expanduser().write_text('built')\n")),
    m("sources", "it writes somewhere on the machine",
      before(DEBUG, "    mark = Path(f'/var/tmp/ted-mutant-{os.getpid()}')\n    mark.touch()\n    mark.unlink()\n")),
    # -- installing
    m("installs", "it does nothing on arrival", before(EXPAND, "    return\n")),
    m("installs", "it reads the sources on arrival",
      ("install.read(entry), size=entry.size, attributes=attributes)",
       "[(Path(install.options.source) / os.fsdecode(path)).read_bytes()], size=entry.size, attributes=attributes)")),
    m("installs", "it needs what the build left in memory",
      ('LOG = logging.getLogger("keeper")', "BUILT: list[str] = []"), before(DEBUG, "    BUILT.append(str(source))\n"),
      before(EXPAND, "    assert BUILT, 'nothing was built'\n")),
    m("installs", "a command runs before what it needs is there",
      after(EXPAND, '    install.transaction.run(["test", "-e", f"{root}/a.txt"])\n')),
    m("installs", "it announces a wrong size", ("size=entry.size, attributes", "size=entry.size + 1, attributes")),
    m("installs", "it acts twice on a path", after(f"        {WRITE}\n", f"        {WRITE}\n")),
    # -- faithful
    m("faithful", "modes are lost", (ATTRIBUTES, ATTRIBUTES.replace("None if link else mode", "None"))),
    m("faithful", "set-id bits are lost", (ATTRIBUTES, ATTRIBUTES.replace("else mode", "else mode & 0o777"))),
    m("faithful", "times are lost", (ATTRIBUTES, ATTRIBUTES.replace("entry.mtime_ns", "None"))),
    m("faithful", "times are cut to seconds",
      (ATTRIBUTES, ATTRIBUTES.replace("entry.mtime_ns", "entry.mtime_ns // 10**9 * 10**9"))),
    m("faithful", "extended attributes are lost", (ATTRIBUTES, ATTRIBUTES.replace("dict(entry.xattrs)", "{}"))),
    m("faithful", "owners are lost", (ATTRIBUTES, ATTRIBUTES.replace("owner, group", "0, 0"))),
    m("faithful", "empty directories are lost",
      (EACH, "        if path.rpartition(b'/')[2] != b'empty':\n            put(install, root, path, entry)\n")),
    m("faithful", "hard links become files",
      ("            install.transaction.hardlink(root, path, entry.link[len(b\"files/\") :])",
       "            data = b''.join(install.read(entry))\n"
       "            install.transaction.write(root, path, [data], size=len(data), attributes=attributes)")),
    m("faithful", "links that lead nowhere are lost",
      ("        if now is None or not is_kind(now, \"l\")",
       "        if entry.link == b'nowhere':\n            return\n        if now is None or not is_kind(now, \"l\")")),
    m("faithful", "names that are not UTF-8 are lost",
      (EACH, "        if path.decode('utf-8', 'ignore').encode() == path:\n            put(install, root, path, entry)\n")),
    m("faithful", "names that are not UTF-8 end it", (EACH, "        path.decode()\n" + EACH)),
    m("faithful", "line ends are changed",
      (WRITE, "data = b''.join(install.read(entry)).replace(b'\\n', b'\\r\\n')\n"
              "        install.transaction.write(root, path, [data], size=len(data), attributes=attributes)")),
    # -- idempotent
    m("idempotent", "everything is written each time", (DIFFERING, 'elif now is None or is_kind(now, "f"):')),
    m("idempotent", "the command runs each time", (REGISTERED, "")),
    m("idempotent", "directories are dressed each time",
      ('        if now is None or not same_attributes(now, attributes) or not is_kind(now, "d"):\n'
       "            install.transaction.mkdir(root, path, attributes=attributes)",
       "        if now is None:\n            install.transaction.mkdir(root, path, attributes=attributes)\n"
       "        else:\n            install.transaction.attributes(root, path, attributes)")),
    m("idempotent", "a history grows",
      after(EXPAND, "    history = Path(root) / 'history'\n"
                    "    data = (history.read_bytes() if history.exists() else b'') + b'extracted\\n'\n"
                    "    install.transaction.write(root, b'history', [data], size=len(data))\n")),
    m("idempotent", "verify always finds something",
      ('        return [Drift(path, "missing")]\n    return []', '        return []\n    return [Drift("x", "missing")]')),
    # -- transactional
    m("transactional", "it makes its directory itself",
      after(EXPAND, "    if not install.check:\n        os.makedirs(root, exist_ok=True)\n")),
    m("transactional", "it writes files itself",
      after(EXPAND, "    if not install.check:\n        os.makedirs(root, exist_ok=True)\n"
                    "        (Path(root) / 'own').write_text('own')\n")),
    m("transactional", "it runs its command itself",
      ("    install.transaction.run([*TELL, path, word]" + UNDO,
       "    if not install.check:\n        subprocess.run([*TELL, path, word], check=True)")),
    # -- check mode
    m("checked", "check mode is ignored", after(EXPAND, "    os.makedirs(root, exist_ok=True)\n")),
    m("checked", "check mode leaves a report",
      after(EXPAND, "    if install.check:\n        Path('report.txt').write_text(root)\n")),
    m("checked", "check mode foretells nothing", after(EXPAND, "    if install.check:\n        return\n")),
    m("checked", "check mode foretells too much",
      (DIFFERING, DIFFERING.replace("now is None or", "now is None or install.check or"))),
    m("checked", "check mode says nothing of the command", ("if options.registry:", "if options.registry and not install.check:")),
    m("checked", "check mode reads everything",
      (EACH, "        if entry.kind is Kind.FILE:\n            sum(len(p) for p in install.read(entry))\n" + EACH)),
    # -- drift
    m("drift", "it trusts the revision before",
      (EACH, "        if entry.path in before and before[entry.path].same_as(entry):\n            continue\n" + EACH)),
    m("drift", "it looks at sizes and times alone",
      ("    if wanted is None:\n", "    if status.st_mtime_ns == entry.mtime_ns:\n        return False\n    if wanted is None:\n")),
    m("drift", "what is there is taken for right", (DIFFERING, "elif now is None or install.previous and not install.recheck:")),
    # -- confined
    m("confined", "it writes through links",
      (WRITE, "full = os.path.join(os.fsencode(root), path)\n        if os.path.exists(full) and not install.check:\n"
              "            with open(full, 'wb') as out:\n                out.writelines(install.read(entry))\n"
              "        else:\n            " + WRITE)),
    m("confined", "it follows links itself",
      (EACH, EACH + "        full = os.path.join(os.fsencode(root), path)\n"
                    "        if os.path.isfile(full) and not install.check:\n            os.chmod(full, 0o600)\n")),
    m("confined", "it writes beside its target",
      after(EXPAND, "    above = os.path.dirname(root)\n    if install.transaction.look(above, b'beside') is None:\n"
                    "        install.transaction.write(above, b'beside', [b'x'], size=1)\n")),
    m("confined", "it writes in the home directory",
      after(EXPAND, "    Path('~/.keeper').expanduser().write_text('extracted')\n")),
    m("confined", "it writes somewhere on the machine",
      after(EXPAND, "    mark = Path(f'/var/tmp/ted-mutant-{os.getpid()}')\n    mark.touch()\n    mark.unlink()\n")),
    m("confined", "it removes files of others",
      after(EXPAND, "    install.transaction.delete(os.path.dirname(root), b'of-somebody-else.txt')\n")),
    # -- rollback
    m("rollback", "its command cannot be taken back", (UNDO, ")")),
    m("rollback", "its command is taken back to something else",
      (UNDO, ', undo=[*TELL, path, "other"] if now else ["rm", "-f", path])')),
    m("rollback", "it removes everything afterwards",
      before(VERIFY, "@hookimpl\ndef ted_rollback(install: InstallContext) -> None:\n"
                     "    install.transaction.delete(install.expand(install.options.target), b'a.txt')\n\n\n")),
    m("rollback", "it fails afterwards",
      before(VERIFY, "@hookimpl\ndef ted_rollback(install: InstallContext) -> None:\n"
                     "    raise TargetError('cannot', hint='no')\n\n\n")),
    # -- kills
    m("killable", "half a download is taken for whole",
      (COPY, "    if not copy.exists():\n        data = (source / 'lock').read_bytes()\n"
             "        file = open(copy, 'wb', buffering=0)\n        file.write(data[:10])\n        file.write(data[10:])\n")),
    m("killable", "a lock of its own outlives a build",
      before(DEBUG, "    busy = build.scratch / 'busy'\n    if busy.exists():\n"
                    "        raise BuildError('busy', hint='wait')\n    busy.touch()\n"),
      after('    build.add_bytes("index.json", index(source, options, checked))\n', "    busy.unlink()\n")),
    m("killable", "a lock of its own outlives an extraction",
      after(EXPAND, "    import tempfile\n    busy = Path(tempfile.gettempdir()) / 'busy'\n    if busy.exists():\n"
                    "        raise TargetError('busy', hint='wait')\n    busy.touch()\n"),
      after("        register(install, install.expand(options.registry), root)\n", "    busy.unlink()\n")),
    # -- interruptions
    m("cancellable", "it swallows every error of its helper",
      (HELPER, f"    try:\n    {HELPER}        password = ''\n    except:\n        pass\n")),
    m("cancellable", "it swallows every error of its helper, in a hook with a name of its own",
      ("@hookimpl\ndef ted_build(", '@hookimpl(specname="ted_build")\ndef make('),
      (HELPER, f"    try:\n    {HELPER}        password = ''\n    except:\n        pass\n")),
    m("cancellable", "it goes on after an interruption",
      ("    checked = fetched(build, source)\n",
       "    while True:\n        try:\n            checked = fetched(build, source)\n            break\n"
       "        except KeyboardInterrupt:\n            continue\n")),
    m("cancellable", "an interruption becomes an error of its own",
      (HELPER, f"    try:\n    {HELPER}        password = ''\n    except BaseException as error:\n"
               "        raise BuildError('the helper failed', hint='try again') from error\n")),
    m("cancellable", "it is deaf to SIGTERM",
      before(DEBUG, "    import signal\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n")),
    m("cancellable", "its helper goes on without it",
      before(DEBUG, "    helper = subprocess.Popen(['sleep', '60'])\n"),
      after('    build.add_bytes("index.json", index(source, options, checked))\n',
            "    helper.kill()\n    helper.wait()\n")),
    m("cancellable", "it swallows an interruption on arrival",
      (EACH, "        try:\n            put(install, root, path, entry)\n        except BaseException as error:\n"
             "            install.log.debug('%s', error)\n")),
    # -- errors
    m("errors", "it raises an exception of no tree", (NOT_THERE, 'raise Exception("gone")')),
    m("errors", "it lets the system's errors through", (NOT_THERE, "(source / 'lock').read_text()")),
    m("errors", "its error has no hint", (NOT_THERE, 'raise EmptySourceError(f"{source}: is not there")')),
    m("errors", "sources that are gone are built as nothing",
      before("    unlock(source, options.password", "    if not source.is_dir():\n"
             "        build.add_bytes('index.json', b'{}')\n        return\n")),
    m("errors", "it swallows what goes wrong on arrival",
      (EACH, "        try:\n            put(install, root, path, entry)\n        except Exception as error:\n"
             "            install.log.debug('%s', error)\n")),
    # -- secrets
    m("secrets", "the password is in the revision", ('"label": options.label', '"label": options.password.get_secret_value()')),
    m("secrets", "the password is in the revision, disguised",
      ('"label": options.label',
       '"label": __import__("base64").b64encode(options.password.get_secret_value().encode()).decode()')),
    m("secrets", "the password is in a log",
      (DEBUG, '    build.log.debug("building with %s", options.password.get_secret_value())\n')),
    m("secrets", "the password is in another logger's log",
      (DEBUG, '    LOG.info("building with %s", options.password.get_secret_value())\n')),
    m("secrets", "the password is in an error",
      ('f"{source}: is not there, or not a kept directory"', 'f"{source}: is not there, tried with {password}"')),
    m("secrets", "the password is in the error behind an error",
      ('hint="name a directory with a lock")', 'hint="name a directory with a lock") from ValueError(password)')),
    m("secrets", "the password is printed", (DEBUG, "    print(options.password.get_secret_value())\n")),
    m("secrets", "the password is a word of its helper", ('["sh", "-c", "read password"]', '["sh", "-c", "true", password]')),
    m("secrets", "the password is in its helper's environment",
      ("check=True)\n\n\ndef fetched", 'check=True, env={**os.environ, "PASSWORD": password})\n\n\ndef fetched')),
    m("secrets", "the password is in its own environment", before(HELPER, '    os.environ["KEEPER"] = password\n')),
    m("secrets", "the password stays in scratch",
      before(DEBUG, '    (build.scratch / "netrc").write_text(options.password.get_secret_value())\n')),
    m("secrets", "the password stays in a temporary file",
      before(HELPER, "    import tempfile\n    tempfile.NamedTemporaryFile('w', delete=False).write(password)\n")),
    # -- memory
    m("memory", "a build holds every file",
      (TREE, "for path in sorted(source.rglob('*')):\n        if path.is_file():\n"
             "            build.add_bytes(f'files/{path.relative_to(source)}', path.read_bytes())")),
    m("memory", "an extraction holds every file", ("install.read(entry), size=entry.size, attributes",
                                                   "[b''.join(install.read(entry))], size=entry.size, attributes")),
    m("memory", "a comparison holds every file",
      ("    status = os.lstat(path)\n", "    status = os.lstat(path)\n    Path(os.fsdecode(path)).read_bytes()\n")),
]  # fmt: skip
