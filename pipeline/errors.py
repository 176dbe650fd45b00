"""The one exception that is the user's to mend."""


class UserError(Exception):
    """What is wrong, where, and how to mend it, in one line; the CLI prints it without a traceback and exits 2."""


def first_line(error: Exception) -> str:
    """The first line of what a library's error says, cut to 200 characters; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
