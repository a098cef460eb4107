"""When a busy peer is looked at again, and when the CPU is left to others."""

from __future__ import annotations

from vconfs.link.busy_polling import BusyPolling

MUCH = 1 << 16


class Cpu:
    """A clock, and another program that runs for some time at each yield."""

    def __init__(self, others: float = 0.0001) -> None:
        self.now = 100.0
        self.yields = 0
        self.others = others
        self.polling = BusyPolling(lambda: self.now, self.let_others_run)

    def let_others_run(self) -> None:
        self.yields += 1
        self.now += self.others

    def looks(self, peer: object, moved: int = MUCH) -> int:
        """Return how often a peer is looked at again after `moved` bytes."""
        before = self.yields
        deadline = self.polling.deadline(peer, moved)
        while deadline and self.polling.goes_on(deadline):
            pass
        return self.yields - before


def test_a_busy_peer_is_looked_at_for_a_millisecond() -> None:
    cpu = Cpu()
    assert cpu.looks("peer") in (10, 11)  # the clock's sums are not exact
    assert cpu.now < 100.002


def test_a_quiet_peer_is_not_looked_at_again() -> None:
    cpu = Cpu()
    assert cpu.looks("peer", 100) == 0


def test_many_busy_peers_are_not_looked_at_again() -> None:
    cpu = Cpu()
    few, many = "abcd", "abcdefgh"
    assert all(cpu.looks(peer) for peer in few)
    cpu.now += 1
    assert not any([cpu.looks(peer) for peer in many * 3][len(many) :])
    cpu.now += 1
    assert cpu.looks("a")


def test_a_program_that_keeps_the_cpu_gets_no_more_of_our_time() -> None:
    cpu = Cpu(others=0.003)
    assert cpu.looks("peer") == 1
    assert cpu.looks("peer") == 0
    cpu.now += 0.1
    assert cpu.looks("peer") == 1
