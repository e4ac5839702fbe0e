"""The training loop: optimizer, schedule, mixed precision, clipping. It reads no files and knows no listener."""

import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from batches import Batch, EvalBatches, TrainBatches
from config import RunError, TrainConfig, UserError
from data import Splits
from layers import DenseConv2d, use_plain_forms
from metrics import Scores, predict, scores
from runtime import DROPOUT, Runtime, derived_seed, random_state, set_random_state
from snapshots import TrainState


def learning_rate(step: int, total_steps: int, warmup_steps: int, lr: float, min_lr: float) -> float:
    """The learning rate of step `step`, counted from 0.

    Linear from lr/warmup_steps to lr over the warm-up, then a cosine from exactly `lr` on its first step to
    exactly `min_lr` on the last of `total_steps` (Loshchilov and Hutter 2017, arXiv 1608.03983, one period).
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    high = (1 + math.cos(math.pi * share)) / 2  # 1 -> 0
    return lr * high + min_lr * (1 - high)


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
    max_grad_norm: float,
    bar: tqdm,
) -> EpochStats:
    """One pass over `batches`; step i, from 0, takes the learning rate `rate(i)`.

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
            group["lr"] = rate(step)
        with runtime.autocast():
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm or math.inf)
        scaler.step(optimizer)
        scaler.update()

        with torch.no_grad():
            finite = norm.isfinite()
            good = loss.isfinite() & (finite | scaler.is_enabled())  # the scaler leaves such a step out
            bad_step = torch.where((bad_step < 0) & ~good, step, bad_step)
            loss_sum += loss * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum()
            norm_sum += torch.where(finite, norm, 0)
            clipped += norm > (max_grad_norm or math.inf)
            infinite += ~finite
        images_seen += len(labels)
        if step == 0:
            first_step = time.perf_counter() - started - waited
        bar.update()
        if not bar.disable and (step + 1) % refresh == 0:
            bar.set_postfix(loss=f"{loss_sum.item() / images_seen:.4f}", acc=f"{correct.item() / images_seen:.2%}")
        ready = time.perf_counter()
    steps = step + 1
    skipped = int(infinite) if scaler.is_enabled() else 0  # waits for the device: only now is the epoch over
    seconds = time.perf_counter() - started
    return EpochStats(
        loss=loss_sum.item() / images_seen,
        accuracy=correct.item() / images_seen,
        grad_norm=norm_sum.item() / max(1, steps - int(infinite)),
        clipped=clipped.item() / steps,
        skipped=skipped,
        seconds=seconds,
        data_wait=waited / seconds,
        first_step=first_step,
        bad_step=int(bad_step),
    )


