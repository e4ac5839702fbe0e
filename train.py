"""The training loop: optimizer, schedule, mixed precision, clipping. It reads no files and knows no listener."""

import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from cifarnet.checkpoints.state import TrainState
from cifarnet.checkpoints.weights import Weights
from cifarnet.core.device import Runtime
from cifarnet.core.errors import RunError, UserError
from cifarnet.core.ranks import (
    average_over_ranks,
    data_parallel,
    earliest_over_ranks,
    micro_batches,
    sum_over_ranks,
)
from cifarnet.core.seeds import DROPOUT, derived_seed, random_state, set_random_state
from cifarnet.core.settings import Settings, settings_from_dict
from cifarnet.images.imageset import Splits, limited
from cifarnet.images.normalise import Batch
from cifarnet.networks.fast import DenseConv2d, use_plain_forms
from cifarnet.reporting.metrics import Scores, predict, scores
from cifarnet.training.averaging import update_bn
from cifarnet.training.objective import Teacher, distillation_loss
from cifarnet.training.optimizers import build_optimizer
from cifarnet.training.schedule import learning_rate
from data import EvalBatches, TrainBatches
from model import load_weights


class EpochStats(NamedTuple):
    """What one pass over the training images showed; means are over images or steps."""

    loss: float
    accuracy: float
    grad_norm: float  # before clipping, over the steps where it was finite
    clipped: float  # share of steps whose gradient was scaled down
    skipped: int  # steps that the fp16 scaler left out
    seconds: float
    data_wait: float  # share of `seconds` spent waiting for the next batch
    first_step: float  # seconds; with torch.compile, the compilation
    bad_step: int  # the first step, from 0, with a loss or gradient that was not finite; -1: none


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    runtime: Runtime,
    *,
    rate: Callable[[int], float],
    size: Callable[[int], int],
    image_size: int,
    teacher: Teacher | None,
    accumulate: int,
    max_grad_norm: float,
    label_smoothing: float,
    averaged: AveragedModel | None,
    bar: tqdm,
) -> EpochStats:
    """One pass over `batches`; step i, from 0, takes the learning rate `rate(i)`, and `size(i)` images over all ranks,
    this rank's in `accumulate` parts, resized to `image_size` pixels. The loss is by the labels, or by what `teacher`
    makes of the images. Each step is taken up into `averaged`.

    The sums stay on the device: on CUDA nothing waits for a step but the bar, every 50 steps.
    """
    model.train()
    device = runtime.device
    loss_sum = torch.zeros((), device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    norm_sum = torch.zeros((), device=device)
    clipped = torch.zeros((), dtype=torch.int64, device=device)
    infinite = torch.zeros((), dtype=torch.int64, device=device)
    bad_step = torch.full((), -1, dtype=torch.int64, device=device)
    refresh = 1 if device.type == "cpu" else 50
    images_seen, step, waited = 0, -1, 0.0
    started = ready = time.perf_counter()
    for step, (images, labels) in enumerate(batches):
        waited += time.perf_counter() - ready
        for group in optimizer.param_groups:
            group["lr"] = rate(step) * group["rate_factor"]
        optimizer.zero_grad(set_to_none=True)
        share = size(step) / runtime.world_size  # the gradient will be the mean over ranks
        finite_loss = True
        for part, targets in micro_batches(model, images, labels, accumulate):
            teacher_logits = teacher(part) if teacher else None
            with runtime.autocast():
                logits = _logits(model, resized(part, image_size))
                if teacher_logits is None:
                    loss = (
                        F.cross_entropy(
                            logits, targets, label_smoothing=label_smoothing, reduction="sum"
                        )
                        / share
                    )
                else:
                    loss = distillation_loss(logits, teacher_logits) / share
            scaler.scale(loss).backward()
            with torch.no_grad():
                finite_loss &= loss.isfinite()
                loss_sum += loss * share
                correct += (logits.argmax(dim=1) == targets).sum()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm or math.inf)
        scaler.step(optimizer)
        scaler.update()
        if averaged is not None:
            averaged.update_parameters(model)

        with torch.no_grad():
            finite = norm.isfinite()
            good = finite_loss & (finite | scaler.is_enabled())  # the scaler leaves such a step out
            bad_step = torch.where((bad_step < 0) & ~good, step, bad_step)
            norm_sum += torch.where(finite, norm, 0)
            clipped += finite & (norm > (max_grad_norm or math.inf))
            infinite += ~finite
        images_seen += len(labels)
        if step == 0:
            first_step = time.perf_counter() - started - waited
        bar.update()
        if not bar.disable and (step + 1) % refresh == 0:
            bar.set_postfix(
                loss=f"{loss_sum.item() / images_seen:.4f}",
                acc=f"{correct.item() / images_seen:.2%}",
            )
        ready = time.perf_counter()
    steps = step + 1
    infinite = int(infinite)  # waits for the device: only now is the epoch over
    seconds = time.perf_counter() - started
    loss_sum, correct, images_seen = sum_over_ranks(
        [loss_sum.item(), correct.item(), images_seen], runtime
    )
    return EpochStats(
        loss=loss_sum / images_seen,
        accuracy=correct / images_seen,
        grad_norm=norm_sum.item() / max(1, steps - infinite),
        clipped=clipped.item() / steps,
        skipped=infinite if scaler.is_enabled() else 0,
        seconds=seconds,
        data_wait=waited / seconds,
        first_step=first_step,
        bad_step=earliest_over_ranks(int(bad_step), runtime),
    )


