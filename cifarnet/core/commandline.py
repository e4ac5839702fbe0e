"""Parser, recipes, the table of flags, and how a command runs."""

import argparse
import contextlib
import dataclasses
import errno
import io
import os
import sys
import tomllib
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cifarnet.core.errors import RunError, UserError, did_you_mean
from cifarnet.core.settings import GROUPS, Settings, _check
from cifarnet.core.signals import Signals


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong request raises `UserError` instead of printing a usage text and leaving."""

    def error(self, message: str) -> typing.NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        unknown = next(
            (w for w in message.split() if w.startswith("--") and w.rstrip(":") not in flags), ""
        )
        raise UserError(f"{message}; {did_you_mean(unknown, flags) or 'see --help'}")


def build_parser(
    description: str, names: Iterable[str], *, defaults: bool = True
) -> argparse.ArgumentParser:
    """A parser with the flags `names` of `Settings`, in their groups.

    With `defaults=False` a flag that is not given leaves no attribute, so that the caller can lay what was
    given over settings from elsewhere (a snapshot).
    """
    parser = Parser(description=description, allow_abbrev=False)
    wanted = set(names)
    for key, title in GROUPS.items():
        specs = [
            f
            for f in dataclasses.fields(Settings)
            if f.metadata["group"] == key and f.name in wanted
        ]
        group = parser.add_argument_group(title) if specs else None
        for spec in specs:
            _add_flag(group, spec, defaults)
    return parser


def _add_flag(group: Any, spec: dataclasses.Field, defaults: bool) -> None:
    text = spec.metadata["help"].replace("%", "%%")
    if defaults:
        text += f" (default: {_shown_default(spec)})"
    if spec.type is bool:
        group.add_argument(
            f"--{spec.name}",
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=text,
        )
        return
    kind = (typing.get_args(spec.type) or (spec.type,))[0]
    metavar = spec.metadata["metavar"] or "|".join(spec.metadata["choices"] or ())
    metavar = metavar or {int: "N", float: "X", str: "PATH"}[kind]
    if spec.metadata["unset"] == "off":
        kind = _unless_off
    group.add_argument(
        f"--{spec.name}", type=kind, default=argparse.SUPPRESS, metavar=metavar, help=text
    )


def _unless_off(text: str) -> str | None:
    """None for "off", by which a command line switches off what its recipe names."""
    return None if text == "off" else text


def _shown_default(spec: dataclasses.Field) -> str:
    """The default as people read it."""
    if spec.metadata["unset"]:
        return spec.metadata["unset"]
    return {True: "on", False: "off"}[spec.default] if spec.type is bool else str(spec.default)


def parse_settings(argv: Sequence[str], description: str, presets: Sequence[str] = ()) -> Settings:
    """The settings that a command line asks for: defaults < `presets`, flags too < its --recipe < its other flags.

    Raises `UserError`; `--help` prints and leaves with 0.
    """
    parser = build_parser(description, [spec.name for spec in dataclasses.fields(Settings)])
    given = vars(parser.parse_args(argv))
    recipe = read_recipe(Path(given["recipe"])) if given.get("recipe") else {}
    return Settings(**(vars(parser.parse_args(presets)) | recipe | given))


def read_recipe(path: Path) -> dict[str, Any]:
    """The flags that a TOML file sets: `epochs = 250`, `amp = true`. Raises `UserError` where it is no such file."""
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UserError(
            f"--recipe {path}: cannot read it ({problem.strerror}); name a TOML file"
        ) from None
    except (ValueError, RecursionError) as problem:  # of which the two decoding errors are kinds
        raise UserError(
            f"--recipe {path} is no TOML file ({problem}); write lines such as epochs = 250"
        ) from None
    known = [spec.name for spec in dataclasses.fields(Settings) if spec.name != "recipe"]
    for name, value in recipe.items():
        if name not in known:
            hint = did_you_mean(name, known) or "its keys are the flags of --help"
            raise UserError(f"--recipe {path}: there is no flag {name!r}; {hint}")
        try:
            _check(next(spec for spec in dataclasses.fields(Settings) if spec.name == name), value)
        except UserError as problem:
            raise UserError(f"--recipe {path}: {problem}") from None
    unset = {spec.name for spec in dataclasses.fields(Settings) if spec.metadata["unset"] == "off"}
    return {name: _unless_off(value) if name in unset else value for name, value in recipe.items()}


def flags_table() -> str:
    """All flags as a Markdown table, for the README."""
    rows = ["| flag | default | range | meaning |", "|---|---|---|---|"]
    for key, title in GROUPS.items():
        rows.append(f"| **{title}** | | | |")
        for spec in dataclasses.fields(Settings):
            meta = spec.metadata
            if meta["group"] != key:
                continue
            within = meta["within"].text if meta["within"] else " ".join(meta["choices"] or ())
            name = f"--{spec.name}` / `--no-{spec.name}" if spec.type is bool else f"--{spec.name}"
            rows.append(f"| `{name}` | {_shown_default(spec)} | {within} | {meta['help']} |")
    return "\n".join(rows)


def print_error(problem: UserError) -> None:
    """One line on stderr."""
    print(f"error: {problem}", file=sys.stderr)


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Makes a `RunError` of want of memory, of which torch's errors on the CPU and on MPS have no class of their own."""
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        wants = ("out of memory", "can't allocate memory")
        if isinstance(problem, MemoryError) or any(words in str(problem) for words in wants):
            raise RunError(
                "out of memory; a lower --batch_size needs less, and in training --accumulate does"
            ) from None
        raise


def run_command(
    command: Callable[[], None],
    tell: Callable[[UserError], None] = print_error,
    patient: bool = False,
) -> int:
    """Runs `command` and returns its exit code; `tell` gets an error of the user's or the run's. `patient` as in
    `Signals`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a terminal of few characters, a name of many
    try:
        with Signals(patient), memory_errors():
            command()
        sys.stdout.flush()
    except UserError as problem:
        tell(problem)
        return problem.exit_code
    except OSError as problem:
        if problem.filename is not None or problem.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or Python would write there again at its end
        if problem.errno == errno.ENOSPC:  # else who read along has seen enough (`| head`)
            print(f"error: the output could not be written ({problem.strerror})", file=sys.stderr)
        return 1
    except KeyboardInterrupt as problem:
        return getattr(problem, "exit_code", 130)
    return 0


if __name__ == "__main__":
    print(flags_table())
