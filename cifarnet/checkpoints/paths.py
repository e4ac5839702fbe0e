"""Where snapshots and trained models lie, by name. Imports no torch: a wrong name fails at once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cifarnet.core.arguments import check_package, with_home
from cifarnet.core.errors import UserError, did_you_mean, os_errors
from cifarnet.core.files import exists
from cifarnet.settings import Settings

T = TypeVar("T")
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
    paths = directory.glob("snapshot_epoch_*.pth")
    named = [path for path in paths if path.stem.rpartition("_")[2].isdecimal()]
    return sorted(named, key=epoch_of_numbered)


def split_names(text: str) -> list[str]:
    """The names and paths of trained models in `text`, separated by commas.

    The path of an existing file or folder stays whole if it contains commas.
    """
    parts, names = text.split(","), []
    while parts:
        joined = {count: ",".join(parts[:count]) for count in range(len(parts), 1, -1)}
        # Path.exists raises for too long a name.
        whole = (n for n, path in joined.items() if os.path.exists(with_home(path)))  # noqa: PTH110
        count = next(whole, 1)
        names.append(with_home(",".join(parts[:count])))
        del parts[:count]
    return names


def resolve_model_path(name: str) -> Path:
    """The file of the trained model `name`: a result, a snapshot, a weights file or a hub folder.

    A name with a separator, as in `./hour`, is always a path. Raises `UserError` if there is no
    such file, if it cannot be opened, or if its format needs a package that is not installed.
    """
    if Path(name).suffix == ".pth":
        check_snapshot(Path(name))
        return Path(name)
    candidates = [Path(name)] if "/" in name else [RESULTS / name / WEIGHTS_FILE, Path(name)]
    for path in candidates:
        if name and exists(path):
            if path.is_dir():
                return _weights_in(path)
            with os_errors(f"{path} cannot be read", "change its permissions, or name another one"):
                path.open("rb").close()
            if path.suffix == ".onnx":
                check_package("onnxruntime.capi", name)
            return path
    results = sorted(path.parent.name for path in RESULTS.glob(f"*/{WEIGHTS_FILE}"))
    hint = did_you_mean(name, results)
    available = f"available by name: {', '.join(results)}; else" if results else ""
    hints = f"{hint} {available} name a file that export.py wrote".lstrip()
    raise UserError(f"there are no weights {name!r}; {hints}")


def check_snapshot(path: Path) -> None:
    """Raises `UserError` unless `path` can be opened for reading."""
    with os_errors(f"the snapshot {path} cannot be read", "name a .pth file that a run wrote"):
        path.open("rb").close()


def _weights_in(folder: Path) -> Path:
    """The weights in a folder for the hub. Raises `UserError` if it is not such a folder."""
    for needed in (HUB_CONFIG, HUB_WEIGHTS):
        if not exists(folder / needed):
            raise UserError(
                f"the folder {folder} has no {needed}; name a file, or a folder that "
                f"export.py --format hub wrote"
            )
    return folder / HUB_WEIGHTS


def each_model(flag: str, settings: Settings, read: Callable[[str], T]) -> list[T]:
    """Calls `read` with the name of each trained model that `flag`, init or teacher, gives.

    Raises `UserError` for a snapshot that the run would replace. A `UserError` of `read` is raised
    again with the flag, and with the recipe that trains such a model, if there is one.
    """
    text, results = settings.flags[flag], []
    names = [] if text is None else split_names(text) if flag == "teacher" else [text]
    for name in names:
        path = Path(name)
        in_run = path.resolve().parent == settings.output.folder("snapshot_dir").resolve()
        if path.suffix == ".pth" and in_run:
            raise UserError(
                f"--{flag} {name} is in this run's --snapshot_dir, where it would be replaced; "
                f"choose another folder"
            )
        try:
            results.append(read(name))
        except UserError as problem:
            whole = f" {text}" if len(names) > 1 else ""  # a path may contain commas
            recipe = RECIPES / f"{path.parent.name.removeprefix('snapshots_')}.toml"
            trains_it = f" (recipes/{recipe.name} trains one; --{flag} off uses none)"
            hint = trains_it if recipe.is_file() else ""
            raise UserError(f"--{flag}{whole}: {problem}{hint}") from None
    return results
