"""Run the commands: `vconfs`, and `python -m vconfs`."""

import signal

from vconfs.system.standard_streams import open_missing_streams


def main() -> None:
    """Load the commands and run one; Ctrl-C while loading ends us without a traceback."""
    open_missing_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from vconfs.cli import main

    main()


if __name__ == "__main__":
    main()
