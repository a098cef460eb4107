"""The error of a stream that cannot be had."""


class StreamError(Exception):
    """The stream cannot be had, or carries no console; the message is one line for people."""
