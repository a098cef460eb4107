"""The operating system, without a word of ports: sockets, ptys, programs, signals, logs."""