def resized(images: Tensor, size: int) -> Tensor:
    """`images` [B,3,H,W] with sides of `size` pixels: smoothed first where they shrink, then sampled bilinearly."""
    if size == images.shape[-1]:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """What `model` makes of `images`, also of none: a rank without images still takes part in the reduction, with
    gradients of zero, by way of one blank image in evaluation mode, which leaves the running statistics alone."""
    if len(images) or any(
        isinstance(module, nn.SyncBatchNorm) for module in model.modules()
    ):  # it counts by itself
        return model(images)
    model.eval()
    logits = model(images.new_zeros(1, *images.shape[1:]))[:0]
    model.train()
    return logits


def compiled(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, sharing its weights, as torch.compile makes it; on CUDA its kernels are launched as graphs.

    Raises `UserError` without the C++ compiler that the CPU's needs.
    """
    if device.type == "cuda":
        return torch.compile(model, mode="reduce-overhead")
    if not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        raise UserError(
            "--compile needs a C++ compiler on the CPU, and there is none (g++, clang++); leave it off"
        )
    # the compiler fuses passes over plain normalisations, and makes the folded ones slower (bench.py)
    return torch.compile(use_plain_forms(model, DenseConv2d))


def _checked(batches: Iterable[Batch], check: Callable[[], None], rounds: int) -> Iterator[Batch]:
    """`batches`, with a call of `check` once each has been dealt with, and `rounds` calls in all: ranks check together,
    and some have a batch less."""
    for batch in batches:
        yield batch
        check()
        rounds -= 1
    for _ in range(rounds):
        check()


# what snapshots of earlier versions do not have in their histories
LATER_COLUMNS = ("raw_accuracy", "ema_accuracy", "train_seconds")


class Trainer:
    """Trains `model` by the recipe in `config`, an epoch at a time, by the labels or by what `teacher` says.

    `on_epoch_end(row)` is called with each new row of `history` once the epoch is over; `state()` is then
    what a snapshot keeps. Accuracy and loss are those of the weights that `config.evaluate` names, on `splits.val`
    where there is one, else on the test set.
    """

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        config: Settings,
        runtime: Runtime,
        teacher: Teacher | None = None,
    ) -> None:
        self.model = model.to(runtime.device)
        if config.sync_bn:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        step_model = compiled(self.model, runtime.device) if config.compile else self.model
        self.splits, self.config, self.runtime, self.teacher = splits, config, runtime, teacher
        self.batches = TrainBatches(splits.train, config, runtime, splits.mean, splits.std)
        held_out = splits.val if splits.val is not None else splits.test
        self.held_out = EvalBatches(
            held_out, config.eval_batch_size, runtime, splits.mean, splits.std
        )
        self.averaged = None  # or the moving average of the weights
        if config.ema_decay:
            self.averaged = AveragedModel(
                self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay)
            )
            some = limited(splits.train, max(1024, len(splits.train.classes)), "--ema_decay")
            alone = replace(runtime, rank=0, world_size=1)
            self.bn_batches = EvalBatches(some, len(some), alone, splits.mean, splits.std)
        self.step_model = data_parallel(step_model, runtime)
        # One pass over the weights instead of several; but a fused step does not survive an overflow in its first steps.
        fused = runtime.device.type in ("cpu", "cuda") and runtime.amp_dtype is not torch.float16
        self.optimizer = build_optimizer(self.model, config, fused)
        self.scaler = torch.amp.GradScaler(
            runtime.device.type, enabled=runtime.amp_dtype is torch.float16
        )
        self.first_step = 0.0  # seconds that the first step of this process took
        self.epoch = 0  # finished
        self.history: list[dict[str, Any]] = []
        self.best_accuracy, self.best_epoch = 0.0, 0

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self.config.epochs * len(self.batches)

    def rate(self, step: int) -> float:
        """The learning rate of step `step` of the whole run, from 0."""
        warmup = self.config.warmup_epochs * len(self.batches)
        config = self.config
        return learning_rate(
            step, self.total_steps, warmup, config.lr, config.min_lr, config.schedule
        )

    def fit(
        self,
        on_epoch_end: Callable[[dict[str, Any]], None],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Trains the epochs that are left. Raises `RunError` when loss or weights stop being finite.

        `check()` is called after every step and every epoch; what it raises ends the training there.
        """
        while self.epoch < self.config.epochs:
            on_epoch_end(self._run_epoch(self.epoch + 1, check))
            check()

    def _run_epoch(self, epoch: int, check: Callable[[], None]) -> dict[str, Any]:
        started = time.perf_counter()
        own = (self.runtime.rank,) if self.runtime.world_size > 1 else ()
        torch.manual_seed(derived_seed(self.config.seed, epoch, DROPOUT, *own))
        steps_before = (epoch - 1) * len(self.batches)
        name = f"epoch {epoch}/{self.config.epochs}"
        hidden = True if self.runtime.rank else None  # None: unless this is a terminal
        with tqdm(
            total=len(self.batches), desc=name, unit="step", leave=False, disable=hidden
        ) as bar:
            stats = train_one_epoch(
                self.step_model,
                _checked(self.batches.epoch(epoch), check, len(self.batches)),
                self.optimizer,
                self.scaler,
                self.runtime,
                rate=lambda step: self.rate(steps_before + step),
                size=self.batches.size,
                image_size=self.config.image_size(epoch),
                teacher=self.teacher,
                accumulate=self.config.accumulate,
                max_grad_norm=self.config.max_grad_norm,
                label_smoothing=self.config.label_smoothing,
                averaged=self.averaged,
                bar=bar,
            )
            if stats.bad_step >= 0:
                self._stop_not_finite(epoch, stats.bad_step)
            bar.set_description(f"{name}, evaluating")
            average_over_ranks(
                self.model.buffers(), self.runtime
            )  # each has normalised by its own statistics
            if self.averaged is not None:
                update_bn(self.averaged.module, self.bn_batches, self.runtime)
            found = self._evaluate(check) if self.config.evaluates(epoch) else {}
        held_out = found.get(self.config.evaluate)
        if not all(p.isfinite().all() for p in self.model.parameters()):  # the last step's update
            self._stop_not_finite(epoch, len(self.batches) - 1)
        self.first_step = self.first_step or stats.first_step
        self.epoch = epoch
        if held_out and (self.best_epoch == 0 or held_out.top1 > self.best_accuracy):
            self.best_accuracy, self.best_epoch = held_out.top1, epoch
        row = self._row(epoch, stats, found, time.perf_counter() - started)
        self.history.append(row)
        return row

    def _evaluate(self, check: Callable[[], None]) -> dict[str, Scores]:
        """The scores on the held-out images, of "raw" and, if there are any, "ema" weights."""
        models = {"raw": self.model} | (
            {"ema": self.averaged.module} if self.averaged is not None else {}
        )
        return {
            name: scores(
                *predict(model, _checked(self.held_out, check, self.held_out.rounds), self.runtime)
            )
            for name, model in models.items()
        }

    def _row(
        self, epoch: int, stats: EpochStats, found: dict[str, Scores], seconds: float
    ) -> dict[str, Any]:
        chosen = found.get(self.config.evaluate)
        val, test = (None, chosen) if self.splits.val is None else (chosen, None)
        return {
            "epoch": epoch,
            "lr": self.rate(epoch * len(self.batches) - 1),
            "train_loss": stats.loss,
            "train_accuracy": stats.accuracy,
            "val_loss": val and val.loss,
            "val_accuracy": val and val.top1,
            "test_loss": test and test.loss,
            "test_accuracy": test and test.top1,
            "test_top3": test and test.top3,
            "test_top5": test and test.top5,
            "raw_accuracy": found["raw"].top1 if "ema" in found else None,
            "ema_accuracy": found["ema"].top1 if "ema" in found else None,
            "seconds": seconds,
            "train_seconds": stats.seconds,
            "images_per_second": self.batches.count / stats.seconds,
            "data_wait": stats.data_wait,
            "grad_norm": stats.grad_norm,
            "clipped": stats.clipped,
            "skipped_steps": stats.skipped,
        }

    def _stop_not_finite(self, epoch: int, step: int) -> None:
        rate = self.rate((epoch - 1) * len(self.batches) + step)
        raise RunError(
            f"the loss is no longer finite: epoch {epoch}, step {step + 1} of {len(self.batches)}, learning rate "
            f"{rate:g}; nothing of this epoch was saved; try a lower --lr, --warmup_epochs or --max_grad_norm 1"
        )

    def state(self) -> TrainState:
        """All that is needed to go on after the epochs finished so far."""
        return TrainState(
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scheduler={"step": self.epoch * len(self.batches), "total_steps": self.total_steps},
            scaler=self.scaler.state_dict(),
            epoch=self.epoch,
            best_accuracy=self.best_accuracy,
            best_epoch=self.best_epoch,
            history=self.history,
            config=asdict(self.config)
            | {
                "world_size": self.runtime.world_size,
                "computed_on": self.runtime.computed_on,
                "teacher_sha256": self.teacher and self.teacher.sha256,
            },
            random_state=random_state(),
            classes=list(self.splits.train.classes),
            mean=list(self.splits.mean),
            std=list(self.splits.std),
            dataset=self.splits.name,
            averaged=self.averaged.state_dict() if self.averaged is not None else {},
        )

    def load_state(self, state: TrainState) -> None:
        """Goes on from `state`. Raises `UserError` where it belongs to other classes or another network."""
        check_classes(state.classes, self.splits.train.classes)
        load_weights(self.model, state.model)
        former = settings_from_dict(state.config)
        try:
            if keeps_momenta(former, self.config):
                self._load_optimizer(state.optimizer)
            if self.averaged is not None and state.averaged:
                self.averaged.load_state_dict(state.averaged)
            if self.scaler.is_enabled() and state.scaler:
                self.scaler.load_state_dict(state.scaler)
            set_random_state(state.random_state)
        except (KeyError, RuntimeError, TypeError, ValueError) as problem:
            raise UserError(
                f"the snapshot's optimizer does not fit this run ({problem}); start a new run"
            ) from None
        self.epoch = state.epoch
        self.history = [row | {key: row.get(key) for key in LATER_COLUMNS} for row in state.history]
        self.best_accuracy, self.best_epoch = state.best_accuracy, state.best_epoch
        if _judged_on(former) != _judged_on(self.config):
            self.best_accuracy, self.best_epoch = 0.0, 0

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        own = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.optimizer.param_groups
        ]
        # this run's flags, not the snapshot's; before loading, as torch goes by them where it puts AdamW's counts of steps
        groups = [
            saved | settings for saved, settings in zip(state["param_groups"], own, strict=True)
        ]
        self.optimizer.load_state_dict(state | {"param_groups": groups})
        for group in self.optimizer.param_groups:
            if not _fit([(p, self.optimizer.state[p]) for p in group["params"]]):
                raise ValueError("its momenta are not those of the weights")


