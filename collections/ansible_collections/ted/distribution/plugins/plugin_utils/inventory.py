# Copyright (c) 2026, The ted authors
# Apache-2.0 (see LICENSE)
"""What an Ansible run knows, in the shapes ted wants. Shared by this collection's filters and lookups.

Rules:
 * Only groups and variables of the inventory contract leave; what steers the role stays.
 * Values are templated by Ansible, leaf by leaf where a part of one cannot be: that part keeps its text
   (a target path that names a Subscriber's variable is not the Distributor's to resolve).
 * The result is plain data in a fixed order: the same inventory gives the same bytes.
 * A host is looked up once: Ansible gathers its variables anew at every look, from all its groups and plugins.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from collections.abc import Mapping

from ansible.errors import AnsibleError, AnsibleUndefinedVariable
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.ted.distribution.plugins.module_utils.secrets import without_secrets
from jinja2 import Undefined
from jinja2.exceptions import UndefinedError

ROLE_GROUPS = ("distributors", "subscribers", "external_subscribers")
# Variables that steer the role or a play and say nothing about the tree.
ROLE_VARIABLES = frozenset(
    "ted_" + name
    for name in (
        "agent_user allow_incomplete channel distribution executable package pip_extra_args purge python realm"
        " realm_authority revision send_timeout service type_packages venv"
    ).split()
)
# Everything a node must know about itself: keys of node.yml are these names.
NODE_SETTINGS = (
    "address port transport working_directory database_url input_rate output_rates max_concurrent"
    " fill_spare_slots min_rate timeout min_free retry_interval retry_for message_levels log_max_age variables"
    " extract_schedule inactive_channels fallbacks fallback_when source_order parent poll_interval"
).split()
# Inside a template, touching an undefined part of a value raises Jinja's error before Ansible's.
UNDEFINED = (AnsibleError, UndefinedError)
LOOPBACK = ("127.0.0.1", "::1")


class HostVariables(Mapping):
    """The variables of hosts, each host's gathered once."""

    def __init__(self, hostvars):
        self._hostvars = hostvars
        self._found = {}
        self._untemplated = {}

    def __getitem__(self, host):
        if host not in self._found:
            self._found[host] = self._hostvars[host]
        return self._found[host]

    def __contains__(self, host):
        return host in self._hostvars

    def __iter__(self):
        return iter(self._hostvars)

    def __len__(self):
        return len(self._hostvars)

    def untemplated(self, host):
        """Return a host's variables as they were written."""
        if host not in self._untemplated:
            self._untemplated[host] = dict(getattr(self._hostvars, "raw_get", self.__getitem__)(host))
        return self._untemplated[host]


def looks_once(function):
    """Let what a plugin calls, with the variables of hosts as first argument, look each host up once."""

    @functools.wraps(function)
    def looking(hostvars, *args, **kwargs):
        return function(hostvars if isinstance(hostvars, HostVariables) else HostVariables(hostvars), *args, **kwargs)

    return looking


def plain(value):
    """Return ``value`` as built-in types only: tags, lazy containers and subclasses do not leave this file.

    Raises:
        AnsibleUndefinedVariable: A part of it is undefined. Inside a template Ansible hands that on as a value.
    """
    if isinstance(value, Undefined):
        raise AnsibleUndefinedVariable("a part of a value is undefined")
    if value is None or isinstance(value, (bool,)):
        return value
    if isinstance(value, str):
        return "".join(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(value[key]) for key in value}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value)


def is_ours(name):
    """Say whether a variable belongs to the tree."""
    return name == "ansible_host" or (name.startswith("ted_") and name not in ROLE_VARIABLES)


def variables(hostvars, host):
    """Return the ted variables of ``host``, templated, as plain data."""
    names = sorted(str(name) for name in hostvars[host] if is_ours(name))
    return {name: variable(hostvars, host, name) for name in names}


def variable(hostvars, host, name):
    """Return one variable of ``host``, templated, as plain data."""
    try:
        return plain(hostvars[host][name])
    except UNDEFINED:
        raw = hostvars.untemplated(host)
        return leaves(raw[name], Templar(loader=DataLoader(), variables=raw))


def leaves(value, templar):
    """Template each leaf by itself; one that cannot be keeps its text."""
    if isinstance(value, Mapping):
        return {plain(key): leaves(value[key], templar) for key in value}
    if isinstance(value, (list, tuple)):
        return [leaves(item, templar) for item in value]
    try:
        return plain(templar.template(value))
    except UNDEFINED:
        return plain(value)


def hierarchy_names(items, parent=None):
    """Yield ``(name, parent)`` for everybody in a routing hierarchy."""
    for item in items or []:
        if isinstance(item, Mapping):
            for name in item:
                yield str(name), parent
                yield from hierarchy_names(item[name], str(name))
        else:
            yield str(item), parent


