"""The guests of `vconfs host`: from its options, and from the tables of its file of options.

    listen = "stream:unix:/run/vconfs/any.sock,guest=*"

    [template]
    port = ["org.example.agent=unix:/run/vconfs/%g/agent.sock,cache", "log=file:/var/log/%g.log"]

    [[guest]]
    name = "web1"
    listen = "vhost-user:/run/vconfs/%g.sock"

What a table [[guest]] does not say is taken from [template].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import evolve, frozen

from vconfs.host.fleet import NO_LIMITS, GuestSpec, Limits, Template
from vconfs.host.listeners import ANY, Listener, parse_listener
from vconfs.host.serving import Guests
from vconfs.host.spec import parse_port
from vconfs.protocol.dialect import DIALECTS
from vconfs.syntax.guest_names import fill_in, guest_name
from vconfs.syntax.toml import place_in_array, place_of

#: The keys of both tables, of [[guest]] alone, and of [template] alone: its limits.
_KEYS: Final = ("listen", "port", "dialect")
_NAME: Final = "name"
_LIMITS: Final = {
    "guests-max": "guests",
    "memory-max": "memory",
    "guest-memory-max": "guest_memory",
}
#: Any guest: to check a template before there is one.
_SAMPLE: Final = "guest"


@frozen
class Tables:
    """The tables of a file of options."""

    guests: Sequence[GuestSpec] = ()
    template: Template | None = None
    limits: Limits = NO_LIMITS


def read_tables(config: Mapping[str, Any], text: str, file: str) -> Tables | None:
    """Return the tables of a file, None if it has none. ValueError says what is wrong and where."""
    if "guest" not in config and "template" not in config:
        return None
    values = config.get("template", {})
    try:
        if not isinstance(values, dict):
            raise ValueError("template is a table, [template]")
        fields, limits = _template(values)
        template = Template(**fields)
        template.guest(_SAMPLE)
    except ValueError as error:
        raise ValueError(f"{place_of('template', text, file)}: {error}") from None
    guests: list[GuestSpec] = []
    tables = config.get("guest", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{place_of('guest', text, file)}: guests are tables, [[guest]]")
    for index, table in enumerate(tables):
        try:
            guest = _guest(table, fields)
            if any(guest.name == other.name for other in guests):
                raise ValueError(f"there are two guests {guest.name!r}")
            guests.append(guest)
        except ValueError as error:
            where = place_in_array("", "guest", index, text, file)
            raise ValueError(f"{where}: {error}") from None
    return Tables(guests, template if "template" in config else None, limits)


def _template(table: Mapping[str, Any]) -> tuple[dict[str, Any], Limits]:
    limits = {}
    for key, name in _LIMITS.items():
        if key not in table:
            continue
        value = table[key]
        if type(value) is not int or value < 1:
            raise ValueError(f"{key} is a number from 1, not {value!r}")
        limits[name] = value
    return _fields(table, *_LIMITS), Limits(**limits)


def _guest(table: Mapping[str, Any], common: Mapping[str, Any]) -> GuestSpec:
    fields = _fields(table, _NAME)
    if not isinstance(name := table.get(_NAME), str):
        raise ValueError("a guest needs a name, a text in quotes")
    guest = Template(**{**common, **fields}).guest(name)
    for listener in guest.listeners:
        if listener.guest not in ("", name):
            raise ValueError(f"{listener.url} is not for {name!r}: write it outside of the table")
    return guest


def _fields(table: Mapping[str, Any], *own_keys: str) -> dict[str, Any]:
    """Return the fields of a Template that a table has."""
    fields: dict[str, Any] = {}
    for key, value in table.items():
        if key in own_keys:
            continue
        if key not in _KEYS:
            keys = ", ".join((*own_keys, *_KEYS))
            raise ValueError(f"{key}: unknown key: the keys are {keys}")
        if key == "dialect":
            if value not in DIALECTS:
                raise ValueError(f"dialect is {' or '.join(DIALECTS)}, not {value!r}")
            fields[key] = value
            continue
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{key} is a text or a list of texts in quotes, not {value!r}")
        fields["ports" if key == "port" else key] = texts
    return fields


def guests_of(
    urls: Sequence[str], dialect: str | None, ports: Sequence[str], tables: Tables | None
) -> Guests:
    """Return the guests. Raise ValueError if a listener cannot be for any of them."""
    listeners = [parse_listener(url, dialect) for url in urls]
    if tables is not None:
        return _by_tables(listeners, tables)
    if len(listeners) == 1 and not listeners[0].guest:
        specs = [parse_port(port) for port in ports]
        one = GuestSpec(listeners[0].name, specs, listeners)
        return Guests([one], several=False, samples=[one])
    return _by_listeners(listeners, Template(ports))


def _by_tables(listeners: Sequence[Listener], tables: Tables) -> Guests:
    names = [guest.name for guest in tables.guests]
    for listener in listeners:
        if not listener.guest:
            raise ValueError(f"{listener.url}: say which guest it is for: add ,guest=NAME or =*")
        if listener.guest not in (ANY, *names):
            raise ValueError(f"{listener.url}: there is no [[guest]] {listener.guest!r}")
    open_to_all = [listener for listener in listeners if listener.guest == ANY]
    guests = [
        evolve(
            guest, listeners=[*guest.listeners, *(it for it in listeners if it.guest == guest.name)]
        )
        for guest in tables.guests
    ]
    samples = [*guests, *([tables.template.guest(_SAMPLE)] if tables.template else [])]
    if not open_to_all and not any(guest.listeners for guest in samples):
        raise ValueError("no guest could connect: a listen is missing")
    return Guests(guests, open_to_all, tables.template, tables.limits, samples=samples)


def _by_listeners(listeners: Sequence[Listener], template: Template) -> Guests:
    """Return a guest for each name in the listeners, with the same ports but for %g."""
    by_name: dict[str, list[Listener]] = {}
    for listener in listeners:
        if listener.guest == ANY:
            continue
        name = guest_name(listener.name)
        others = by_name.setdefault(name, [])
        if others and not listener.guest:
            raise ValueError(
                f"{others[0].url} and {listener.url} would both be for guest {name!r}: add"
                " ,guest=NAME"
            )
        others.append(parse_listener(fill_in(listener.url, name), listener.dialect))
    guests = [evolve(template.guest(name), listeners=its) for name, its in by_name.items()]
    open_to_all = [listener for listener in listeners if listener.guest == ANY]
    return Guests(
        guests,
        open_to_all,
        template if open_to_all else None,
        samples=[*guests, template.guest(_SAMPLE)],
    )
