"""Read an inventory: the only module of the topology that touches files and programs.

Rules:
 * A ``*.json`` file that holds ``_meta`` is read as it is: it is the output of ``ansible-inventory --list``,
   and nothing in it is a template any more.
 * ``-`` is that JSON on standard input.
 * Anything else goes through ``ansible-inventory -i SOURCE --list``, found beside this Python or on PATH. A
   source that Ansible could only read in part is refused: half an inventory would send to half the hosts.
 * Ansible leaves templates in that output, so the contract's variables and ``ansible_host`` are rendered here, by
   Ansible's own templating, with the variables of their host.
 * In a File distribution's ``targets[].path`` an expression that is undefined stays as it is: it may name a
   variable of the subscriber. Elsewhere it is a problem. What needs a vaulted value stays as it is.
 * What Ansible marks as unsafe (``!unsafe``, answers of an inventory plugin) is never rendered: a tag that
   somebody set on a machine in a cloud must not run here.
 * Sizes are bounded before anything is believed; ``ansible-inventory`` gets a time limit and no input.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted.errors import ConfigError, shorten
from ted.topology.groups import raw_groups, read_shape
from ted.topology.model import Problem, Topology
from ted.topology.parse import Examination, examine_inventory, inventory_error
from ted.topology.variables import ROLE_VARIABLES, is_vaulted

MAX_INVENTORY_BYTES = 1 << 30
ANSIBLE_TIMEOUT_S = 600.0
STDIN = Path("-")
"""The JSON of an inventory comes by standard input."""

_TEMPLATE = re.compile(r"\{\{|\{%")
_UNSAFE = "__ansible_unsafe"
_EXPRESSION = re.compile(r"\{\{.*?\}\}", re.DOTALL)
_NO_ANSIBLE = "install it beside ted (pip install 'ted[ansible]'), or give the JSON of ansible-inventory --list"

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Loaded:
    """An inventory as data, and the templates in it that could not be rendered.

    ``data`` has the shape of ``ansible-inventory --list``; a value behind a problem is left blank in it.
    """

    data: dict[str, Any]
    problems: tuple[Problem, ...] = ()


def load_inventory(source: Path) -> Topology:
    """Return the topology of an inventory.

    Args:
        source: JSON in the shape of ``ansible-inventory --list`` (``-``: on standard input), or whatever Ansible
            takes as an inventory: a YAML or INI file, a directory, a script, the configuration of a plugin.

    Raises:
        InventoryError: It breaks the inventory contract; holds every problem.
        ConfigError: It cannot be read, or Ansible is needed and not there.
    """
    found = examine_source(source)
    if found.problems:
        raise inventory_error(found.problems)
    return found.topology


def examine_source(source: Path) -> Examination:
    """Return topology, problems and warnings of an inventory.

    Raises:
        ConfigError: It cannot be read at all.
    """
    loaded = read_inventory(source)
    return examine_inventory(loaded.data, loaded.problems)


def read_inventory(source: Path) -> Loaded:
    """Return the data of an inventory, templates rendered (``compact`` makes ``topology.json`` of it).

    Raises:
        ConfigError: It cannot be read at all.
    """
    if source != STDIN and not source.exists():
        raise ConfigError(f"there is no inventory {source}", hint="name a file or directory with --inventory")
    static = _static(source)
    try:
        if static is not None:
            return Loaded(_with(static, _changed(static, lambda _host: None, [])))
        return _rendered(_object(_run_ansible_inventory(source), str(source)), source)
    except RecursionError:
        raise ConfigError(f"{source} holds a value that is nested too deep") from None


# Reading.


def _static(source: Path) -> dict[str, Any] | None:
    """Return the data of JSON in the shape of --list (a file, or standard input), ``None`` for every other source."""
    if source == STDIN:
        data = _object(sys.stdin.buffer.read(MAX_INVENTORY_BYTES + 1), "standard input")
        if "_meta" not in data:
            raise ConfigError("standard input: no `_meta`, so not the output of ansible-inventory --list")
        return data
    if source.suffix != ".json" or not source.is_file() or os.access(source, os.X_OK):
        return None
    try:
        with source.open("rb") as stream:
            content = stream.read(MAX_INVENTORY_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {source}: {error.strerror}") from None
    data = _object(content, str(source))
    return data if "_meta" in data else None


def _object(content: bytes, where: str) -> dict[str, Any]:
    if len(content) > MAX_INVENTORY_BYTES:
        raise ConfigError(f"{where}: more than {MAX_INVENTORY_BYTES} bytes of inventory")
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: not the output of ansible-inventory --list, which is an object")
    return data


def _run_ansible_inventory(source: Path) -> bytes:
    program = _program()
    # Whoever sets these for a reason keeps them; by default half an inventory is no inventory.
    environment = {"ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true"} | os.environ
    environment |= {"ANSIBLE_NOCOLOR": "true", "ANSIBLE_FORCE_COLOR": "false"}
    try:
        done = subprocess.run(
            [program, "-i", str(source), "--list"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=ANSIBLE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"ansible-inventory did not read {source} within {ANSIBLE_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise ConfigError(f"cannot run {program}: {error.strerror}", hint=_NO_ANSIBLE) from None
    if done.returncode != 0:
        raise ConfigError(
            f"Ansible cannot read the inventory {source}:\n{_said(done.stderr)}",
            hint=f"try: ansible-inventory -i {source} --list",
        )
    return done.stdout


def _program() -> str:
    beside = Path(sys.executable).parent / "ansible-inventory"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("ansible-inventory")
    if found is None:
        raise ConfigError("reading this inventory needs Ansible, which is not installed", hint=_NO_ANSIBLE)
    return found


def _said(stderr: bytes, lines: int = 30) -> str:
    """Return what Ansible said, from its beginning: the plugin that came nearest to reading the file speaks first."""
    said = stderr[:16384].decode(errors="replace").strip().splitlines()
    return "\n".join(f"  {line}" for line in [*said[:lines], *(["..."] if len(said) > lines else [])])


# Rendering.


def _rendered(data: dict[str, Any], source: Path) -> Loaded:
    problems: list[Problem] = []
    renderers: list[_Renderer] = []  # made when the first template is met: Ansible takes a while to import

    def of_host(host: str) -> Render:
        if not renderers:
            renderers.append(_Renderer(data, source))
        return renderers[0].of_host(host)

    return Loaded(_with(data, _changed(data, of_host, problems)), tuple(problems))


def _changed(
    data: dict[str, Any], of_host: Callable[[str], Render | None], problems: list[Problem]
) -> dict[str, dict[str, Any]]:
    """Return for every host those of ted's variables that do not stay as they are."""
    changed: dict[str, dict[str, Any]] = {}
    for host, variables in read_shape(data).hosts.items():
        marked = {name: value for name, value in variables.items() if _ours(name) and _is_marked(value)}
        if marked:
            render = of_host(host)
            changed[host] = {name: _walk(value, (name,), render, host, problems) for name, value in marked.items()}
    return changed


