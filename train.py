"""The training loop: one step, one epoch, all epochs.

`fit` trains a `Learner` on batches, by a `Plan`, towards an `Objective`. What a new loss, a mix of
images or a teacher needs is in the objective; what is written down is in the recorders.
"""

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnet.checkpoints.checks import fits
from cifarnet.checkpoints.history import Progress, Row
from cifarnet.checkpoints.snapshots import Snapshot
from cifarnet.checkpoints.trained import load_weights
from cifarnet.core.device import Runtime
from cifarnet.core.errors import RunError, UserError
from cifarnet.core.ranks import average_over_ranks, data_parallel, micro_batches
from cifarnet.core.seeds import DROPOUT, derived_seed, random_state, set_random_state
from cifarnet.reporting.metrics import Scores, collect_logits, scores
from cifarnet.reporting.recorders import Recorders
from cifarnet.settings import Settings
from cifarnet.training.averaging import MovingAverage, update_bn
from cifarnet.training.compiling import CompiledForBatches
from cifarnet.training.objective import Objective
from cifarnet.training.optimizers import build_optimizer, restore_optimizer
from cifarnet.training.plan import Plan
from cifarnet.training.tally import EpochStats, Tally, progress_bar, show
from data import Batches, TrainBatches

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
        if size != images.shape[-1]:  # bilinear, and smoothed where they shrink
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        if len(images):
            return self.forward(images)
        if self.settings.precision.sync_bn:  # it exchanges its statistics too, as float32
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

    def end_epoch(self, bn_batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Averages the running statistics over ranks, and recomputes those of the averaged weights
        on `bn_batches`."""
        average_over_ranks(self.network.buffers(), self.runtime)
        if self.averaged is not None:
            update_bn(self.averaged.module, bn_batches, self.runtime)

    def state(self) -> dict[str, Any]:
        """The fields of a `RunState` that change from epoch to epoch."""
        progress = self.progress
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "averaged": {} if self.averaged is None else self.averaged.state_dict(),
            "random_state": random_state(),
            "run_id": progress.run_id,
            "history": progress.history,
            "comparable_after": progress.comparable_after,
        }

    def load(self, snapshot: Snapshot, optimizer_state: bool = True) -> None:
        """Restores `snapshot`, optionally without optimizer state. Raises `UserError` if the
        snapshot belongs to another network."""
        load_weights(self.network, snapshot.model.weights)
        state = snapshot.state
        try:
            if optimizer_state:
                restore_optimizer(self.optimizer, state.optimizer, self.settings.training.optimizer)
            if self.averaged is not None and state.averaged:
                if not fits(self.averaged.state_dict(), state.averaged):
                    raise ValueError("its averaged weights belong to another network")
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


class StepBatch(NamedTuple):
    """The batch of one step: this rank's share of it, and its position in the run."""

    images: Tensor  # normalised, float32 [B,3,S,S]; B may be 0
    labels: Tensor  # int64 [B]
    size: int  # images of all ranks together
    epoch: int  # from 1
    step: int  # in the epoch, from 0


def train_step(
    learner: Learner, objective: Objective, batch: StepBatch, plan: Plan, tally: Tally
) -> None:
    """Trains on one batch, and adds its figures to `tally`."""
    runtime, epoch = learner.runtime, batch.epoch
    network = partial(learner.logits, size=plan.image_size(epoch))
    source = plan.source_epoch(epoch)
    learner.start_step(plan.rate(plan.first_step(epoch) + batch.step))

    # forward and backward, part by part; the gradient will be the mean over ranks
    share = batch.size / runtime.world_size
    count = min(plan.accumulate, math.ceil(share))  # no part is empty on all ranks
    parts = micro_batches(learner.forward, batch.images, batch.labels, count)
    for number, (images, labels) in enumerate(parts):
        with runtime.autocast():
            loss, logits = objective(network, images, labels, (source, batch.step, number))
        loss = loss / share
        learner.scaler.scale(loss).backward()
        tally.add(loss.detach() * share, logits, labels)

    # update
    norm = learner.step(plan.max_grad_norm)
    tally.close_step(norm, plan.max_grad_norm)


def run_epoch(
    learner: Learner,
    objective: Objective,
    batches: TrainBatches,
    plan: Plan,
    stop: Stop = lambda: None,
) -> EpochStats:
    """Trains the next epoch of `learner`: one pass over `batches`."""
    epoch, runtime = learner.progress.epoch + 1, learner.runtime
    tally = Tally(runtime, learner.scaler.is_enabled())
    rank_key = (runtime.rank,) if runtime.world_size > 1 else ()
    torch.manual_seed(derived_seed(learner.settings.training.seed, epoch, DROPOUT, *rank_key))
    learner.forward.train()

    epochs_left = plan.epochs_left(epoch)
    waited, started = 0.0, time.perf_counter()
    ready = started
    with progress_bar(batches.count, f"epoch {epoch}/{plan.epochs}", runtime) as bar:
        for step, (images, labels) in enumerate(batches.epoch(plan.source_epoch(epoch))):
            waited += time.perf_counter() - ready
            batch = StepBatch(images, labels, batches.size(step), epoch, step)
            train_step(learner, objective, batch, plan, tally)
            if not learner.first_step_seconds:
                learner.first_step_seconds = time.perf_counter() - started - waited
            show(bar, tally, batch.size, epochs_left)
            stop()
            ready = time.perf_counter()
    return tally.stats(epoch, started, waited)


def fit(
    learner: Learner,
    objective: Objective,
    data: Batches,
    plan: Plan,
    recorders: Recorders,
    stop: Stop = lambda: None,
) -> None:
    """Trains the epochs that are left. Raises `RunError` if loss, weights or scores are not
    finite."""
    while learner.progress.epoch < plan.epochs:
        started = time.perf_counter()
        epoch = learner.progress.epoch + 1

        # train
        stats = run_epoch(learner, objective, data.train, plan, stop)
        _check_finite(stats.bad_step, epoch, plan)
        learner.end_epoch(data.bn_batches)
        if not all(p.isfinite().all() for p in learner.network.parameters()):
            _check_finite(plan.steps_per_epoch - 1, epoch, plan)  # spoilt by the last update

        # evaluate if due
        held_out = held_out_scores(learner, data, stop) if plan.evaluates(epoch) else {}

        # close the row, and tell the recorders
        row = _row(stats, held_out, data.validates, plan, time.perf_counter() - started)
        learner.progress.history.append(row)
        recorders.row(learner.progress)
        stop()


def measure_start(learner: Learner, data: Batches, plan: Plan, stop: Stop = lambda: None) -> None:
    """Adds epoch 0 to the history: the scores before any training."""
    started = time.perf_counter()
    held_out = held_out_scores(learner, data, stop)
    row = _row(None, held_out, data.validates, plan, time.perf_counter() - started)
    learner.progress.history.append(row)


def held_out_scores(learner: Learner, data: Batches, stop: Stop) -> dict[str, Scores]:
    """The scores on the held-out images, of "raw" and, if they exist, "ema" weights. Raises
    `RunError` if they are not finite."""
    result = {}
    for name, network in learner.networks().items():
        images = data.held_out.stoppable(stop)
        result[name] = scores(*collect_logits(network.eval(), images, learner.runtime))
    return result


def _row(
    stats: EpochStats | None,
    held_out: dict[str, Scores],
    validates: bool,
    plan: Plan,
    seconds: float,
) -> Row:
    """The row of an epoch, which took `seconds`; without `stats`, that of epoch 0. `held_out` are
    scores on the validation images if the run `validates`, else on the test images."""
    columns = {"epoch": 0}
    if stats:
        columns = stats._asdict() | {"lr": plan.rate(plan.first_step(stats.epoch + 1) - 1)}
        del columns["bad_step"]
    part = "val" if validates else "test"
    if evaluated := held_out.get(plan.settings.evaluation.evaluate):
        columns |= {f"{part}_loss": evaluated.loss, f"{part}_accuracy": evaluated.top1}
        if not validates:
            columns |= {"test_top3": evaluated.top3, "test_top5": evaluated.top5}
    if "ema" in held_out:
        columns |= {f"{name}_accuracy": each.top1 for name, each in held_out.items()}
    return Row(**columns, seconds=seconds)


def _check_finite(bad_step: int, epoch: int, plan: Plan) -> None:
    """Raises `RunError` if there is a bad step (-1: there is none)."""
    if bad_step >= 0:
        rate = plan.rate(plan.first_step(epoch) + bad_step)
        raise RunError(
            f"the loss, the gradient or the weights are not finite: epoch {epoch}, "
            f"step {bad_step + 1} of {plan.steps_per_epoch}, learning rate {rate:g}; the epoch "
            f"was not saved; try a lower --lr, --warmup_epochs or --max_grad_norm 1"
        )
