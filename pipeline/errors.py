"""The one exception that is the user's to mend."""


class UserError(Exception):
    """What is wrong, where, and how to mend it, in one line; the CLI prints it without a traceback and exits 2."""
