"""The tables of a port's states, alone and beside a real port."""

from __future__ import annotations

import errno
import select
from itertools import product

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.guest.test_port import FakeLine
from vconfs.guest._port_states import FIRST, HOSTS, STATES, WAYS, Event, Host, State, Way
from vconfs.guest.port import Port, PortOptions

DATA, END, WAITS = "data", "end of file", "waits"

#: What write does with a port of each way: not throttled with and without a host, and throttled.
WRITES: dict[Way, tuple[object, object, object, object]] = {
    Way.NONE: (errno.ENOTCONN,) * 4,
    Way.EMERGENCY: (DATA, DATA, errno.ENOSPC, errno.ENOSPC),
    Way.MESSAGES: (DATA, DATA, errno.ENOSPC, errno.ENOSPC),
    Way.RING: (DATA, WAITS, WAITS, WAITS),
    Way.REMOVED: (errno.ENODEV,) * 4,
}
COLUMNS = (Host.CONNECTED, Host.ABSENT, Host.THROTTLES, Host.THROTTLES_ABSENT)


def written(state: State) -> object:
    if state.sends:
        return DATA
    return state.refusal or WAITS


@pytest.mark.parametrize("way", Way)
def test_what_a_write_does(way: Way) -> None:
    assert tuple(written(STATES[way, host]) for host in COLUMNS) == WRITES[way]


@pytest.mark.parametrize("pair", STATES)
def test_a_state_is_told_by_its_flags(pair: tuple[Way, Host]) -> None:
    state = STATES[pair]
    assert (state.way, state.host) == pair
    if not state.removed:
        assert bool(state.poll & select.POLLHUP) == (not state.connected)
        assert not state.poll & select.POLLERR
    assert not (state.sends and state.refusal)


def test_every_state_has_its_row() -> None:
    assert set(WAYS) == set(Way)
    assert set(HOSTS) == set(Host)
    assert set(STATES) == set(product(Way, Host))


def test_nothing_leads_out_of_removed() -> None:
    for host, event in product(Host, Event):
        state = STATES[Way.REMOVED, host]
        assert state.after.get(event, state).removed


def test_an_event_that_comes_twice_changes_nothing_more() -> None:
    for state, event in product(STATES.values(), Event):
        after = state.after.get(event, state)
        assert after.after.get(event, after) is after


def test_a_device_that_is_lost_leaves_nothing_of_its_host() -> None:
    for state in STATES.values():
        if not state.removed:
            assert state.after.get(Event.DEVICE_LOST, state) is FIRST


def make_happen(port: Port, event: Event) -> None:
    """Let a real port see an event."""
    match event:
        case Event.HOST_OPENS | Event.HOST_HANGS_UP:
            port.set_connected(event is Event.HOST_OPENS)
        case Event.THROTTLE | Event.UNTHROTTLE:
            port.set_throttled(event is Event.THROTTLE)
        case Event.ATTACHED_BY_MESSAGES | Event.ATTACHED_BY_RING:
            port.attach(FakeLine(throttles=event is Event.ATTACHED_BY_MESSAGES))
        case Event.EMERGENCY_LINE:
            port.use_emergency_line(FakeLine())
        case Event.DEVICE_LOST:
            port.detach()
        case Event.REMOVED:
            port.remove()


def outcome_of_write(port: Port) -> object:
    try:
        port.write_nowait(b"x", nonblock=True)
    except trio.WouldBlock:
        return WAITS
    except OSError as error:
        return error.errno
    return DATA


def outcome_of_read(port: Port) -> object:
    try:
        return DATA if port.read_nowait(1) else END
    except trio.WouldBlock:
        return WAITS
    except OSError as error:
        return error.errno


@given(st.lists(st.sampled_from(list(Event)), max_size=12))
def test_a_port_does_what_the_table_says(happened: list[Event]) -> None:
    port, state = Port(0, PortOptions()), FIRST
    for event in happened:
        if event is Event.EMERGENCY_LINE and port.attached:
            continue  # only a port without a line gets one
        if state.removed:
            break
        make_happen(port, event)
        state = state.after.get(event, state)
    assert (port.host_connected, port.host_throttled) == (state.connected, state.throttled)
    assert port.removed == state.removed
    assert port.attached == (state.way in (Way.MESSAGES, Way.RING))
    room = select.POLLOUT | select.POLLWRNORM if state.sends else 0
    assert port.poll() == state.poll | room
    assert outcome_of_write(port) == written(state)
    reads = {True: errno.ENODEV, False: WAITS if state.connected else END}
    assert outcome_of_read(port) == reads[state.removed]
