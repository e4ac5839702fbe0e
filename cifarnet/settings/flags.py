"""What a flag is: its type, default, range, help and resume rule, kept in a dataclass field."""

import sys
import typing
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal

from cifarnet.core.errors import UserError

_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def flag(
    default: Any,
    help: str,
    *,
    within: str | None = None,
    numbers: Sequence[int] = (),
    choices: Sequence[str] = (),
    unset: str | None = None,
    metavar: str | None = None,
    on_resume: Literal["same", "larger", "any"] = "same",
) -> Any:
    """Makes a field of a `Group`.

    `within` is the allowed range. `numbers` are the allowed lengths of a list of numbers, which is
    kept as text such as "0.1,0.2"; each number is `within` the range. `unset` describes a default
    of None. `metavar` stands for the value in --help. `on_resume` says which values a resumed run
    may have: the "same" because another one changes the result, a "larger" one too, or "any".
    """
    meta = {
        "help": help,
        "within": within,
        "numbers": numbers,
        "choices": choices,
        "unset": unset,
        "metavar": metavar,
        "on_resume": on_resume,
    }
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Group:
    """Settings that belong together: each field is the command-line flag of the same name. Raises
    `UserError` if a value has the wrong type, is out of range, or contradicts another."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            check_value(spec, value)
            if value_type(spec) is float and type(value) is int:  # `lr = 1` in a recipe
                object.__setattr__(self, spec.name, float(value))
            if spec.metadata["numbers"]:  # one text for equal lists: 0 for `dropout = 0.0`
                text = ",".join(repr(n).removesuffix(".0") for n in numbers_in(str(value)))
                object.__setattr__(self, spec.name, text)
        self.check()

    def check(self) -> None:
        """Raises `UserError` if two settings of this group contradict each other."""


def value_type(spec: Field) -> type:
    """Returns the type of a field's values: int for a field of type `int | None`."""
    return (typing.get_args(spec.type) or (spec.type,))[0]


def lies_in(number: float, interval: str) -> bool:
    """Whether `number` lies in `interval`: "[0, 1)" contains 0 but not 1."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = number >= low if interval[0] == "[" else number > low
    below = number <= high if interval[-1] == "]" else number < high
    return above and below


def numbers_in(text: str) -> tuple[float, ...]:
    """The numbers of a list such as "0.1,0.2". Raises `ValueError` for other text."""
    return tuple(float(number) for number in text.split(","))


def check_value(spec: Field, value: Any) -> None:
    """Raises `UserError` unless `value` has the type of the field and is allowed there."""
    if value is None and spec.default is None:
        return
    if spec.metadata["numbers"]:
        _check_numbers(spec, value)
        return
    kind = value_type(spec)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise UserError(f"--{spec.name} {value!r} is not {_TYPE_NAMES[kind]}")
    choices, within = spec.metadata["choices"], spec.metadata["within"]
    if choices and value not in choices:
        raise UserError(f"--{spec.name} {value!r} is not one of {', '.join(choices)}")
    # A whole number can be too large for a float.
    if within and not (abs(value) <= sys.float_info.max and lies_in(value, within)):
        shown = f"{value:g}" if isinstance(value, float) else str(value)[:30]
        number = {int: "whole", float: "finite"}[kind]
        raise UserError(f"--{spec.name} {shown} is out of range; use a {number} number in {within}")
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise UserError(
            f"--{spec.name} is empty or holds a null character; give it a value or leave it out"
        )


def _check_numbers(spec: Field, value: Any) -> None:
    """Raises `UserError` unless `value` is a number, or a list of as many as the field takes."""
    counts, within = spec.metadata["numbers"], spec.metadata["within"]
    try:
        numbers = numbers_in(str(value))
    except ValueError:
        numbers = ()
    if len(numbers) not in counts or not all(lies_in(number, within) for number in numbers):
        raise UserError(
            f"--{spec.name} {value!r} is not a list of {' or '.join(map(str, counts))} numbers in "
            f"{within}; write it like {spec.default}"
        )
