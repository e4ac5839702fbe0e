"""The training loop: one step, one epoch, all epochs.

`fit` trains a `Learner` on batches, by a `Plan`, towards an `Objective`. What a new loss, a mix of
images or a teacher needs is in the objective; what is written down is in the recorders.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cifarnet.checkpoints.checks import fits
from cifarnet.checkpoints.state import Progress, Row, TrainState
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
from cifarnet.reporting.metrics import Scores, predict, scores
from cifarnet.reporting.recorders import Recorders
from cifarnet.settings import Settings
from cifarnet.training.averaging import MovingAverage, update_bn
from cifarnet.training.compiling import CompiledForBatches
from cifarnet.training.objective import Objective
from cifarnet.training.optimizers import build_optimizer, restore_optimizer
from cifarnet.training.schedule import learning_rate
from data import Batches, TrainBatches
from model import load_weights

Stop = Callable[[], None]  # called after each step and epoch; raises to end the run there


class Learner:
    """What is trained: the network, its optimizer, gradient scaler and averaged weights."""

    def __init__(self, network: nn.Module, settings: Settings, runtime: Runtime) -> None:
        self.settings, self.runtime = settings, runtime
        self.network = network.to(runtime.device)
        if settings.precision.sync_bn:
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        forward = self.network
        if settings.precision.compile:
            forward = CompiledForBatches(self.network, runtime.device, settings.training.accumulate)
        self.forward = data_parallel(forward, runtime)  # the same weights, in a training step
        self.averaged = None
        if settings.training.ema_decay:
            self.averaged = MovingAverage(self.network, settings.training.ema_decay)
        # A fused step passes over the weights once. It does not survive an overflow in fp16.
        fp16 = runtime.amp_dtype is torch.float16
        fused = runtime.device.type in ("cpu", "cuda") and not fp16
        self.optimizer = build_optimizer(self.network, settings.training, fused)
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=fp16)
        self.progress = Progress()
        self.first_step_seconds = 0.0  # with --compile, the compilation

    def networks(self) -> dict[str, nn.Module]:
        """The networks to evaluate: "raw", and "ema" where averaged weights are kept."""
        averaged = {} if self.averaged is None else {"ema": self.averaged.module}
        return {"raw": self.network} | averaged

    def logits(self, images: Tensor, size: int) -> Tensor:
        """The logits, in training, for `images` [B,3,H,W] resized to `size` pixels; B may be 0.

        A rank without images still takes part in the exchange of gradients, with zeros: by way of
        a blank image in evaluation mode, which leaves the running statistics alone.
        """
        images = resized(images, size)
        if len(images):
            return self.forward(images)
        if (
            self.settings.precision.sync_bn
        ):  # exchanges its statistics too; other ranks send float32
            with torch.autocast(self.runtime.device.type, enabled=False):
                return self.forward(images)
        self.forward.eval()
        logits = self.forward(images.new_zeros(1, *images.shape[1:]))[:0]
        self.forward.train()
        return logits

    def start_step(self, rate: float) -> None:
        """Sets the learning rate and clears the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, max_grad_norm: float) -> Tensor:
        """Clips the gradient, updates the weights, and returns the norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)
        return norm

    def end_epoch(self, clean: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Makes the running statistics the mean over ranks, and takes those of the averaged
        weights from `clean` batches."""
        average_over_ranks(self.network.buffers(), self.runtime)
        if self.averaged is not None:
            update_bn(self.averaged.module, clean, self.runtime)

    def state(self) -> dict[str, Any]:
        """The fields of a `TrainState` that change from epoch to epoch."""
        progress = self.progress
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "averaged": {} if self.averaged is None else self.averaged.state_dict(),
            "random_state": random_state(),
            "epoch": progress.epoch,
            **vars(progress),
        }

    def load(self, state: TrainState, momenta: bool = True) -> None:
        """Goes on from `state`, with the `momenta` of its optimizer or without.

        Raises `UserError` where the state belongs to another network.
        """
        load_weights(self.network, state.model)
        try:
            if momenta:
                restore_optimizer(self.optimizer, state.optimizer)
            if self.averaged is not None and state.averaged:
                if not fits(self.averaged.state_dict(), state.averaged):
                    raise ValueError("its averaged weights are of another network")
                self.averaged.load_state_dict(state.averaged)
            if self.scaler.is_enabled() and state.scaler:
                self.scaler.load_state_dict(state.scaler)
            set_random_state(state.random_state)
        except Exception as problem:  # a crafted snapshot can raise anything
            raise UserError(
                f"the snapshot's optimizer, or another part of it, does not fit this run "
                f"({problem or type(problem).__name__}); start a new run"
            ) from None
        self.progress = state.progress


