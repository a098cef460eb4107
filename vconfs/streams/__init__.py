"""Byte streams that carry a console: where they lead, and the link between the two ends."""