def compiled(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, sharing its weights, as torch.compile makes it; on CUDA its kernels are launched as graphs.

    Raises `UserError` without the C++ compiler that the CPU's needs.
    """
    if device.type == "cuda":
        return torch.compile(model, mode="reduce-overhead")
    if not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        raise UserError("--compile needs a C++ compiler on the CPU, and there is none (g++, clang++); leave it off")
    # the compiler fuses passes over plain normalisations, and makes the folded ones slower (bench.py)
    return torch.compile(use_plain_forms(model, DenseConv2d))


def _checked(batches: Iterable[Batch], check: Callable[[], None]) -> Iterator[Batch]:
    """`batches`, with a call of `check` once each has been dealt with."""
    for batch in batches:
        yield batch
        check()


class Trainer:
    """Trains `model` by the recipe in `config`, an epoch at a time.

    `on_epoch_end(row)` is called with each new row of `history` once the epoch is over; `state()` is then
    what a snapshot keeps. Accuracy and loss are those of `splits.val` where there is one, else of the test set.
    """

    def __init__(self, model: nn.Module, splits: Splits, config: TrainConfig, runtime: Runtime) -> None:
        self.model = model.to(runtime.device)
        self.step_model = compiled(self.model, runtime.device) if config.compile else self.model
        self.splits, self.config, self.runtime = splits, config, runtime
        self.batches = TrainBatches(splits.train, config, runtime, splits.mean, splits.std)
        held_out = splits.val if splits.val is not None else splits.test
        self.held_out = EvalBatches(held_out, config.batch_size, runtime.device, splits.mean, splits.std)
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
            fused=runtime.device.type in ("cpu", "cuda"),  # one pass over the weights instead of several
        )
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.amp_dtype is torch.float16)
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
        return learning_rate(step, self.total_steps, warmup, self.config.lr, self.config.min_lr)

    def fit(self, on_epoch_end: Callable[[dict[str, Any]], None], check: Callable[[], None] = lambda: None) -> None:
        """Trains the epochs that are left. Raises `RunError` when loss or weights stop being finite.

        `check()` is called after every step and every epoch; what it raises ends the training there.
        """
        while self.epoch < self.config.epochs:
            on_epoch_end(self._run_epoch(self.epoch + 1, check))
            check()

    def _run_epoch(self, epoch: int, check: Callable[[], None]) -> dict[str, Any]:
        started = time.perf_counter()
        torch.manual_seed(derived_seed(self.config.seed, epoch, DROPOUT))
        steps_before = (epoch - 1) * len(self.batches)
        name = f"epoch {epoch}/{self.config.epochs}"
        with tqdm(total=len(self.batches), desc=name, unit="step", leave=False, disable=None) as bar:
            stats = train_one_epoch(
                self.step_model,
                _checked(self.batches.epoch(epoch), check),
                self.optimizer,
                self.scaler,
                self.runtime,
                rate=lambda step: self.rate(steps_before + step),
                max_grad_norm=self.config.max_grad_norm,
                bar=bar,
            )
            if stats.bad_step >= 0:
                self._stop_not_finite(epoch, stats.bad_step)
            bar.set_description(f"{name}, evaluating")
            held_out = scores(*predict(self.model, _checked(self.held_out, check), self.runtime))
        if not math.isfinite(held_out.loss):
            self._stop_not_finite(epoch, len(self.batches) - 1)
        self.first_step = self.first_step or stats.first_step
        self.epoch = epoch
        if self.best_epoch == 0 or held_out.top1 > self.best_accuracy:
            self.best_accuracy, self.best_epoch = held_out.top1, epoch
        row = self._row(epoch, stats, held_out, time.perf_counter() - started)
        self.history.append(row)
        return row

    def _row(self, epoch: int, stats: EpochStats, held_out: Scores, seconds: float) -> dict[str, Any]:
        validated = self.splits.val is not None
        return {
            "epoch": epoch,
            "lr": self.rate(epoch * len(self.batches) - 1),
            "train_loss": stats.loss,
            "train_accuracy": stats.accuracy,
            "val_loss": held_out.loss if validated else None,
            "val_accuracy": held_out.top1 if validated else None,
            "test_loss": None if validated else held_out.loss,
            "test_accuracy": None if validated else held_out.top1,
            "test_top3": None if validated else held_out.top3,
            "test_top5": None if validated else held_out.top5,
            "seconds": seconds,
            "images_per_second": self.batches.images / stats.seconds,
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
            config=asdict(self.config),
            random_state=random_state(),
            classes=list(self.splits.train.classes),
            mean=list(self.splits.mean),
            std=list(self.splits.std),
            dataset=self.splits.name,
        )

    def load_state(self, state: TrainState) -> None:
        """Goes on from `state`. Raises `UserError` where it belongs to other classes or another network."""
        load_weights(self.model, state, self.splits.train.classes)
        own = [{key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(state.optimizer)
            for group, settings in zip(self.optimizer.param_groups, own, strict=True):
                group.update(settings)  # this run's flags, not the snapshot's
            momenta = {p: self.optimizer.state[p].get("momentum_buffer") for p in self.model.parameters()}
            if any(m is not None for m in momenta.values()) and any(
                m is None or m.shape != p.shape for p, m in momenta.items()
            ):
                raise ValueError("its momenta are not those of the weights")
            if self.scaler.is_enabled() and state.scaler:
                self.scaler.load_state_dict(state.scaler)
            set_random_state(state.random_state)
        except (KeyError, RuntimeError, TypeError, ValueError) as problem:
            raise UserError(f"the snapshot's optimizer does not fit this run ({problem}); start a new run") from None
        self.epoch, self.history = state.epoch, list(state.history)
        self.best_accuracy, self.best_epoch = state.best_accuracy, state.best_epoch
        validated = bool(state.history) and state.history[-1]["val_loss"] is not None
        if validated != (self.splits.val is not None):  # accuracies on other images are no match for each other
            self.best_accuracy, self.best_epoch = 0.0, 0


def load_weights(model: nn.Module, state: TrainState, classes: tuple[str, ...]) -> None:
    """Loads the snapshot's weights into `model`. Raises `UserError` unless network and `classes` are the same."""
    if tuple(state.classes) != tuple(classes):
        raise UserError(
            f"the snapshot tells {len(state.classes)} classes apart ({', '.join(state.classes[:3])}, ...), the data "
            f"set has {len(classes)} ({', '.join(classes[:3])}, ...); name the data set it was trained on"
        )
    try:
        model.load_state_dict(state.model)
    except RuntimeError:
        raise UserError(
            "the snapshot holds the weights of another network than this CIFARNet; use another one"
        ) from None
