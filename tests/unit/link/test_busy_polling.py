"""When a busy peer is looked at again, and when the CPU is left to others."""

from __future__ import annotations

import pytest

from vconfs.link.busy_polling import PATIENCE, BusyPolling, Looks

MUCH = 1 << 16


class Cpu:
    """A clock, another program that runs for some time at each yield, and peers to look at.

    Each look takes `own` seconds of our time.
    """

    def __init__(
        self, others: float = 0.0001, own: float = 0.000001, patience: float = PATIENCE
    ) -> None:
        self.now = 100.0
        self.yields = 0
        self.others = others
        self.own = own
        self.patience = patience
        self.polling = BusyPolling(lambda: self.now, self.let_others_run)
        self.peers: dict[str, Looks] = {}

    def let_others_run(self) -> None:
        self.yields += 1
        self.now += self.others

    def looks(self, peer: str = "peer", moved: int = MUCH, finds: int = 0) -> int:
        """Return how often a peer is looked at again, of which the next looks find something."""
        looks = self.peers.setdefault(peer, Looks(self.polling))
        before = self.yields
        looks.begin(moved, self.patience)
        found = True
        while looks.again(found=found):
            self.now += self.own
            found = self.yields - before <= finds
        return self.yields - before


def test_a_busy_peer_is_looked_at_for_a_millisecond() -> None:
    cpu = Cpu()
    assert cpu.looks(finds=1000) in (10, 11)  # the clock's sums are not exact
    assert cpu.now < 100.002


@pytest.mark.parametrize(
    ("others", "own", "most"),
    [(0.0, 0.000_005, 17), (0.0001, 0.000_002, 12), (0.0, 0.0001, 1)],
)
def test_looks_in_vain_end_soon(others: float, own: float, most: int) -> None:
    cpu = Cpu(others, own)
    assert 0 < cpu.looks() <= most


@pytest.mark.parametrize("finds", [0, 1, 3])
def test_without_patience_the_first_look_in_vain_is_the_last(finds: int) -> None:
    cpu = Cpu(patience=0)
    assert cpu.looks(finds=finds) == finds + 1


def test_looks_in_vain_end_when_a_task_waits_for_its_turn() -> None:
    cpu = Cpu()
    looks = Looks(cpu.polling)
    cpu.polling.others_wait = True  # in an earlier turn
    looks.begin(MUCH, PATIENCE)
    assert looks.again(found=True)
    cpu.polling.others_wait = True
    assert looks.again(found=True)
    assert not looks.again(found=False)
    assert not looks.again(found=True)


def test_after_looks_in_vain_some_are_skipped() -> None:
    cpu = Cpu(patience=0)
    looked = []
    for _ in range(1000):
        cpu.now += 1
        looked.append(cpu.looks())
    assert looked[:8] == [1, 0, 1, 0, 0, 1, 0, 0]
    assert 10 < sum(looked) < 25
    while not cpu.looks(finds=1):
        cpu.now += 1
    assert [cpu.looks(finds=1) for _ in range(3)] == [2, 2, 2]


def test_a_quiet_peer_is_not_looked_at_again() -> None:
    cpu = Cpu()
    assert cpu.looks("peer", 100) == 0


def test_many_busy_peers_are_not_looked_at_again() -> None:
    cpu = Cpu()
    few, many = "abcd", "abcdefgh"
    assert all(cpu.looks(peer, finds=1) for peer in few)
    cpu.now += 1
    assert not any([cpu.looks(peer, finds=1) for peer in many * 3][len(many) :])
    cpu.now += 1
    assert cpu.looks("a")


def test_a_program_that_keeps_the_cpu_gets_no_more_of_our_time() -> None:
    cpu = Cpu(others=0.003)
    assert cpu.looks(finds=1) == 1
    assert cpu.looks(finds=1) == 0
    cpu.now += 0.1
    assert cpu.looks(finds=1) == 1


def test_nothing_is_looked_at_that_has_not_begun() -> None:
    looks = Looks(BusyPolling())
    assert not looks.again(found=True)
    looks.found()
    assert not looks.again(found=False)
