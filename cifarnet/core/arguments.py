"""Arguments of a command: the parser, paths, and the packages that a flag needs."""

import argparse
import importlib
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


def with_home(text: str) -> str:
    """`text` with the home directory for `~`."""
    return os.path.expanduser(text)  # noqa: PTH111, Path would tidy up `./name`


def path_argument(text: str) -> str:
    """The type of an argument that is a path, which is not empty: an unset variable of a shell
    would mean the working directory."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("the path is empty, or holds a null character")
    return with_home(text)


def check_package(name: str, flag: str, listed_in: str = "requirements-extra.txt") -> None:
    """Imports the module `name` of a package that `flag` needs. Raises `UserError` if that
    fails."""
    package = name.partition(".")[0]
    try:
        for each in (package, name):
            importlib.import_module(each)
    except Exception as problem:  # a broken installation can raise anything
        missing = isinstance(problem, ModuleNotFoundError) and problem.name == package
        text = " ".join(str(problem).split())
        why = "is not installed" if missing else f"fails to import ({text or repr(problem)})"
        raise UserError(
            f"{flag} needs the package {package}, which {why}; "
            f"pip install -r {listed_in}, or leave {flag} out"
        ) from None
