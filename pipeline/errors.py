"""The exceptions that are the user's to mend."""


class UserError(Exception):
    """What is wrong, where, and how to mend it, in one line; the CLI prints it without a traceback and exits 2."""


class UnsureError(UserError):
    """What a command would discard, and how to allow it. At a terminal the CLI asks instead."""

    def __init__(self, what: str, way: str) -> None:
        super().__init__(f"{what}; {way}")
        self.what = what
