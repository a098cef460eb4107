"""Prints the size of its terminal, and again at each SIGWINCH: `… remote.window COUNT`.

It ends after COUNT sizes. It has to be the session leader of its terminal.
"""

from __future__ import annotations

import os
import signal
import sys

_CHANGED = {signal.SIGWINCH}


def main(count: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _CHANGED)  # so that none is missed
    for number in range(int(count)):
        if number:
            signal.sigwait(_CHANGED)
        print(*os.get_terminal_size(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
