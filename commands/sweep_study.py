"""The study of a sweep: which runs there are, and which one is next. Several processes share it."""

import contextlib
import fcntl
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import optuna
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from cifarnet.core.errors import UserError, reason
from cifarnet.core.files import InUseError, exclusive
from cifarnet.settings import FLAGS
from cifarnet.settings.flags import value_type
from cifarnet.settings.output import SNAPSHOTS
from commands.sweep_file import Range, Sweep

JOURNAL, LOCK = "study.log", ".sweep.lock"
SAMPLERS = {"tpe": TPESampler, "random": RandomSampler}


def run_dir(folder: Path, number: int) -> Path:
    """The folder of the run of trial `number`, in the `folder` of the sweep."""
    return folder / f"trial-{number:04d}"


def _values(trial: FrozenTrial) -> dict[str, Any]:
    """The values of `trial`. Before it begins, `enqueue_trial` keeps them as fixed_params."""
    return trial.system_attrs.get("fixed_params", trial.params)


class Study:
    """The study in `folder`, one trial per run.

    The journal holds what Optuna knows. A lock on the folder of a trial tells that a process works
    on it: it ends with the process, so a trial that was killed is found again. With `reads_only`
    nothing is written, and the study must exist.
    """

    def __init__(self, sweep: Sweep, folder: Path, reads_only: bool = False) -> None:
        self.sweep, self.folder = sweep, folder
        self.locks: dict[int, TextIO] = {}  # of the trials of this process, by number
        # Optuna's default lock is a link to the journal. If a killed sweep leaves one, it is never
        # removed where the path of the folder is relative, or has changed.
        self.journal_lock = JournalFileOpenLock(str(folder / JOURNAL))
        self.dying = ""  # what to wait for, in words: a run that outlived its sweep
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            if reads_only:
                self._open(optuna.load_study)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                with self._locked():
                    self._drop_cut_line()
                    create = {"direction": "maximize", "load_if_exists": True}
                    self._open(optuna.create_study, **create)
        except OSError as problem:
            path = problem.filename or folder
            raise UserError(
                f"--sweep_dir {folder}: cannot open {path} ({reason(problem)}); "
                f"change its permissions, or choose another folder"
            ) from None

    def _drop_cut_line(self) -> None:
        """Removes the end of a line that a full disk or a loss of power cut: with a line after it,
        Optuna could not read the journal."""
        journal = self.folder / JOURNAL
        self.journal_lock.acquire()
        try:
            complete, line_end, cut = journal.read_bytes().rpartition(b"\n")
            if line_end and cut:
                os.truncate(journal, len(complete + line_end))
        except FileNotFoundError:
            pass  # a new sweep
        finally:
            self.journal_lock.release()

    def _open(self, load: Callable[..., optuna.Study], **options: Any) -> None:
        after = self.sweep.prune_after
        pruner = optuna.pruners.MedianPruner(n_warmup_steps=after) if after else None
        journal = self.folder / JOURNAL
        backend = JournalFileBackend(str(journal), self.journal_lock)
        try:
            self.study = load(
                storage=optuna.storages.JournalStorage(backend),
                study_name="sweep",
                pruner=pruner or optuna.pruners.NopPruner(),
                **options,
            )
        except (LookupError, TypeError, ValueError):
            raise UserError(
                f"{journal} is damaged, or not a journal of Optuna; choose another --sweep_dir"
            ) from None
        self._check_same_sweep()

    def enqueue(self) -> None:
        """Plans a trial for each setting that has none, or only failed ones."""
        with self._locked():
            for values in self._unplanned():
                self.study.enqueue_trial(values)

    def _unplanned(self) -> list[dict[str, Any]]:
        """The settings that have no trial, or only failed ones."""
        planned = [_values(t) for t in self.trials() if t.state != TrialState.FAIL]
        return [values for values in self.sweep.settings if values not in planned]

    def left(self) -> tuple[list[tuple[int, dict[str, Any]]], int]:
        """The trials that are not finished, with their values, and the number of those that a
        search has not begun."""
        trials = self.trials()
        open_states = (TrialState.WAITING, TrialState.RUNNING)
        left = [(trial.number, _values(trial)) for trial in trials if trial.state in open_states]
        left += enumerate(self._unplanned(), len(trials))  # `enqueue` will plan them
        return left, max(0, self.sweep.trials - len(trials))

    def _check_same_sweep(self) -> None:
        """A search may get more trials. Raises `UserError` for any other change of the sweep."""
        content = json.loads(json.dumps(asdict(self.sweep) | {"trials": None}))
        if "sweep" not in self.study.user_attrs:
            self.study.set_user_attr("sweep", content)
        elif self.study.user_attrs["sweep"] != content:
            raise UserError(
                f"{self.folder} holds another sweep, or this one before it was changed; choose "
                f"another --sweep_dir"
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time chooses a trial."""
        with (self.folder / LOCK).open("a") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield

    def trials(self) -> list[FrozenTrial]:
        """All trials, as the journal says now."""
        return self.study.get_trials(deepcopy=False)

    def next_trial(self) -> Trial | None:
        """A trial that nobody works on: one that was interrupted, or else a new one."""
        with self._locked():
            self.dying = ""
            for frozen in self.trials():
                if frozen.state == TrialState.RUNNING and self._take(frozen.number):
                    # Optuna has no public way to continue a trial of another process.
                    return self._suggested(Trial(self.study, frozen._trial_id))
            trials = self.trials()
            if not (
                any(trial.state == TrialState.WAITING for trial in trials)
                or len(trials) < self.sweep.trials
            ):
                return None
            # Each number has a seed of its own, so a resumed search draws what it would have drawn.
            self.study.sampler = SAMPLERS[self.sweep.sampler](seed=len(trials))
            trial = self.study.ask()
            self._take(trial.number)
            return self._suggested(trial)

    def _take(self, number: int) -> bool:
        """Locks trial `number`, unless a process works on it."""
        if number in self.locks:
            return False
        snapshots = run_dir(self.folder, number) / SNAPSHOTS
        snapshots.mkdir(parents=True, exist_ok=True)
        file = (run_dir(self.folder, number) / LOCK).open("a")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        try:  # a run locks its --snapshot_dir: it may outlive the sweep that started it
            with exclusive(snapshots, "--snapshot_dir"):
                self.locks[number] = file
        except InUseError as problem:
            self.dying = f"trial {number}: its --snapshot_dir is in use by {problem.holder}"
            file.close()
            return False
        if self.trials()[number].state != TrialState.RUNNING:  # another process just finished it
            self.locks.pop(number).close()
            return False
        return True

    def _suggested(self, trial: Trial) -> Trial:
        """`trial` with a value for each flag of the sweep: the stored one, or a new one."""
        for name, values in self.sweep.space.items():
            if not isinstance(values, Range):
                trial.suggest_categorical(name, values)
            elif value_type(FLAGS[name]) is int:
                trial.suggest_int(name, values.low, values.high, log=values.log)
            else:
                trial.suggest_float(name, values.low, values.high, log=values.log)
        return trial

    def finish(self, number: int, value: float | None, state: TrialState) -> None:
        """Tells the result of trial `number`, on which this process works."""
        self.study.tell(number, value, state=state)
        self.locks.pop(number).close()

    def release(self) -> None:
        """Gives up the trials on which this process works."""
        for file in self.locks.values():
            file.close()
        self.locks.clear()
