"""The parser, recipes, the table of flags, and how a command runs.

`python -m cifarnet.core.commandline` prints the table of flags for docs/flags.md.
"""

import argparse
import contextlib
import errno
import importlib.util
import io
import os
import re
import sys
import tomllib
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import Field
from functools import partial
from pathlib import Path
from typing import Any

from cifarnet.core.errors import RunError, UserError, did_you_mean
from cifarnet.core.settings import FLAGS, GROUPS, Settings, check_value, value_type
from cifarnet.core.signals import Signals


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


TTA = ("none", "flip", "shift")  # test-time augmentation; the first is the default


def add_tta(parser: argparse.ArgumentParser) -> None:
    """Adds the flag --tta."""
    parser.add_argument(
        "--tta",
        choices=TTA,
        default=TTA[0],
        metavar="|".join(TTA),
        help="Test-time augmentation: average the probabilities of several views. flip: the image "
        "and its mirror image. shift: both, and both shifted by one pixel in the eight directions. "
        "They take 2 and 18 times as long (default: %(default)s).",
    )


def check_evaluate(evaluate: str | None, pretrained: str | None) -> None:
    """Raises `UserError` where both flags are given: --evaluate chooses within a snapshot."""
    if evaluate is not None and pretrained is not None:
        raise UserError(
            "--evaluate chooses between the weights in a snapshot; leave it out with --pretrained"
        )


def build_parser(description: str, names: Iterable[str], *, defaults: bool = True) -> Parser:
    """Returns a parser for the flags `names` of `Settings`, in their groups.

    A flag that is not given leaves no attribute. With `defaults=False` --help names no defaults:
    the command takes them from elsewhere, such as a snapshot.
    """
    parser = Parser(description=description, allow_abbrev=False)
    wanted = set(names)
    for key, title in GROUPS.items():
        specs = [s for name, s in FLAGS.items() if name in wanted and s.metadata["group"] == key]
        group = parser.add_argument_group(title) if specs else None
        for spec in specs:
            _add_flag(group, spec, defaults)
    return parser


def _add_flag(group: argparse._ArgumentGroup, spec: Field, defaults: bool) -> None:
    text = spec.metadata["help"].replace("%", "%%")
    if defaults:
        text += f" (default: {shown_default(spec)})"
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
    kind = value_type(spec)
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["type"] = partial(_read_value, spec) if kind is str else kind
        options["metavar"] = (
            spec.metadata["metavar"]
            or "|".join(spec.metadata["choices"])
            or {int: "N", float: "X", str: "PATH"}[kind]
        )
    group.add_argument(f"--{spec.name}", **options)


def _read_value(spec: Field, text: str) -> str | None:
    """Expands `~` in a path: a shell leaves it in `--log_dir=~/runs`.

    Turns "off" into None: `--teacher off` on the command line undoes the teacher of a recipe.
    """
    if text == "off" and spec.metadata["unset"] == "off":
        return None
    shown = spec.metadata["metavar"] or "PATH"
    is_path = not spec.metadata["choices"] and ("PATH" in shown or "FILE" in shown)
    return path_argument(text) if is_path else text


def path_argument(text: str) -> str:
    """The type of an argument that is a path: `~` means the home directory."""
    return os.path.expanduser(text)  # noqa: PTH111, Path would tidy up `./name`


def shown_default(spec: Field) -> str:
    """The default of a flag, in words."""
    if spec.metadata["unset"]:
        return spec.metadata["unset"]
    return {True: "on", False: "off"}[spec.default] if spec.type is bool else str(spec.default)


def given_flags(argv: Sequence[str], description: str) -> dict[str, Any]:
    """Returns the flags that the command line `argv` or its --recipe sets; `argv` wins.

    Raises `UserError`. `--help` prints the help and exits with code 0.
    """
    given = vars(build_parser(description, FLAGS).parse_args(argv))
    recipe = read_recipe(Path(given["recipe"])) if given.get("recipe") else {}
    return recipe | given


