"""Wire formats and state machines: no I/O, no trio, no clock."""
