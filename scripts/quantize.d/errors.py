"""The one exception that ends the command with a message instead of a traceback."""


class Refused(Exception):
    """What cannot be done, and what to do about it."""
