"""Where snapshots and weights lie, by name.

Nothing here needs torch: a wrong name is refused at once.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cifarnet.core.commandline import check_package, path_argument
from cifarnet.core.errors import UserError, did_you_mean
from cifarnet.settings import Settings

LAST, BEST = "last.pth", "best_model.pth"
ROOT = Path(__file__).parents[2]
RESULTS, RECIPES = ROOT / "results", ROOT / "recipes"
WEIGHTS_FILE = "weights.safetensors"  # results/<name>/weights.safetensors
HUB_WEIGHTS, HUB_CONFIG = "model.safetensors", "config.json"  # in a folder for the hub


def numbered(directory: Path, epoch: int) -> Path:
    """The path of the numbered snapshot of `epoch`."""
    return directory / f"snapshot_epoch_{epoch:04d}.pth"


def epoch_of_numbered(path: Path) -> int:
    """The epoch of a numbered snapshot, by its name."""
    return int(path.stem.rpartition("_")[2])


def all_numbered(directory: Path) -> list[Path]:
    """The numbered snapshots in `directory`, the oldest first."""
    found = directory.glob("snapshot_epoch_*.pth")
    named = [path for path in found if path.stem.rpartition("_")[2].isdecimal()]
    return sorted(named, key=epoch_of_numbered)


def split_names(text: str) -> list[str]:
    """The names and paths of trained networks in `text`, separated by commas.

    The path of an existing file or folder stays whole if it contains commas.
    """
    parts, names = text.split(","), []
    while parts:
        joined = {count: ",".join(parts[:count]) for count in range(len(parts), 1, -1)}
        # Path.exists raises for too long a name.
        whole = (n for n, path in joined.items() if os.path.exists(path_argument(path)))  # noqa: PTH110
        count = next(whole, 1)
        names.append(path_argument(",".join(parts[:count])))
        del parts[:count]
    return names


def find_all_trained(text: str) -> list[str]:
    """The names that `split_names` finds. Raises `UserError` where one is of no trained network."""
    names = split_names(text)
    for name in names:
        if find_trained(name).suffix == ".onnx":
            check_package("onnxruntime", name)
    return names


def find_trained(name: str) -> Path:
    """The file of a trained network: the snapshot `name` (.pth), or what `find_weights` finds.

    Raises `UserError` where there is none.
    """
    path = Path(name)
    if path.suffix != ".pth":
        return find_weights(name)
    check_snapshot(path)
    return path


def check_snapshot(path: Path) -> None:
    """Raises `UserError` unless `path` can be opened for reading."""
    try:
        path.open("rb").close()
    except OSError as problem:
        raise UserError(
            f"the snapshot {path} cannot be read ({problem.strerror}); "
            f"name a .pth file that a run wrote"
        ) from None


def find_weights(name: str) -> Path:
    """The weights file that `name` means: that of the result `name`, else the path `name`.

    A path may be a folder for the hub. A name with a separator, as in `./hour`, is always a path.
    Raises `UserError`.
    """
    candidates = [Path(name)] if "/" in name else [RESULTS / name / WEIGHTS_FILE, Path(name)]
    for path in candidates:
        try:
            if path.is_file():
                return path
            if name and path.is_dir():
                return _weights_in(path)
        except OSError:  # a name too long for a file
            continue
    there = sorted(path.parent.name for path in RESULTS.glob(f"*/{WEIGHTS_FILE}"))
    hint = did_you_mean(name, there)
    known = f"known by name: {', '.join(there)}; else" if there else f"{RESULTS} holds none;"
    hints = f"{hint} {known} name a file that export.py wrote".lstrip()
    raise UserError(f"there are no weights {name!r}; {hints}")


def _weights_in(folder: Path) -> Path:
    """The weights in a folder for the hub. Raises `UserError` if it is none."""
    for needed in (HUB_CONFIG, HUB_WEIGHTS):
        if not (folder / needed).is_file():
            raise UserError(
                f"the folder {folder} has no {needed}; name a file, or a folder that "
                f"export.py --format hub wrote"
            )
    return folder / HUB_WEIGHTS


def find_named(flag: str, settings: Settings, read: Callable[[str], Any]) -> Any:
    """`read(name)`, where --init or --teacher gives the name. Its errors name flag and recipe."""
    name = getattr(settings.training, flag)
    path = Path(name)
    in_run = path.resolve().parent == settings.output.folder("snapshot_dir").resolve()
    if path.suffix == ".pth" and in_run:
        raise UserError(
            f"--{flag} {name} is in this run's --snapshot_dir, where it would be replaced; "
            f"choose another folder"
        )
    try:
        return read(name)
    except UserError as problem:
        recipe = RECIPES / f"{path.parent.name.removeprefix('snapshots_')}.toml"
        trains_it = f" (recipes/{recipe.name} trains one; --{flag} off does without)"
        raise UserError(f"--{flag}: {problem}{trains_it if recipe.is_file() else ''}") from None
