"""Reads a sweep: the flags of all runs, and the settings that differ. docs/sweep.md explains it."""

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cifarnet.core.arguments import with_home
from cifarnet.core.errors import UserError, did_you_mean, os_errors
from cifarnet.core.files import existing_directory, read_file
from cifarnet.images.labels import read_labels
from cifarnet.images.parts import part_folders
from cifarnet.settings import FLAGS, GROUP_OF, Settings
from cifarnet.settings.data import DataSettings
from cifarnet.settings.flags import check_value, value_type
from cifarnet.settings.parser import read_recipe, read_value

KINDS = ("grid", "settings", "search")
SAMPLERS = ("tpe", "random")  # the names of sweep_study.SAMPLERS; this file imports no Optuna
OF_THE_SWEEP = (  # flags that sweep.py sets, or that have no place in a sweep
    *("run_dir", "log_dir", "snapshot_dir", "plot_dir", "resume", "resume_override"),
    *("preview_augment", "recipe"),
)
OF_THE_IMAGES = (  # flags that decide which images an accuracy is measured on
    *("dataset", "data_dir", "labels", "skip_bad_images"),
    *("limit_train", "val_fraction", "test_fraction"),
)


class Range(NamedTuple):
    """Numbers to search in, of the flag's type."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Sweep:
    """What a sweep file asks for.

    `flags` are those of every run. `space` has the choices or the range of each flag that differs.
    `settings` are the values of these flags of each run; a search has none.
    """

    flags: dict[str, Any]
    space: dict[str, Sequence[Any] | Range]
    settings: list[dict[str, Any]] = field(default_factory=list)
    sampler: str = SAMPLERS[0]
    trials: int = 0  # of a search
    prune_after: int | None = None  # epochs; None: no run is ended early

    @property
    def data(self) -> DataSettings:
        """The images of all runs; their size may differ. Raises `UserError`."""
        return DataSettings(**{n: v for n, v in self.flags.items() if GROUP_OF[n] == "data"})

    def example(self) -> Settings:
        """The settings of a run: with the defaults of what differs, or else with the first values
        and the low ends of ranges. Raises `UserError` if neither fit together."""
        try:
            return self.run_settings({})
        except UserError:
            first = {n: v.low if isinstance(v, Range) else v[0] for n, v in self.space.items()}
            return self.run_settings(first)

    def run_settings(self, values: Mapping[str, Any]) -> Settings:
        """All settings of the run with these `values`. Raises `UserError`."""
        return Settings.from_flags(**self.flags | dict(values))


def read_sweep(path: Path) -> Sweep:
    """Reads the sweep file `path`. Raises `UserError` for a wrong one."""
    try:
        content = tomllib.loads(read_file(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as problem:
        raise UserError(
            f"{path} is not a TOML file ({problem}); see docs/sweep.md for an example"
        ) from None
    try:
        return _sweep(content)
    except UserError as problem:
        raise UserError(f"{path}: {problem}") from None


def _sweep(content: dict[str, Any]) -> Sweep:
    _check_keys(content, ("flags", "seeds", *KINDS), "a sweep")
    kinds = [name for name in KINDS if name in content]
    if len(kinds) != 1:
        raise UserError("write exactly one of [grid], [[settings]] and [search]")
    (kind,) = kinds
    flags = dict(_table(content.get("flags", {}), "[flags]"))
    recipe = flags.pop("recipe", None)
    recipe = with_home(str(recipe)) if recipe else None
    flags = _checked((read_recipe(Path(recipe)) if recipe else {}) | flags)
    seeds = content.get("seeds", [])
    if kind == "search":
        if "seeds" in content:
            raise UserError("a search has no seeds; set seed in [flags]")
        sweep = _search(flags, _table(content[kind], "[search]"))
    else:
        listed = {"grid": _grid, "settings": _listed}[kind](content[kind])
        if seeds and any("seed" in given for given in (content.get("flags", {}), *listed)):
            raise UserError("seeds and seed are both given; remove one of them")
        sweep = _of_settings(flags, listed, _choices("seeds", seeds) if seeds else [])
    for name in OF_THE_IMAGES:
        if name in sweep.space:
            raise UserError(
                f"{name} must not differ: all runs need the same validation images; set {name} in "
                f"[flags]"
            )
    data = sweep.data
    if not data.val_fraction and not _has_val(data):
        raise UserError(
            "a sweep must not select by the test images; set val_fraction in [flags], such as 0.1"
        )
    for values in sweep.settings:
        sweep.run_settings(values)
    if not sweep.settings:
        sweep.example()
    return sweep


def _has_val(data: DataSettings) -> bool:
    """Whether --data_dir or --labels has validation images and test images."""
    if not data.is_folder:
        return False
    with os_errors(f"--data_dir {data.data_dir} cannot be read", "name another one"):
        root = existing_directory(data.data_dir, "--data_dir")
        if data.labels:
            layout = read_labels(root, Path(data.labels), lambda note: None)
            return {"val", "test"} <= {file.part for file in layout.files}
        return {"val", "test"} <= part_folders(root).keys()


def _grid(table: Any) -> list[dict[str, Any]]:
    table = {name: _choices(name, values) for name, values in _table(table, "[grid]").items()}
    return [dict(zip(table, values, strict=True)) for values in itertools.product(*table.values())]


def _listed(tables: Any) -> list[dict[str, Any]]:
    if not isinstance(tables, list) or not tables:
        raise UserError("settings are several tables; write [[settings]] above each")
    return [dict(_table(table, "[[settings]]")) for table in tables]


def _of_settings(
    flags: dict[str, Any], listed: list[dict[str, Any]], seeds: Sequence[Any]
) -> Sweep:
    """Each setting of the list with each seed, once. What it leaves out is as in `flags`."""
    listed = [_checked(values) for values in listed]
    names = list(dict.fromkeys(name for values in listed for name in values))
    common = {name: flags.get(name, FLAGS[name].default) for name in names}
    settings = [common | values for values in listed]
    if seeds:
        settings = [values | {"seed": seed} for seed in seeds for values in settings]
    settings = [values for at, values in enumerate(settings) if values not in settings[:at]]
    space = {name: _distinct(values[name] for values in settings) for name in settings[0]}
    return Sweep(flags, space, settings)


def _search(flags: dict[str, Any], table: Mapping[str, Any]) -> Sweep:
    _check_keys(table, ("sampler", "trials", "prune_after", "space"), "[search]")
    sampler, trials = table.get("sampler", SAMPLERS[0]), table.get("trials")
    prune_after = table.get("prune_after")
    if sampler not in SAMPLERS:
        raise UserError(f"there is no sampler {sampler!r}; use {' or '.join(SAMPLERS)}")
    if type(trials) is not int or trials < 1:
        raise UserError("[search] needs the number of runs; write trials = 40")
    if prune_after is not None and (type(prune_after) is not int or prune_after < 1):
        raise UserError(f"prune_after {prune_after!r} is not a number of epochs; write 5")
    space = {
        name: _range(name, values) if isinstance(values, dict) else _choices(name, values)
        for name, values in _table(table.get("space", {}), "[search.space]").items()
    }
    if not space:
        raise UserError("[search.space] names no flag; write lr = {low = 0.01, high = 1.0}")
    return Sweep(flags, space, [], sampler, trials, prune_after)


def _range(name: str, table: dict[str, Any]) -> Range:
    """The range of the flag `name`, whose ends are values of it."""
    _check_keys(table, Range._fields, name)
    if not {"low", "high"} <= set(table) or type(table.get("log", False)) is not bool:
        raise UserError(f"{name} is not a range; write {{low = 0.01, high = 1.0, log = true}}")
    _checked({name: table["low"]})
    _checked({name: table["high"]})
    if value_type(FLAGS[name]) not in (int, float) or not table["high"] - table["low"] > 0:
        raise UserError(f"{name} is not a range of numbers with low below high; list its values")
    if table.get("log") and table["low"] <= 0:
        raise UserError(f"{name} has a range with log, so low must be above 0")
    return Range(**table)


def _choices(name: str, values: Any) -> list[Any]:
    """The values of the flag `name`."""
    if not isinstance(values, list) or not values:
        raise UserError(f"{name} is not a list of values; write {name} = [...]")
    flag = "seed" if name == "seeds" else name
    return _distinct(_checked({flag: value})[flag] for value in values)


def _distinct(values: Any) -> list[Any]:
    """Each of `values` once: 1 and true are two values, 1 and 1.0 are one. Python takes 1 and True
    for equal, so the key says which one is a truth value."""
    return list({(type(value) is bool, value): value for value in values}.values())


def _table(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{name} is not a table; see docs/sweep.md for an example")
    return value


def _checked(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The `flags`, read as those of a recipe. Raises `UserError` unless a sweep may set them, to
    these values."""
    for name, value in flags.items():
        if name in OF_THE_SWEEP:
            raise UserError(f"{name} cannot be set in a sweep; remove it")
        if name not in FLAGS:
            hint = did_you_mean(name, FLAGS) or "see main.py --help for the flags"
            raise UserError(f"there is no flag {name!r}; {hint}")
        check_value(FLAGS[name], value)
    return {name: read_value(FLAGS[name], value) for name, value in flags.items()}


def _check_keys(table: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    for name in table:
        if name not in allowed:
            raise UserError(
                f"{where} has no {name!r}; {did_you_mean(name, allowed) or f'it has {allowed}'}"
            )
