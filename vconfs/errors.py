"""What goes wrong, for the user."""


class VconfsError(Exception):
    """One line for the user: what cannot be done, why and, where there is one, the way out.

    Commands print it and exit with 1.
    """
