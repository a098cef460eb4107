"""How the guest end reaches a device: one module for each kind of DEVICE url."""