def _judged_on(config: Settings) -> tuple[Any, ...]:
    """The settings that say which images, and which weights, an epoch's accuracy is of: others are no match for it."""
    limit = config.limit_train if config.val_fraction else config.limit_test
    return config.evaluate, config.dataset, config.skip_bad_images, config.val_fraction, limit


def may_have_seen(trained: TrainState | Weights, splits: Splits, config: Settings) -> bool:
    """Whether validation images may be among those that `trained` was trained on: its own split has to be this run's."""
    former = settings_from_dict(trained.config)
    split, own = ((c.dataset, c.val_fraction, c.limit_train) for c in (config, former))
    same = split == own and splits.has_statistics(
        trained.mean, trained.std
    )  # which tell one folder from another
    return splits.val is not None and not same


def keeps_momenta(former: Settings, now: Settings) -> bool:
    """Whether an optimizer for `now` can go on from what one for `former` keeps of each weight; else it starts anew."""
    return (former.optimizer, former.decay_norms) == (now.optimizer, now.decay_norms)


def _fit(states: list[tuple[nn.Parameter, dict[str, Any]]]) -> bool:
    """Whether what an optimizer keeps of each weight has the weight's shape, and is kept of all of them or none."""
    return all(state.keys() == states[0][1].keys() for _, state in states) and all(
        value.shape == p.shape for p, state in states for value in state.values() if value.ndim > 0
    )


def check_classes(known: Sequence[str], classes: Sequence[str]) -> None:
    """Raises `UserError` unless a trained network, which tells the classes `known` apart, is one for `classes`."""
    if tuple(known) != tuple(classes):
        raise UserError(
            f"the trained network tells {len(known)} classes apart ({', '.join(known[:3])}, ...), the data set has others, "
            f"{len(classes)} ({', '.join(classes[:3])}, ...); name the data set it was trained on"
        )
