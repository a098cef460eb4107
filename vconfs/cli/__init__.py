"""The commands: they parse arguments and wire the layers together, nothing else."""
