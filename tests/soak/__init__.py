"""A soak: random use of both ends for a long time, with every byte checked."""
