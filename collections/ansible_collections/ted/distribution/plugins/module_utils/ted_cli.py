# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""Run the node's own C(ted ... --json) and turn what it says into a module's result.

Rules:
 * One question, one process: arguments are a list, no shell.
 * Standard output is one JSON document. Anything else fails the task with what was printed.
 * A process that takes longer than the option C(timeout) is ended, and the task fails.
 * C({"error": {...}}) fails the task: message and hint are C(msg), the exit code is C(rc).
 * Only the standard library and C(ansible.module_utils.basic): nothing of the engine, Python 3.8 syntax.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import threading

from ansible.module_utils.basic import AnsibleModule, env_fallback

DEFAULT_CONFIG = "/etc/ted"
DEFAULT_EXECUTABLE = "/opt/ted/venv/bin/ted"
TALK_LINES = 20
LIMIT_S = 3600
GRACE_S = 15

COMMON = {
    "config": {"type": "path", "default": DEFAULT_CONFIG, "fallback": (env_fallback, ["TED_CONFIG"])},
    "executable": {"type": "path"},
    "timeout": {"type": "int", "default": LIMIT_S},
}

# The tree holds the passwords of sources.
FORETOLD = {"topology": {"type": "json", "no_log": True}}


def ted_module(supports_check_mode=True, **options):
    """Return an AnsibleModule with the common options and C(options); an option named C(rules) is its rules."""
    rules = options.pop("rules", {})
    return AnsibleModule(argument_spec=dict(COMMON, **options), supports_check_mode=supports_check_mode, **rules)


class Ted:
    """The C(ted) of this node, and this node's configuration directory."""

    def __init__(self, module):
        self.module = module
        self.config = module.params["config"]
        self.executable = find_executable(module)
        self.limit_s = module.params["timeout"]

    @property
    def missing(self):
        """Whether there is no C(ted) here (yet): only check mode may go on then."""
        return self.executable is None

    def foretell_unset(self, **empty):
        """In check mode, end with "would change" where nothing can be asked: this host is not a node yet."""
        if self.module.check_mode and (self.missing or not os.path.exists(os.path.join(self.config, "node.yml"))):
            self.module.exit_json(
                changed=True, foretold=False, msg="this host is not a node yet, so only that is known", **empty
            )

    def command(self, *words):
        """Return the whole argument list for C(words); empty and None words are left out."""
        if self.missing:
            wanted = self.module.params["executable"] or DEFAULT_EXECUTABLE + " or ted on PATH"
            self.module.fail_json(
                msg="no ted on this host (looked for %s). Run the role ted.distribution.node, or set executable"
                % wanted,
                rc=127,
            )
        spoken = [str(word) for word in words if word not in (None, "")]
        return [self.executable, "--config", self.config, "--json"] + spoken

    def ask(self, *words, **kwargs):
        """Run C(ted) and return its JSON document; every failure but those in C(tolerate) fails the task.

        Args:
            words: The command and its options.
            stdin: Text for standard input.
            tolerate: Exit codes whose document is returned, an error's too.
        """
        stdin, tolerate = kwargs.pop("stdin", None), kwargs.pop("tolerate", ())
        command = self.command(*words)
        limit = Limit(self.limit_s)
        rc, out, err = self.module.run_command(
            command,
            data=stdin,
            environ_update={"LC_ALL": "C.UTF-8", "NO_COLOR": "1", "COLUMNS": "200"},
            before_communicate_callback=limit.watch,
        )
        limit.done.set()
        document = parse(out)
        if limit.over:
            self.module.fail_json(
                msg="%s took longer than %s s and was ended; run it again, with a greater timeout if it needs that"
                % (" ".join(command), self.limit_s),
                rc=rc,
                cmd=command,
                stdout=tail(out),
                stderr=tail(err),
            )
        if rc == 0 and document is not None:
            return document
        if rc in tolerate and document is not None:
            return document
        self.fail(command, rc, document, out, err)
        return None

    def fail(self, command, rc, document, out, err):
        """End the module with what C(ted) said."""
        body = document if isinstance(document, dict) else {}
        error = body.pop("error", None)
        result = {"rc": rc, "cmd": command, "stderr": tail(err), "changed": bool(body.pop("changed", False))}
        if isinstance(error, dict):
            result["error"] = error.get("type")
            result["hint"] = error.get("hint")
            if error.get("problems"):
                result["problems"] = error["problems"]
            self.module.fail_json(msg=sentence(error), **dict(body, **result))
        if document is None:
            result["stdout"] = tail(out)
        said = tail(err).strip() or tail(out).strip() or "nothing"
        what = "ended with code %s" % rc if rc else "did not print one JSON document"
        self.module.fail_json(msg="%s %s, saying: %s" % (" ".join(command[:1]), what, said), **dict(body, **result))


class Limit:
    """Ends a process that takes too long: asked first, then not asked."""

    def __init__(self, limit_s):
        self.limit_s = limit_s
        self.done = threading.Event()
        self.over = False

    def watch(self, process):
        """Begin to count the time of a process."""
        if self.limit_s > 0:
            threading.Thread(target=self._end, args=(process,), daemon=True).start()

    def _end(self, process):
        if self.done.wait(self.limit_s) or process.poll() is not None:
            return
        self.over = True
        process.terminate()
        if not self.done.wait(GRACE_S):
            process.kill()


