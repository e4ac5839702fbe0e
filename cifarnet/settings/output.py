"""Settings of the output: snapshots, resuming, and the folders of a run."""

from dataclasses import dataclass
from pathlib import Path

from cifarnet.settings.flags import Group, flag

# The folders of a run, in --run_dir, by the flag that names another place.
SNAPSHOTS, PLOTS = "snapshots_complete", "plots_complete"
FOLDERS = {"log_dir": "log", "snapshot_dir": SNAPSHOTS, "plot_dir": PLOTS}


@dataclass(frozen=True)
class OutputSettings(Group):
    """What a run writes, and where."""

    # fmt: off
    save_best: bool = flag(False, on_resume="any", help=
        "Keep best_model.pth; it is replaced only when the accuracy improves.")
    snapshot_freq: int = flag(5, within="[0, 1000000]", on_resume="any", help=
        "Write a numbered snapshot every N epochs; last.pth is written every epoch. 0: none.")
    keep_snapshots: int = flag(0, within="[0, inf)", on_resume="any", help=
        "Keep only this many numbered snapshots, the newest ones. 0: all.")
    resume: str | None = flag(None, unset="off", metavar="PATH|auto", on_resume="any", help=
        "Continue from this snapshot. auto: from the newest one in --snapshot_dir, or start a new "
        "run if there is none.")
    resume_override: bool = flag(False, on_resume="any", help=
        "Let --resume continue with flags that change the result.")
    run_dir: str = flag(".", on_resume="any", help=
        "Folder that contains log_dir, snapshot_dir and plot_dir.")
    log_dir: str | None = flag(None, unset="log, in --run_dir", on_resume="any", help=
        "Folder for the log, the history and run.json of each run.")
    snapshot_dir: str | None = flag(None,
        "Folder for snapshots.",
        unset="snapshots_complete, in --run_dir", on_resume="any")
    plot_dir: str | None = flag(None, unset="plots_complete, in --run_dir", on_resume="any", help=
        "Folder for the report, its figures and predictions.")
    tensorboard: bool = flag(False, on_resume="any", help=
        "Also write the history, images and the final figures for TensorBoard, into a folder "
        "beside the log. Needs the package tensorboard.")
    # fmt: on

    def folder(self, flag: str) -> Path:
        """The folder of `flag`: log_dir, snapshot_dir or plot_dir."""
        folder = getattr(self, flag)
        return Path(self.run_dir) / FOLDERS[flag] if folder is None else Path(folder)