def flags_of(settings: Settings) -> list[str]:
    """Returns the command line that asks for `settings`: all that differ from the defaults.

    Leaves out --recipe, whose flags are among them, and what resumes a run.
    """
    words = []
    for name, value in vars(settings).items():
        if value == FLAGS[name].default or name in ("recipe", "resume", "resume_override"):
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            text = str(value)
            words += [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
    return words


def read_recipe(path: Path) -> dict[str, Any]:
    """Returns the flags that the TOML file `path` sets: `epochs = 250`, `amp = true`.

    Raises `UserError` if the file cannot be read, or sets an unknown flag or a wrong value.
    """
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Notepad adds a signature
    except OSError as problem:
        raise UserError(
            f"--recipe {path}: cannot read it ({problem.strerror}); name a TOML file"
        ) from None
    # ValueError: bad TOML, bad UTF-8, a number too long. RecursionError: nested too deep.
    except (ValueError, RecursionError) as problem:
        raise UserError(
            f"--recipe {path} is not a TOML file ({problem}); write lines such as epochs = 250"
        ) from None
    known = [name for name in FLAGS if name != "recipe"]
    flags = {}
    for name, value in recipe.items():
        if name not in known:
            hint = did_you_mean(name, known) or "see --help for the flags"
            raise UserError(f"--recipe {path}: there is no flag {name!r}; {hint}")
        try:
            check_value(FLAGS[name], value)
        except UserError as problem:
            raise UserError(f"--recipe {path}: {problem}") from None
        flags[name] = _read_value(FLAGS[name], value) if isinstance(value, str) else value
    return flags


def flags_table() -> str:
    """Returns all flags as a Markdown table, for docs/flags.md."""
    rows = ["| flag | default | range | meaning |", "|---|---|---|---|"]
    for key, title in GROUPS.items():
        rows.append(f"| **{title}** | | | |")
        for name, spec in FLAGS.items():
            meta = spec.metadata
            if meta["group"] != key:
                continue
            within = meta["within"].text if meta["within"] else " ".join(meta["choices"])
            flag = f"--{name}` / `--no-{name}" if spec.type is bool else f"--{name}"
            rows.append(f"| `{flag}` | {shown_default(spec)} | {within} | {meta['help']} |")
    return "\n".join(rows)


def check_package(name: str, flag: str) -> None:
    """Raises `UserError` where the optional package `name`, which `flag` needs, is not there."""
    if importlib.util.find_spec(name) is None:
        raise UserError(
            f"{flag} needs the package {name}, which is not installed; "
            f"pip install -r requirements-extra.txt, or leave {flag} out"
        )


def print_error(problem: UserError) -> int:
    """Prints `problem` as one line on stderr and returns its exit code."""
    open_streams()
    # One write: with PYTHONUNBUFFERED, two ranks' lines would else run into one another.
    print(f"error: {problem}\n", end="", file=sys.stderr)
    return problem.exit_code


@contextlib.contextmanager
def machine_errors() -> Iterator[None]:
    """Turns errors of the machine into `RunError`: out of memory, a worker that died.

    torch raises a plain `RuntimeError` for a dead worker, and on the CPU and on MPS for memory, so
    its message decides.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        text = str(problem)
        if isinstance(problem, MemoryError) or any(
            sign in text for sign in ("out of memory", "can't allocate memory")
        ):
            raise RunError(
                "out of memory; lower --batch_size, or raise --accumulate in training"
            ) from None
        if re.match(r"DataLoader worker \(pid", text):
            raise lost_workers("one of them was killed, or ran out of memory") from None
        raise


def lost_workers(why: str) -> RunError:
    """The error for processes that augment images and cannot start or have died."""
    return RunError(
        f"the processes that augment images failed: {why}; "
        f"use --num_workers 0 or --augment_engine batched"
    )


def open_streams() -> None:
    """Lets closed standard streams lead to os.devnull: Python has None for them.

    They take their usual numbers, or a file that is opened later would receive what libraries
    print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            setattr(sys, name, open(number, "w" if number else "r"))  # noqa: PTH123, SIM115


def run_command(
    command: Callable[[], None],
    tell: Callable[[UserError], object] = print_error,
    patient: bool = False,
) -> int:
    """Runs `command` and returns its exit code.

    0: done; 1: the run failed; 2: the request was wrong; 130 or 143: Ctrl-C or SIGTERM. `tell`
    reports a `UserError` or `RunError`. `patient`: see `Signals`. Any other error is a bug and
    passes through.
    """
    open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name can hold characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    try:
        with Signals(patient), machine_errors():
            command()
        sys.stdout.flush()
    except UserError as problem:
        tell(problem)
        return problem.exit_code
    except OSError as problem:
        if problem.filename is not None or problem.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # stdout is closed (`| head`) or its disk is full. Python would flush it again at exit
        # and print a traceback, so let that write go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if problem.errno == errno.ENOSPC:
            print(f"error: the output could not be written ({problem.strerror})", file=sys.stderr)
        return 1
    except KeyboardInterrupt as problem:
        return getattr(problem, "exit_code", 130)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda: print(flags_table())))
