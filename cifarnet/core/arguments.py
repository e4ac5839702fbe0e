"""Arguments of a command: the parser, paths, and the packages that a flag needs."""

import argparse
import importlib.util
import os
import typing

from cifarnet.core.errors import UserError, did_you_mean


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `UserError` on a wrong request instead of exiting."""

    def error(self, message: str) -> typing.NoReturn:
        if "ignored explicit argument" in message:  # as in --amp=true
            flag = message.split()[1].partition("/")[0]
            raise UserError(f"{flag} takes no value; leave the value out")
        flags = [flag for action in self._actions for flag in action.option_strings]
        unknown = next(
            (w for w in message.split() if w.startswith("--") and w.rstrip(":") not in flags), ""
        )
        raise UserError(f"{message}; {did_you_mean(unknown, flags) or 'see --help'}")


def path_argument(text: str) -> str:
    """The type of an argument that is a path: `~` means the home directory."""
    return os.path.expanduser(text)  # noqa: PTH111, Path would tidy up `./name`


def check_package(name: str, flag: str) -> None:
    """Raises `UserError` if the optional package `name`, which `flag` needs, is not installed."""
    if importlib.util.find_spec(name) is None:
        raise UserError(
            f"{flag} needs the package {name}, which is not installed; "
            f"pip install -r requirements-extra.txt, or leave {flag} out"
        )