def get(hostvars, host, name, default=None):
    """Return one variable of a host as plain data, or ``default``."""
    if host not in hostvars or name not in hostvars[host]:
        return default
    return variable(hostvars, host, name)


def distributors(groups):
    """Return the Distributors, in inventory order."""
    return [str(host) for host in groups.get("distributors", [])]


def channels(hostvars, groups):
    """Return the names of all channels: the keys of every ``ted_channels`` a Distributor or Subscriber sees."""
    names = []
    for host in distributors(groups) or [str(host) for host in groups.get("subscribers", [])][:1]:
        names += [str(name) for name in get(hostvars, host, "ted_channels", {}) or {} if str(name) not in names]
    return names


@looks_once
def members(hostvars, groups):
    """Return every node of the tree, External Subscribers too, in inventory order."""
    wanted = set()
    for group in list(ROLE_GROUPS) + channels(hostvars, groups):
        wanted.update(str(host) for host in groups.get(group, []))
    for host in distributors(groups):
        wanted.update(name for name, dummy in hierarchy_names(get(hostvars, host, "ted_routing_hierarchy", [])))
    pending = list(wanted)
    while pending:
        parent = get(hostvars, pending.pop(), "ted_parent")
        if parent and str(parent) not in wanted:
            wanted.add(str(parent))
            pending.append(str(parent))
    return [str(host) for host in groups.get("all", []) if str(host) in wanted]


def without_others_secrets(found):
    """Return a Distributor's variables as another one may have them: no password of a source or database is in them."""
    found = {name: value for name, value in found.items() if name != "ted_database_url"}
    distributions = found.get("ted_distributions")
    if not isinstance(distributions, dict):
        return found
    return {
        **found,
        "ted_distributions": {
            name: {**each, "options": without_secrets(each["options"])}
            if isinstance(each, dict) and "options" in each
            else each
            for name, each in distributions.items()
        },
    }


@looks_once
def topology(hostvars, groups, distributor=None):
    """Return the tree in the shape of ``ansible-inventory --list``; for one Distributor without others' secrets."""
    hosts = members(hostvars, groups)
    known = set(hosts)
    found = {host: variables(hostvars, host) for host in sorted(hosts)}
    if distributor is not None:
        found = {host: own if host == distributor else without_others_secrets(own) for host, own in found.items()}
    result = {"_meta": {"hostvars": found}}
    shown = []
    for group in sorted(set(list(ROLE_GROUPS) + channels(hostvars, groups))):
        if group in groups:
            result[group] = {"hosts": sorted(str(host) for host in groups[group] if str(host) in known)}
            shown.append(group)
    listed = {host for group in shown for host in result[group]["hosts"]}
    result["ungrouped"] = {"hosts": sorted(known - listed)}
    result["all"] = {"children": shown + ["ungrouped"]}
    return result


def parent_of(hostvars, groups, host):
    """Return who feeds ``host``: by a Distributor's hierarchy, else its ``ted_parent``, else the only Distributor."""
    owners = distributors(groups)
    for owner in owners:
        for name, parent in hierarchy_names(get(hostvars, owner, "ted_routing_hierarchy", [])):
            if name == host:
                return parent or owner
    own = get(hostvars, host, "ted_parent")
    if own:
        return str(own)
    return owners[0] if len(owners) == 1 and host not in owners else None


@looks_once
def node_settings(hostvars, groups, host):
    """Return what goes into the ``node.yml`` of ``host``."""
    own = variables(hostvars, host)
    result = {"node": host, "distributor": host in distributors(groups)}
    for name in NODE_SETTINGS:
        if own.get("ted_" + name) is not None:
            result[name] = own["ted_" + name]
    if not result["distributor"]:
        result.pop("database_url", None)
    result.setdefault("address", own.get("ansible_host") or host)
    if result["address"] in LOOPBACK:
        result["listen"] = result["address"]
    if "variables" in result:
        result["variables"] = {key: text(value) for key, value in result["variables"].items()}
    parent = parent_of(hostvars, groups, host)
    result.pop("parent", None)
    if parent and parent in hostvars:
        result["parent"] = parent
        result["parent_address"] = text(
            get(hostvars, parent, "ted_address") or get(hostvars, parent, "ansible_host") or parent
        )
        result["parent_port"] = plain(get(hostvars, parent, "ted_port", 7465))
    return result


