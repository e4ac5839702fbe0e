"""What a run leaves behind: log lines, history, snapshots, figures, and the report at its end."""

import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import plots
from cifarnet.checkpoints.snapshots import BEST, LAST, find_best, load, numbered, pack, prune, save
from cifarnet.checkpoints.state import TrainState, weights_of
from cifarnet.core.commandline import build_parser
from cifarnet.core.device import peak_memory
from cifarnet.core.errors import RunError
from cifarnet.core.log import RunLog
from cifarnet.core.ranks import Group, from_first_rank, sum_over_ranks
from cifarnet.images.imageset import SIZE
from evaluate import headline, report_on, write_evaluation
from train import Trainer


class Recorder:
    """Keeps what a run leaves behind: log lines, history, snapshots, figures. The first rank does it, for all."""

    def __init__(
        self, trainer: Trainer, log: RunLog, snapshot_dir: Path, plot_dir: Path, group: Group
    ) -> None:
        self.trainer, self.log, self.snapshot_dir, self.plot_dir = (
            trainer,
            log,
            snapshot_dir,
            plot_dir,
        )
        self.group = group
        self.config, self.splits, self.runtime = trainer.config, trainer.splits, trainer.runtime
        self.started = time.perf_counter()
        self.epochs_before = trainer.epoch
        self.told_of_wait = False
        self.unsaved: dict[Path, bytes] = {}  # snapshots yet to be written, or to be tried again
        self.undrawn = False  # whether the disk did not take the curves the last time

    @property
    def epochs_here(self) -> int:
        """The epochs that this process has finished."""
        return self.trainer.epoch - self.epochs_before

    def on_epoch_end(self, row: dict[str, Any]) -> None:
        """Keeps the epoch that `row` is of."""
        self.group.first_only(lambda: self._keep(row))

    def _keep(self, row: dict[str, Any]) -> None:
        """Snapshots first, best before last: a crash in between is then repeated by the resumed run."""
        epoch, config = row["epoch"], self.config
        content = pack(self.trainer.state())
        if config.keeps_best and self.trainer.best_epoch == epoch:
            self.unsaved[self.snapshot_dir / BEST] = content
        if config.snapshot_freq and epoch % config.snapshot_freq == 0:
            self.unsaved[numbered(self.snapshot_dir, epoch)] = content
        self.unsaved[self.snapshot_dir / LAST] = content
        self._write_snapshots()
        self.log.row(row)
        if config.compile and self.epochs_here == 1:
            self.log.line(f"compiled in the first step, which took {self.trainer.first_step:.0f} s")
        self.log.line(self._epoch_line(row))
        if (
            row["data_wait"] > 0.1
            and config.augment_engine == "albumentations"
            and not self.told_of_wait
        ):
            self.told_of_wait = True  # once a run
            self.log.line(f"{row['data_wait']:.0%} of the epoch went by waiting for data: more --num_workers (now "
                          f"{self.trainer.batches.workers}) where cores are idle, or --augment_engine batched")  # fmt: skip
        if config.plot_freq and epoch % config.plot_freq == 0 and epoch < config.epochs:
            self._draw_training()

    def _write_snapshots(self) -> None:
        for path in sorted(self.unsaved, key=lambda path: path.name == LAST):  # False, then True
            try:
                save(self.unsaved[path], path)
                del self.unsaved[path]
            except OSError as problem:
                self.log.line(
                    f"warning: {path} could not be written ({problem.strerror}); the former one is kept, and it is "
                    f"tried again"
                )
        try:
            prune(self.snapshot_dir, self.config.keep_snapshots)
        except OSError as problem:
            self.log.line(
                f"warning: an old snapshot could not be removed ({problem.strerror}: {problem.filename})"
            )

    def _epoch_line(self, row: dict[str, Any]) -> str:
        left = (time.perf_counter() - self.started) * self._work(
            row["epoch"] + 1, self.config.epochs
        )
        left /= self._work(self.epochs_before + 1, row["epoch"])
        parts = [
            f"epoch {row['epoch']}/{self.config.epochs}",
            f"lr {row['lr']:.3g}",
            f"train {row['train_loss']:.4f} {row['train_accuracy']:.2%}",
        ]
        for part in ("val", "test"):
            if row[f"{part}_loss"] is not None:
                parts.append(f"{part} {row[f'{part}_loss']:.4f} {row[f'{part}_accuracy']:.2%}")
        if row["ema_accuracy"] is not None:
            parts.append(f"raw {row['raw_accuracy']:.2%}, averaged {row['ema_accuracy']:.2%}")
        parts += [
            f"{row['seconds']:.1f} s",
            f"{row['images_per_second']:.0f} img/s",
            f"data wait {row['data_wait']:.1%}",
            f"grad norm {row['grad_norm']:.2f}, {row['clipped']:.0%} clipped",
        ]
        if row["skipped_steps"]:
            parts.append(f"{row['skipped_steps']} steps skipped by the fp16 scaler")
        if self.trainer.best_epoch:
            parts.append(f"best {self.trainer.best_accuracy:.2%} ({self.trainer.best_epoch})")
        return " | ".join([*parts, f"left {_clock(left)}"])

    def _work(self, first: int, last: int) -> int:
        """What the epochs from `first` to `last` take, in pixels of an image."""
        teacher = SIZE**2 // 4 if self.config.teacher else 0  # looks at full size, forwards only
        return sum(self.config.image_size(epoch) ** 2 + teacher for epoch in range(first, last + 1))

    def _draw_training(self) -> None:
        if not self.config.plot_training or not self.trainer.history:
            return
        trainer, epochs = self.trainer, self.config.epochs
        title = f"{self.splits.name}: epoch {trainer.epoch} of {epochs}"
        self.undrawn = False
        try:
            loss = "train, from the teacher" if self.config.teacher else "train"
            loss += ", smoothed labels" if self.config.label_smoothing else ""
            plots.training_curves(
                trainer.history, title, self.plot_dir / "training_curves.png", loss
            )
            path = self.plot_dir / "learning_rate_schedule.png"
            plots.learning_rate_schedule(
                self._rate_by_step(), trainer.total_steps, epochs, trainer.epoch, path
            )
        except OSError as problem:
            self.undrawn = True
            self.log.line(
                f"warning: the curves could not be drawn in {self.plot_dir} ({problem.strerror})"
            )

    def _rate_by_step(self) -> Callable[[int], float]:
        """The learning rate of each step, from 0, as this run's flags say; but where epochs before its start had others,
        lines through what the history has of them, the rates of their last steps."""
        said, before = self.trainer.rate, self.trainer.history[: self.epochs_before]
        ends = [row["epoch"] * len(self.trainer.batches) - 1 for row in before]
        rates = [row["lr"] for row in before]
        if np.allclose(rates, [said(end) for end in ends], rtol=1e-6, atol=0):
            return said
        return lambda step: said(step) if step > ends[-1] else float(np.interp(step, ends, rates))

    def leave(self, why: str, command: list[str]) -> None:
        """What is left to do when a run ends early: what could not be saved, the curves, and how to go on."""
        self._write_snapshots()
        self._draw_training()
        trained_here = self.epochs_here or self.trainer.epoch < self.config.epochs
        if (
            trained_here and (self.snapshot_dir / LAST).exists()
        ):  # else the same command does it again
            others = build_parser("", ["resume"]).parse_known_args(command)[
                1
            ]  # it resumed from elsewhere, perhaps
            command = [*others, "--resume", "auto"]
        self.log.line(f"{why}; go on with:")
        self.log.line(f"  {self.group.ranks.launcher} {shlex.join(command)}")

    def finish(self, source: Path | None) -> None:
        """The report on the finished run, `source` being the snapshot it went on from.

        Raises `RunError` where a snapshot, the curves or the report could not be written.
        """
        self.group.first_only(self._finish_files)
        if self.epochs_here or source is None:
            at_end, state = self.snapshot_dir / LAST, self.trainer.state()
        else:  # nothing was trained here: the statistics and settings that count are the snapshot's
            at_end, state = source, from_first_rank(lambda: load(source), self.runtime)
        which = self.config.evaluate
        last = report_on(weights_of(state, at_end, which), self.splits, self.config, self.runtime)
        best, best_path = (
            None,
            from_first_rank(lambda: self._written_best(at_end, state), self.runtime),
        )
        if self.config.keeps_best and best_path:
            state = from_first_rank(lambda: load(best_path), self.runtime)
            best = report_on(
                weights_of(state, best_path, which, best=True),
                self.splits,
                self.config,
                self.runtime,
            )
        self.trainer.batches.close()
        used = sum_over_ranks([sum(os.times()[:4])], self.runtime)[0]
        if self.runtime.rank:
            return
        chosen = best if self.config.select == "best" and best else last
        write_evaluation(
            chosen, self.config, self.plot_dir, headline(last), headline(best) if best else None
        )
        for name, report in (("last", last), ("best", best)):
            if report:
                self.log.line(f"{name} model, epoch {report.epoch}: {report.summary()}")
        rows = [row for row in self.trainer.history if row["train_seconds"] is not None]
        trained = sum(row["train_seconds"] for row in rows)
        others = sum(row["seconds"] for row in rows) - trained
        self.log.line(f"training took {_clock(trained)}, evaluation during the run {_clock(others)}; this command used "
                      f"{_clock(used)} of processor time")  # fmt: skip
        self.log.line(
            f"report and figures, on the {'best' if chosen is best else 'last'} model: {self.plot_dir}"
        )
        self.log.line(
            f"snapshots: {self.snapshot_dir}; peak memory {peak_memory() / 2**30:.1f} GiB; log: {self.log.path}"
        )
        if self.unsaved:
            names = ", ".join(sorted(path.name for path in self.unsaved))
            raise RunError(f"{names} could not be written to {self.snapshot_dir}; see the log")
        if self.undrawn:
            raise RunError(f"the curves could not be drawn in {self.plot_dir}; see the log")

    def _finish_files(self) -> None:
        self._draw_training()
        if self.unsaved:
            self._write_snapshots()

    def _written_best(self, at_end: Path, state: TrainState) -> Path | None:
        path = find_best(at_end, at_end.parent, state.best_epoch, state.history)
        return None if path in self.unsaved else path


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