def _with(data: dict[str, Any], changed: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the inventory with these variables replaced; the input stays as it is."""
    meta = data.get("_meta") or {}
    hostvars = dict(meta.get("hostvars") or {})
    for host, variables in changed.items():
        hostvars[host] = {**hostvars.get(host, {}), **variables}
    return {**data, "_meta": {**meta, "hostvars": hostvars}}


def _ours(name: str) -> bool:
    return name == "ansible_host" or (name.startswith("ted_") and name not in ROLE_VARIABLES)


def _is_marked(value: object) -> bool:
    """Say whether a value holds a template, or text that Ansible marks as never being one."""
    return any(_TEMPLATE.search(text) for text in _strings(value))


def _is_unsafe(value: object) -> bool:
    return isinstance(value, Mapping) and len(value) == 1 and isinstance(value.get(_UNSAFE), str)


def _strings(value: object) -> Iterator[str]:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif _is_unsafe(item):
            yield "{{"
        elif isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


class _Undefined(Exception):  # noqa: N818
    """A template names a variable that this host does not have."""


class _Vaulted(Exception):  # noqa: N818
    """A template needs a value that nobody has decrypted."""


class _Omitted(Exception):  # noqa: N818
    """A template says that the value is to be left out."""


class _Failed(Exception):  # noqa: N818
    """A template cannot be rendered at all."""


Render = Callable[[str], Any]


def _walk(value: Any, place: Place, render: Render | None, host: str, problems: list[Problem]) -> Any:
    """Return ``value`` with every template in it rendered; what cannot be is a problem and becomes blank."""
    if is_vaulted(value):
        return value
    if _is_unsafe(value):
        return value[_UNSAFE]
    if isinstance(value, dict):
        walked = {key: _walk(item, (*place, key), render, host, problems) for key, item in value.items()}
        return {key: item for key, item in walked.items() if item is not _LEFT_OUT}
    if isinstance(value, list):
        items = [_walk(item, (*place, number), render, host, problems) for number, item in enumerate(value)]
        return [item for item in items if item is not _LEFT_OUT]
    if render is not None and isinstance(value, str) and _TEMPLATE.search(value):
        return _leaf(value, place, render, host, problems)
    return value


def _leaf(value: str, place: Place, render: Render, host: str, problems: list[Problem]) -> Any:
    try:
        return _text(value, place, render)
    except _Omitted:
        return _LEFT_OUT if len(place) > 1 else None
    except _Vaulted:
        return value
    except (_Undefined, _Failed) as error:
        name = ".".join(str(part) for part in place)
        hint = "a template there may use the variables of this host; check its spelling"
        problems.append(Problem(host, name, f"cannot render {shorten(value)}: {error}", hint))
        return None


_LEFT_OUT = object()


def _text(value: str, place: Place, render: Render) -> Any:
    try:
        return render(value)
    except _Undefined:
        if not _may_wait(place) or "{%" in value:
            raise
    return _EXPRESSION.sub(lambda match: _piece(match[0], render), value)


def _may_wait(place: Place) -> bool:
    """Say whether this is ``ted_distributions.NAME.options.targets.N.path``."""
    return place[0] == "ted_distributions" and place[2:4] == ("options", "targets") and place[5:] == ("path",)


def _piece(expression: str, render: Render) -> str:
    try:
        return str(render(expression))
    except _Undefined:
        return expression  # the subscriber may know it


class _Renderer:
    """Ansible's own templating, over an inventory made of the data that it printed itself."""

    def __init__(self, data: dict[str, Any], source: Path) -> None:
        try:
            from ansible.inventory.manager import InventoryManager
            from ansible.parsing.dataloader import DataLoader
            from ansible.plugins.loader import init_plugin_loader
            from ansible.utils.collection_loader import AnsibleCollectionConfig
            from ansible.vars.hostvars import HostVars
            from ansible.vars.manager import VariableManager
        except ImportError as error:
            raise ConfigError(
                f"the inventory holds templates, and Ansible's Python is not here: {error}", hint=_NO_ANSIBLE
            ) from None
        if AnsibleCollectionConfig.collection_finder is None:  # without it no lookup, filter or test is found
            init_plugin_loader()
        self._loader = DataLoader()
        self._inventory = InventoryManager(loader=self._loader, sources=None, parse=False)
        self._manager = VariableManager(loader=self._loader, inventory=self._inventory)
        self._vaulted: set[str] = set()
        self._fill(data, source)
        # get_vars hands these out as `hostvars`, each rendered with the variables of its own host.
        self._manager._hostvars = HostVars(self._inventory, self._manager, self._loader)  # noqa: SLF001

    def of_host(self, host: str) -> Render:
        """Return the function that renders a text with the variables of ``host``."""
        from ansible.template import Templar

        variables = self._manager.get_vars(host=self._inventory.get_host(host))
        variables.pop("playbook_dir", None)  # no play runs: Ansible would say the current directory
        templar = Templar(loader=self._loader, variables=variables)
        omit = variables.get("omit")

        def render(text: str) -> Any:
            result = self._template(templar, text)
            if isinstance(omit, str) and result == omit:  # ansible-core before 2.19 marks it so
                raise _Omitted
            return result

        return render

    def _template(self, templar: Any, text: str) -> Any:
        from ansible.errors import AnsibleError, AnsibleUndefinedVariable

        try:
            return _plain(templar.template(_trusted(text)))
        except AnsibleUndefinedVariable as error:
            said = _one_line(error)
            if any(f"'{name}'" in said for name in self._vaulted):
                raise _Vaulted from None
            raise _Undefined(said) from None
        except AnsibleError as error:
            if type(error).__name__ == "AnsibleValueOmittedError":  # ansible-core 2.19 and later
                raise _Omitted from None
            raise _Failed(_one_line(error)) from None

    def _fill(self, data: dict[str, Any], source: Path) -> None:
        groups = {name: group for name, group in raw_groups(data).items() if name != "all"}
        for name in groups:
            self._inventory.add_group(name)
        directory = str(source if source.is_dir() else source.parent)
        for host, variables in read_shape(data).hosts.items():
            self._inventory.add_host(host)
            known = self._inventory.get_host(host)
            known.set_variable("inventory_dir", str(Path(directory).resolve()))
            known.set_variable("inventory_file", str(source.resolve()))
            for name, value in variables.items():
                opened = self._without_vaulted(name, value)
                if opened is not _LEFT_OUT:
                    known.set_variable(name, _trusted(opened))
        structure = self._inventory._inventory  # noqa: SLF001  (what inventory plugins fill)
        for name, group in groups.items():
            for member in (*group["hosts"], *group["children"]):
                structure.add_child(name, member)
        self._inventory.reconcile_inventory()

    def _without_vaulted(self, name: str, value: Any) -> Any:
        if is_vaulted(value):
            self._vaulted.add(name)
            return _LEFT_OUT
        if isinstance(value, dict):
            items = {key: self._without_vaulted(str(key), item) for key, item in value.items()}
            return {key: item for key, item in items.items() if item is not _LEFT_OUT}
        if isinstance(value, list):
            items_ = [self._without_vaulted(name, item) for item in value]
            return [item for item in items_ if item is not _LEFT_OUT]
        return value


def _trusted(value: Any) -> Any:
    """Mark every text as a template: what Ansible printed was a template of the inventory to begin with."""
    if isinstance(value, str):
        try:
            from ansible.template import trust_as_template
        except ImportError:  # ansible-core before 2.19 renders every text
            return value
        return trust_as_template(value)
    if _is_unsafe(value):
        from ansible.utils.unsafe_proxy import wrap_var

        return wrap_var(value[_UNSAFE])
    if isinstance(value, dict):
        return {key: _trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_trusted(item) for item in value]
    return value


def _plain(value: Any) -> Any:
    """Return a value without the marks that Ansible puts on what it renders."""
    if isinstance(value, str):
        return "".join(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    return str(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
