"""Errors that a command reports in one line, and their exit codes."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The request was wrong (flags, files, data). One line says what to fix. Exit code 2."""

    exit_code = 2

    def __str__(self) -> str:
        return printable(super().__str__())


class RunError(UserError):
    """The request was right, but the run failed. One line says why. Exit code 1."""

    exit_code = 1


def printable(text: str) -> str:
    """Returns `text` with every invisible character (line break, terminal command) as an escape.

    File names can hold any character; printed as they are, they could break a line or a terminal.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns "did you mean X?" with the closest word in `known`, or "" if none is close."""
    near = difflib.get_close_matches(word, known, 1)
    return f"did you mean {near[0]}?" if near else ""
