"""The error of a device that cannot be had, or is of no more use."""


class DeviceError(Exception):
    """The device cannot be opened or used; the message says why, for the user to read."""
