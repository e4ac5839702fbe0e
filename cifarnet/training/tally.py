"""Running sums of an epoch."""

import shutil
import time
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from cifarnet.core.device import Runtime
from cifarnet.core.log import clock
from cifarnet.core.ranks import earliest_over_ranks, sum_over_ranks

BAR = "{desc} {percentage:3.0f}%|{bar}|{rate_noinv_fmt}{postfix}"  # fits into 80 columns


class EpochStats(NamedTuple):
    """The figures of a pass over the training images: those of `Row`, and `bad_step`."""

    epoch: int
    train_loss: float
    train_accuracy: float
    train_seconds: float
    images_per_second: float
    data_wait: float
    grad_norm: float  # over the steps where it was finite
    clipped: float
    skipped_steps: int
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

    def stats(self, epoch: int, started: float, waited: float) -> EpochStats:
        """Means over all ranks. `started`: start time; `waited`: seconds spent waiting for
        batches."""
        infinite = int(self.infinite)  # waits for the device: only now the epoch is over
        seconds = time.perf_counter() - started
        sums = [self.loss.item(), self.correct.item(), self.images]
        loss, correct, images = sum_over_ranks(sums, self.runtime)
        return EpochStats(
            epoch=epoch,
            train_loss=loss / images,
            train_accuracy=correct / images,
            train_seconds=seconds,
            images_per_second=images / seconds,
            data_wait=waited / seconds,
            grad_norm=self.norm.item() / max(1, self.steps - infinite),
            clipped=self.clipped.item() / self.steps,
            skipped_steps=infinite if self.scaled else 0,
            bad_step=earliest_over_ranks(int(self.bad_step), self.runtime),
        )


def progress_bar(images: int, name: str, runtime: Runtime) -> tqdm:
    """A bar on the terminal of the first rank; none where there is no terminal."""
    hidden = True if runtime.rank else None
    columns, lines = shutil.get_terminal_size()  # a container's may say 0, which hides the bar
    form = {"desc": name, "unit": " img", "bar_format": BAR, "ncols": columns, "nrows": lines}
    return tqdm(total=images, leave=False, disable=hidden, **form)


def show(bar: tqdm, tally: Tally, images: int, epochs_left: float) -> None:
    """Moves `bar` by a step of `images`; as many epochs as this one are left after it.

    The figures wait for the device: on CUDA every 50 steps only.
    """
    bar.update(images)
    every = 1 if tally.runtime.device.type == "cpu" else 50
    if not bar.disable and tally.steps % every == 0:
        share = bar.n / bar.total
        left = bar.format_dict["elapsed"] / share * (1 - share + epochs_left)
        bar.set_postfix(tally.running() | {"run left": clock(left)})