class Plan:
    """How the run goes: learning rate, image size, clipping, when to evaluate.

    Steps count from 0 over the whole run, epochs from 1.
    """

    def __init__(self, settings: Settings, steps_per_epoch: int) -> None:
        self.settings, self.steps_per_epoch = settings, steps_per_epoch
        self.epochs, self.accumulate = settings.training.epochs, settings.training.accumulate
        self.max_grad_norm = settings.training.max_grad_norm or math.inf
        self.total_steps = settings.training.epochs * steps_per_epoch

    def first_step(self, epoch: int) -> int:
        """The number of the first step of `epoch`."""
        return (epoch - 1) * self.steps_per_epoch

    def rate(self, step: int) -> float:
        """The learning rate of `step`."""
        s = self.settings.training
        warmup = s.warmup_epochs * self.steps_per_epoch
        total = self.total_steps
        if s.schedule_per == "epoch":  # as torch's schedulers, stepped after each epoch
            step, total = step // self.steps_per_epoch, s.epochs + 1
        return learning_rate(step, total, warmup, s.lr, s.min_lr, s.schedule)

    def image_size(self, epoch: int) -> int:
        """The side of the training images in `epoch`, in pixels."""
        sizes = self.settings.image_sizes
        return sizes[(epoch - 1) * len(sizes) // self.epochs]

    def evaluates(self, epoch: int) -> bool:
        """Whether the network is evaluated after `epoch`."""
        freq = self.settings.evaluation.eval_freq
        return epoch == self.epochs or (freq > 0 and epoch % freq == 0)

    def cost(self, epoch: int) -> float:
        """The cost of `epoch` in pixels per image, to estimate the time left.

        A teacher adds a quarter of a full-size step: it has no backward pass, and fewer pixels.
        """
        teacher = self.settings.data.image_size**2 / 4 if self.settings.training.teacher else 0
        return self.image_size(epoch) ** 2 + teacher


class EpochStats(NamedTuple):
    """What one pass over the training images showed; means are over images or steps."""

    images: int  # of all ranks
    loss: float
    accuracy: float
    grad_norm: float  # before clipping, over the steps where it was finite
    clipped: float  # share of steps whose gradient was scaled down
    skipped: int  # steps that the fp16 scaler left out
    seconds: float
    data_wait: float  # share of `seconds` spent waiting for the next batch
    bad_step: int  # the first step whose loss or gradient was not finite; -1: none


class Tally:
    """The sums of an epoch. They stay on the device, so that a step needs no synchronisation."""

    def __init__(self, runtime: Runtime, scaled: bool) -> None:
        """`scaled`: the fp16 scaler leaves out steps whose gradient is not finite."""
        self.runtime, self.scaled = runtime, scaled
        zero, count = (
            torch.zeros((), dtype=dtype, device=runtime.device) for dtype in (None, torch.int64)
        )
        self.loss, self.norm = zero, zero.clone()
        self.correct, self.clipped, self.infinite = count, count.clone(), count.clone()
        self.bad_step = count - 1
        self.images, self.steps = 0, 0
        self.finite_loss: Tensor | bool = True

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds a part of a batch: its summed `loss`, logits [B,C] and labels [B]."""
        self.finite_loss &= loss.isfinite()
        self.loss += loss
        self.correct += (logits.argmax(dim=1) == labels).sum()
        self.images += len(labels)

    @torch.no_grad()
    def close_step(self, norm: Tensor, max_norm: float) -> None:
        """Adds a step by its gradient's `norm`."""
        finite = norm.isfinite()
        good = self.finite_loss & (finite | self.scaled)
        self.bad_step = torch.where((self.bad_step < 0) & ~good, self.steps, self.bad_step)
        self.norm += torch.where(finite, norm, 0)
        self.clipped += finite & (norm > max_norm)
        self.infinite += ~finite
        self.steps, self.finite_loss = self.steps + 1, True

    def running(self) -> dict[str, str]:
        """Loss and accuracy so far, for people; waits for the device."""
        loss, accuracy = self.loss.item() / self.images, self.correct.item() / self.images
        return {"loss": f"{loss:.4f}", "acc": f"{accuracy:.2%}"}

    def stats(self, started: float, waited: float) -> EpochStats:
        """The means over all ranks, of an epoch that `started` then and `waited` so long."""
        infinite = int(self.infinite)  # waits for the device: only now the epoch is over
        seconds = time.perf_counter() - started
        sums = [self.loss.item(), self.correct.item(), self.images]
        loss, correct, images = sum_over_ranks(sums, self.runtime)
        return EpochStats(
            images=int(images),
            loss=loss / images,
            accuracy=correct / images,
            grad_norm=self.norm.item() / max(1, self.steps - infinite),
            clipped=self.clipped.item() / self.steps,
            skipped=infinite if self.scaled else 0,
            seconds=seconds,
            data_wait=waited / seconds,
            bad_step=earliest_over_ranks(int(self.bad_step), self.runtime),
        )


def run_epoch(
    learner: Learner,
    objective: Objective,
    batches: TrainBatches,
    plan: Plan,
    stop: Stop = lambda: None,
) -> EpochStats:
    """Trains the next epoch of `learner`: one pass over `batches`."""
    epoch, runtime = learner.progress.epoch + 1, learner.runtime
    network = partial(learner.logits, size=plan.image_size(epoch))
    max_norm = plan.max_grad_norm
    tally = Tally(runtime, learner.scaler.is_enabled())
    own_draws = (runtime.rank,) if runtime.world_size > 1 else ()
    torch.manual_seed(derived_seed(learner.settings.training.seed, epoch, DROPOUT, *own_draws))
    learner.forward.train()

    waited, started = 0.0, time.perf_counter()
    ready = started
    with progress_bar(len(batches), f"epoch {epoch}/{plan.epochs}", runtime) as bar:
        for step, (images, labels) in enumerate(batches.epoch(epoch)):
            waited += time.perf_counter() - ready
            learner.start_step(plan.rate(plan.first_step(epoch) + step))

            # forward and backward, part by part; the gradient will be the mean over ranks
            share = batches.size(step) / runtime.world_size
            count = min(plan.accumulate, math.ceil(share))  # no part is empty on all ranks
            parts = micro_batches(learner.forward, images, labels, count)
            for number, (part, targets) in enumerate(parts):
                place = epoch, step, number
                with runtime.autocast():
                    loss, logits = objective(network, part, targets, place)
                loss = loss / share
                learner.scaler.scale(loss).backward()
                tally.add(loss.detach() * share, logits, targets)

            # update
            norm = learner.step(max_norm)
            tally.close_step(norm, max_norm)

            learner.first_step_seconds = (
                learner.first_step_seconds or time.perf_counter() - started - waited
            )
            show(bar, tally, runtime)
            stop()
            ready = time.perf_counter()
    return tally.stats(started, waited)


def fit(
    learner: Learner,
    objective: Objective,
    data: Batches,
    plan: Plan,
    recorders: Recorders,
    stop: Stop = lambda: None,
) -> None:
    """Trains the epochs that are left. Raises `RunError` when loss or weights are not finite."""
    while learner.progress.epoch < plan.epochs:
        started = time.perf_counter()
        epoch = learner.progress.epoch + 1

        # train
        stats = run_epoch(learner, objective, data.train, plan, stop)
        _check_finite(stats.bad_step, epoch, plan)
        learner.end_epoch(data.clean)

        # evaluate if due
        found = held_out_scores(learner, data, stop) if plan.evaluates(epoch) else {}
        if not all(p.isfinite().all() for p in learner.network.parameters()):
            _check_finite(plan.steps_per_epoch - 1, epoch, plan)  # spoilt by the last update

        # close the row, and tell the recorders
        seconds = time.perf_counter() - started
        learner.progress.add(_row(epoch, stats, found, plan, seconds, data.validates))
        recorders.row(learner.progress)
        stop()


def held_out_scores(learner: Learner, data: Batches, stop: Stop) -> dict[str, Scores]:
    """The scores on the held-out images, of "raw" and, where there are, "ema" weights."""
    return {
        name: scores(*predict(network, stoppable(data.held_out, stop), learner.runtime))
        for name, network in learner.networks().items()
    }


def stoppable(batches: Any, stop: Stop) -> Iterator[tuple[Tensor, Tensor]]:
    """`batches`, with a call of `stop` after each, equally often on all ranks: some ranks have a
    batch less than others."""
    calls = 0
    for batch in batches:
        yield batch
        stop()
        calls += 1
    for _ in range(batches.rounds - calls):
        stop()


def _row(
    epoch: int,
    stats: EpochStats,
    found: dict[str, Scores],
    plan: Plan,
    seconds: float,
    on_val: bool = False,
) -> Row:
    """The row of `epoch`, which took `seconds`; `found` are scores on the validation images if
    `on_val`, else on the test images."""
    chosen = found.get(plan.settings.evaluation.evaluate)
    val, test = (chosen, None) if on_val else (None, chosen)
    both = {f"{name}_accuracy": found[name].top1 for name in found} if "ema" in found else {}
    return Row(
        epoch=epoch,
        lr=plan.rate(plan.first_step(epoch + 1) - 1),
        train_loss=stats.loss,
        train_accuracy=stats.accuracy,
        val_loss=val and val.loss,
        val_accuracy=val and val.top1,
        test_loss=test and test.loss,
        test_accuracy=test and test.top1,
        test_top3=test and test.top3,
        test_top5=test and test.top5,
        raw_accuracy=both.get("raw_accuracy"),
        ema_accuracy=both.get("ema_accuracy"),
        seconds=seconds,
        train_seconds=stats.seconds,
        images_per_second=stats.images / stats.seconds,
        data_wait=stats.data_wait,
        grad_norm=stats.grad_norm,
        clipped=stats.clipped,
        skipped_steps=stats.skipped,
    )


def _check_finite(bad_step: int, epoch: int, plan: Plan) -> None:
    """Raises `RunError` where there is a bad step (-1: there is none)."""
    if bad_step >= 0:
        rate = plan.rate(plan.first_step(epoch) + bad_step)
        raise RunError(
            f"the loss is no longer finite: epoch {epoch}, step {bad_step + 1} of "
            f"{plan.steps_per_epoch}, learning rate {rate:g}; nothing of this epoch was saved; "
            f"try a lower --lr, --warmup_epochs or --max_grad_norm 1"
        )


def resized(images: Tensor, size: int) -> Tensor:
    """`images` [B,3,H,W] with sides of `size` pixels: bilinear, smoothed where they shrink."""
    if size == images.shape[-1]:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def progress_bar(steps: int, name: str, runtime: Runtime) -> tqdm:
    """A bar on the terminal of the first rank; none where there is no terminal."""
    hidden = True if runtime.rank else None
    return tqdm(total=steps, desc=name, unit="step", leave=False, disable=hidden)


def show(bar: tqdm, tally: Tally, runtime: Runtime) -> None:
    """Moves `bar` by a step. Its figures wait for the device: on CUDA every 50 steps only."""
    bar.update()
    every = 1 if runtime.device.type == "cpu" else 50
    if not bar.disable and tally.steps % every == 0:
        bar.set_postfix(tally.running())