def text(value):
    """Return a variable's value as the text that replaces ``%NAME%``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(plain(value))


@looks_once
def targets(hostvars, groups, distribution=None, channel=None):
    """Return the hosts (no External Subscribers) that shall have a distribution, or any, in inventory order."""
    wanted = {name for owner in distributors(groups) for name in channels_of(hostvars, owner, distribution)}
    return receivers(groups, wanted, channel)


def receivers(groups, wanted, channel=None):
    """Return the hosts (no External Subscribers) on the channels ``wanted``, or on one of them, in inventory order."""
    wanted = set(wanted)
    if channel:
        wanted &= {channel}
    hosts = {str(host) for name in wanted for host in groups.get(name, [])}
    hosts -= {str(host) for host in groups.get("external_subscribers", [])}
    return [str(host) for host in groups.get("all", []) if str(host) in hosts]


@looks_once
def owners(hostvars, groups, distribution=None, channel=None):
    """Return the Distributors that own a distribution (or any that goes out on ``channel``)."""
    if channel:
        return [host for host in distributors(groups) if channel in channels_of(hostvars, host, distribution)]
    return [host for host in distributors(groups) if chosen(hostvars, host, distribution)]


@looks_once
def meant(hostvars, groups, distribution=None, channel=None):
    """Return what to say of a distribution and a channel that no Distributor has together."""
    hosts = distributors(groups)
    known = sorted({str(name) for host in hosts for name in get(hostvars, host, "ted_distributions", {}) or {}})
    if distribution and distribution not in known:
        return near("distributions", distribution, known)
    if channel and channel not in channels(hostvars, groups):
        return near("channels", channel, sorted(channels(hostvars, groups)))
    used = sorted({name for host in hosts for name in channels_of(hostvars, host, distribution)})
    return "the channels with %s are: %s" % (distribution or "distributions", ", ".join(used) or "none")


def near(what, name, known):
    """Return the names near ``name``, or all that there are."""
    found = difflib.get_close_matches(name, known, n=3)
    if found:
        return "did you mean %s?" % " or ".join(found)
    return "there are these %s: %s" % (what, ", ".join(known) or "none")


def chosen(hostvars, owner, distribution=None):
    """Return what a Distributor says of a distribution of its own (or of all)."""
    mine = get(hostvars, owner, "ted_distributions", {}) or {}
    return [what for name, what in mine.items() if distribution in (None, "", name)]


def channels_of(hostvars, owner, distribution=None):
    """Return the channels on which a Distributor sends a distribution (or any)."""
    return [str(name) for what in chosen(hostvars, owner, distribution) for name in what.get("channels") or []]


@looks_once
def to_be_built(hostvars, distributor, channel=None):
    """Return the distributions of which this run's check foretold a new revision (that goes out on ``channel``)."""
    said = get(hostvars, distributor, "build_done", {}) or {}
    names = [row["distribution"] for row in said.get("distributions") or [] if row.get("check") and row.get("changed")]
    return [name for name in names if not channel or channel in channels_of(hostvars, distributor, name)]


@looks_once
def to_come(hostvars, groups, host, channel=None):
    """Return the distributions of which this run's check foretold that a revision would come to ``host``."""
    names = {
        name
        for owner in distributors(groups)
        for name in to_be_built(hostvars, owner, channel)
        if host in receivers(groups, channels_of(hostvars, owner, name), channel)
    }
    for turn in (get(hostvars, host, "send_done", {}) or {}).get("results") or []:
        for send in turn.get("sends") or []:
            sent_to = channels_of(hostvars, send["distributor"], send["distribution"])
            if (
                not send.get("send")
                and any(edge["receiver"] == host and edge["bytes"] for edge in send["edges"])
                and host in receivers(groups, sent_to, send.get("channel"))  # else it only hands it on
            ):
                names.add(send["distribution"])
    return sorted(names)


def executable(host_variables):
    """Return the path of ted on a host, given its variables."""
    if "ted_executable" in host_variables:
        return plain(host_variables["ted_executable"])
    venv = host_variables["ted_venv"] if "ted_venv" in host_variables else "/opt/ted/venv"
    return plain(venv) + "/bin/ted"


@looks_once
def certificate_requests(hostvars, hosts):
    """Return what the hosts of a play ask of the realm's authority."""
    asked = {}
    for host in hosts:
        said = get(hostvars, host, "node_configured", {}) or {}
        if said.get("request") or said.get("renew"):
            asked[str(host)] = {key: plain(said.get(key)) for key in ("request", "renew", "authority")}
    return asked


@looks_once
def missing_roots(hostvars, distributors, host, exported=()):
    """Return the roots of trust that a host does not hold in the form its Distributors have them."""
    held = (get(hostvars, host, "node_configured", {}) or {}).get("roots") or {}
    found = {str(item.get("item")): root_in(item.get("stdout")) for item in exported}
    for distributor in distributors:
        found.setdefault(str(distributor), None)
        said = get(hostvars, distributor, "node_configured", {}) or {}
        found[str(distributor)] = plain(said.get("root")) or found[str(distributor)]
    return {
        name: root
        for name, root in sorted(found.items())
        if root and held.get(name) != hashlib.sha256(root.encode()).hexdigest()
    }


def root_in(text):
    """Return the root in the answer of ``ted --json trust export``, or None."""
    start = (text or "").find("{")
    if start < 0:
        return None
    try:
        said = json.JSONDecoder().raw_decode(text[start:])[0]
    except ValueError:
        return None
    return said.get("root")
