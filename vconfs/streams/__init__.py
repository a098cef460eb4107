"""Byte streams that carry a console: their addresses, and the link between the two ends."""
