"""Run the commands: `python -m vconfs`."""

from vconfs.cli import main

if __name__ == "__main__":
    main()
