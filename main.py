"""Trains CIFARNet, LiteNet or a teacher, and reports on it: `python main.py --epochs 250 --amp`.

See README.md, or --help. This file reads the flags and refuses what it can, before torch is
imported, which takes seconds. `commands/training_run.py` does the rest.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.paths import check_snapshot, each_model, resolve_model_path
from cifarnet.core.command import print_error, run_command
from cifarnet.core.errors import UserError
from cifarnet.core.files import ensure_temporary_folder, existing_directory
from cifarnet.core.launch import launched_ranks
from cifarnet.settings import Settings
from cifarnet.settings.parser import given_flags

DESCRIPTION = "Trains CIFARNet (174,762 parameters), or another --network, and reports on it."


def main(argv: Sequence[str] | None = None, presets: Mapping[str, Any] | None = None) -> int:
    """The command. Exit code 0; 1 if the run failed, 2 for a wrong request, 130 after Ctrl-C,
    143 after SIGTERM, 129 if the terminal was closed. `presets` are values of flags that a recipe
    and `argv` may overrule."""
    argv = list(sys.argv[1:] if argv is None else argv)
    defaults = dict(presets or {})
    flags: dict[str, Any] = {}

    def read_flags() -> None:
        flags.update(given_flags(argv, DESCRIPTION))
        source, preview = flags.get("resume"), flags.get("preview_augment")
        if preview and Path(preview).suffix.lower() != ".png":
            raise UserError(
                f"--preview_augment {preview}: the preview is a PNG file; end its name in .png"
            )
        if source in (None, "auto"):
            settings = Settings.from_flags(**defaults | flags)
            check_request(settings)
            written_to = Path(preview).parent if preview else settings.output.folder("plot_dir")
            ensure_temporary_folder(written_to)
        else:  # the settings are those of the snapshot, under the flags
            check_snapshot(Path(source))
            ensure_temporary_folder(Path(source).parent)
        import commands.training_run  # noqa: F401, and torch: Ctrl-C ends that in one line too

    quiet = launched_ranks().local_rank > 0
    code = run_command(read_flags, (lambda problem: None) if quiet else print_error)
    if code:
        return code
    from cifarnet.core.ranks import run_on_ranks
    from commands.run import Request
    from commands.training_run import run_training

    command = ["run_complete_training.py" if presets else "main.py", *argv]
    request = Request(command, flags, defaults)
    return run_on_ranks(lambda group: run_training(request, group))


def check_request(settings: Settings) -> None:
    """Raises `UserError` for what can be refused without reading an image or a tensor."""
    if settings.data.is_folder:
        existing_directory(settings.data.data_dir, "--data_dir")
    for flag in ("init", "teacher"):
        if not settings.output.resume:
            each_model(flag, settings, resolve_model_path)


if __name__ == "__main__":
    sys.exit(main())