def find_executable(module):
    """Return the path of C(ted), or None."""
    named = module.params["executable"]
    if named:
        return module.get_bin_path(named) if os.sep not in named else (named if os.access(named, os.X_OK) else None)
    if os.access(DEFAULT_EXECUTABLE, os.X_OK):
        return DEFAULT_EXECUTABLE
    return module.get_bin_path("ted")


def parse(text):
    """Return the JSON document in C(text), or None."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def tail(text):
    """Return the last lines of what a program said."""
    return "\n".join(text.splitlines()[-TALK_LINES:])


def sentence(error):
    """Return an error's message, what is wrong where, and what to do now."""
    lines = [str(error.get("message") or error.get("type") or "unknown error")]
    for problem in error.get("problems") or []:
        where = " ".join(str(problem[key]) for key in ("host", "variable") if problem.get(key))
        lines.append("%s: %s" % (where, problem.get("message")))
    if error.get("hint"):
        lines.append(str(error["hint"]))
    return "; ".join(lines)


def names(params):
    """Return the names of distributions a task gave, as words of the command line."""
    return list(params.get("name") or [])


def option(flag, value):
    """Return C([flag, value]), or nothing when there is no value."""
    return [] if value in (None, "", []) else [flag, str(value)]


def flag(word, wanted):
    """Return C([word]) when it is wanted."""
    return [word] if wanted else []


def foretold_tree(module):
    """Return the words, and what goes to standard input, to go by the tree that a check foretold."""
    tree = module.params["topology"] if module.check_mode else None
    return (["--inventory", "-"], {"stdin": tree}) if tree else ([], {})


def lifted(document, key, fields):
    """Return C(document) with the C(fields) of its only item beside it, so that they need no loop."""
    result = dict(document)
    items = result.get(key) or []
    if len(items) == 1:
        for field in fields:
            if field in items[0]:
                result[field] = items[0][field]
    return result


def warn_of_skipped(module, document):
    """Warn of each distribution that was skipped though something can be done about it: its type is missing here.

    No task fails by it, since such a node still relays; but nobody shall take it for installed.
    """
    for item in document.get("distributions") or []:
        if item.get("state") == "skipped" and item.get("hint"):
            module.warn(
                "%s is skipped: %s. To have it: %s. See docs/how-to/bring-a-type-of-your-own.md"
                % (item.get("distribution"), item.get("reason"), item["hint"])
            )


def with_diff(module, result):
    """Turn the command's list of changes into what C(--diff) prints."""
    if not module._diff:  # noqa: SLF001
        return result
    prepared = []
    for item in result.get("distributions") or []:
        changes = item.get("diff") or []
        if not changes:
            continue
        if isinstance(changes, str):
            prepared.append(changes)
            continue
        prepared.append("--- %s %s" % (item.get("distribution", ""), item.get("revision") or ""))
        prepared.extend(change_line(change) for change in changes)
    if prepared:
        result["diff"] = {"prepared": "\n".join(prepared) + "\n"}
    return result


SIGNS = {"added": "+", "created": "+", "written": "+", "removed": "-", "deleted": "-"}


def change_line(change):
    """Return one line for one path: a sign, the path, what changes."""
    if not isinstance(change, dict):
        return str(change)
    kind = str(change.get("change") or change.get("action") or "changed")
    before, after = change.get("before"), change.get("after")
    sign = "~" if kind == "written" and before is not None else SIGNS.get(kind, "~")
    line = "%s %s" % (sign, change.get("path", ""))
    if before is not None and after is not None:
        return "%s (%s: %s -> %s)" % (line, kind, before, after)
    return "%s (%s)" % (line, kind)


def write_private(path, text, mode=0o600):
    """Write C(text) to C(path) so that a reader sees the old or the new content, never a part."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".ted-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def read_text(path):
    """Return a file's text, or None when there is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except (OSError, UnicodeDecodeError):
        return None


@contextlib.contextmanager
def with_temporary(module, text, suffix=""):
    """Give the path of a private temporary file that holds C(text); it is gone afterwards."""
    handle, path = tempfile.mkstemp(dir=module.tmpdir, prefix="ted-", suffix=suffix)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        yield path
    finally:
        os.unlink(path)


def is_stale(ted, status):
    """Say whether the running agent is older than its configuration, its certificate or its program.

    It knows its configuration itself. Its age is that of its socket: the same clock as that of the other files.
    """
    if status.get("outdated"):
        return True
    settings = read_text(os.path.join(ted.config, "node.yml")) or ""
    found = re.search(r"^working_directory: *[\"']?(.+?)[\"']? *$", settings, re.MULTILINE)
    working = status.get("working_directory") or (found.group(1) if found else "/var/lib/ted")
    started = modified(os.path.join(working, ".ted", "agent.sock"))
    if started is None:
        return False
    parts = [os.path.join(ted.config, part) for part in ("realm/node.pem", "realm/ca.pem")]
    times = [modified(path) for path in parts + [ted.executable]]
    return any(time is not None and time > started for time in times)


def modified(path):
    """Return when a file was last written, in seconds, or None when there is none."""
    try:
        return os.stat(path).st_mtime
    except OSError:
        return None
