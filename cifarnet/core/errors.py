"""Errors that are told in one line, and their exit codes."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The request was wrong (flags, files, data): one line for the user, who can put it right. Exit code 2."""

    exit_code = 2

    def __str__(self) -> str:
        return printable(super().__str__())


class RunError(UserError):
    """The request was right and the run failed all the same: one line for the user. Exit code 1."""

    exit_code = 1


def printable(text: str) -> str:
    """`text` with what is no visible character (line breaks, terminal commands, broken bytes) written as an escape:
    names of files and folders can hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The question after the nearest of the words `known`; empty where none is near."""
    near = difflib.get_close_matches(word, known, 1)
    return f"did you mean {near[0]}?" if near else ""
