"""Interfaces to the operating system that know no ports: sockets, ptys, programs, signals, logs."""
