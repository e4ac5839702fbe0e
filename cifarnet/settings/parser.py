"""Flags on the command line: the parser and recipes."""

import argparse
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, fields
from functools import partial
from pathlib import Path
from typing import Any

from cifarnet.core.arguments import Parser, path_argument, with_home
from cifarnet.core.errors import UserError, did_you_mean, os_errors
from cifarnet.settings import FLAGS, GROUPS, Settings
from cifarnet.settings.evaluation import TTA
from cifarnet.settings.flags import check_value, value_type


def build_parser(
    description: str,
    names: Iterable[str],
    *,
    defaults: bool = True,
    texts: Mapping[str, str] | None = None,
) -> Parser:
    """Returns a parser for the flags `names` of `Settings`, in their groups.

    A flag that is not given leaves no attribute. With `defaults=False` --help names no defaults:
    the command takes them from elsewhere, such as a snapshot. `texts` replace the help of flags
    that mean something else than in main.py.
    """
    texts = texts or {}
    parser = Parser(description=description, allow_abbrev=False)
    wanted = set(names)
    for title, group in GROUPS.items():
        specs = [spec for spec in fields(group) if spec.name in wanted]
        section = parser.add_argument_group(title) if specs else None
        for spec in specs:
            default = f" (default: {shown_default(spec)})" if defaults else ""
            _add_flag(section, spec, texts.get(spec.name, spec.metadata["help"] + default))
    return parser


def _add_flag(group: argparse._ArgumentGroup, spec: Field, text: str) -> None:
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    kind = value_type(spec)
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        options["type"] = partial(read_value, spec) if kind is str else kind
        options["metavar"] = (
            spec.metadata["metavar"]
            or "|".join(spec.metadata["choices"])
            or {int: "N", float: "X", str: "PATH"}[kind]
        )
    group.add_argument(f"--{spec.name}", **options)


def read_value(spec: Field, value: Any) -> Any:
    """The value of a flag as it was written. Expands `~` in a path: a shell leaves it in
    `--log_dir=~/runs`. Turns "off" into None: `--teacher off` on the command line undoes the
    teacher of a recipe."""
    if not isinstance(value, str):
        return value
    if value == "off" and spec.metadata["unset"] == "off":
        return None
    shown = spec.metadata["metavar"] or "PATH"
    is_path = not spec.metadata["choices"] and ("PATH" in shown or "FILE" in shown)
    return with_home(value) if is_path else value


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


# What --pretrained says where several models are one classifier.
ENSEMBLE = "Several, separated by commas, form an ensemble: their probabilities are averaged."


def add_pretrained(
    parser: argparse._ActionsContainer,
    several: str = "",
    default: str | None = None,
    note: str = "",
) -> None:
    """Adds the flag --pretrained. With `several`, a sentence that says what several models do, it
    takes a list with commas. `note` ends its help."""
    file = "a file that export.py wrote" if several else "a .safetensors file"
    text = f"Trained model: the name of a result, {file}, or a .pth snapshot. {several}".rstrip()
    parser.add_argument(
        "--pretrained",
        type=str if several else path_argument,  # `split_names` expands each of several
        default=default,
        metavar="NAME|PATH,..." if several else "NAME|PATH",
        help=f"{text} {note}".rstrip(),
    )


def check_evaluate(evaluate: str | None, pretrained: str | None) -> None:
    """Raises `UserError` where both flags are given: --evaluate chooses within a snapshot."""
    if evaluate is not None and pretrained is not None:
        raise UserError(
            "--evaluate chooses between the weights in a snapshot; leave it out with --pretrained"
        )


def shown_default(spec: Field) -> str:
    """The default of a flag, in words."""
    if spec.metadata["unset"]:
        return spec.metadata["unset"]
    return {True: "on", False: "off"}[spec.default] if spec.type is bool else str(spec.default)


def given_flags(argv: Sequence[str], description: str) -> dict[str, Any]:
    """Returns the flags that the command line `argv` or its --recipe sets; `argv` wins. Raises
    `UserError`. `--help` prints the help and exits with code 0."""
    flags = vars(build_parser(description, FLAGS).parse_args(argv))
    recipe = read_recipe(Path(flags["recipe"])) if flags.get("recipe") else {}
    return recipe | flags


def flags_of(settings: Settings) -> list[str]:
    """Returns the command line that asks for `settings`: all that differ from the defaults. Leaves
    out --recipe, whose flags are among them, and what resumes a run."""
    words = []
    for name, value in settings.flags.items():
        if value == FLAGS[name].default or name in ("recipe", "resume", "resume_override"):
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            text = str(value)
            words += [f"--{name}={text}"] if text.startswith("-") else [f"--{name}", text]
    return words


def read_recipe(path: Path) -> dict[str, Any]:
    """Returns the flags that the TOML file `path` sets: `epochs = 250`, `amp = true`. Raises
    `UserError` if the file cannot be read, or sets an unknown flag or a wrong value."""
    try:
        with os_errors(f"--recipe {path}: cannot read it", "name a TOML file"):
            recipe = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Notepad adds a signature
    # ValueError: bad TOML, bad UTF-8, a number too long. RecursionError: nested too deep.
    except (ValueError, RecursionError) as problem:
        raise UserError(
            f"--recipe {path} is not a TOML file ({problem}); write lines such as epochs = 250"
        ) from None
    allowed = [name for name in FLAGS if name != "recipe"]
    flags = {}
    for name, value in recipe.items():
        if name not in allowed:
            hint = did_you_mean(name, allowed) or "see --help for the flags"
            raise UserError(f"--recipe {path}: there is no flag {name!r}; {hint}")
        try:
            check_value(FLAGS[name], value)
        except UserError as problem:
            raise UserError(f"--recipe {path}: {problem}") from None
        flags[name] = read_value(FLAGS[name], value)
    return flags
