"""The error that is shown to the user."""


class VconfsError(Exception):
    """One line for the user: what failed, why and, if there is one, the way out.

    Commands print it and exit with status 1.
    """


class PeerAbsentError(VconfsError):
    """The other end is not there, and may come later: nothing listens at its address."""
