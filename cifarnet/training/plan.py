"""Schedule of a run: learning rate, image size, clipping, evaluation."""

import math
from collections.abc import Callable

from cifarnet.settings import Settings
from cifarnet.settings.training import TrainingSettings

# By --schedule: from the share of the way, in [0, 1], to a factor that falls from 1 to 0.
SCHEDULES: dict[str, Callable[[float], float]] = {
    # one period of Loshchilov and Hutter 2017, arXiv 1608.03983
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "linear": lambda share: 1 - share,
}


def learning_rate(
    step: int, total_steps: int, warmup_steps: int, settings: TrainingSettings
) -> float:
    """The learning rate of step `step`, from 0, of `total_steps`.

    It rises linearly from lr/warmup_steps to lr over the warm-up. Then it falls from exactly --lr
    to exactly --min_lr on the last step, by --schedule.
    """
    lr, min_lr = settings.lr, settings.min_lr
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    share = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    high = SCHEDULES[settings.schedule](share)
    return lr * high + min_lr * (1 - high)


class Plan:
    """Schedule of a run. Steps count from 0 over the whole run, epochs from 1."""

    def __init__(self, settings: Settings, steps_per_epoch: int, first: int = 1) -> None:
        """`first` is the epoch that this process trains first."""
        self.settings, self.steps_per_epoch, self.first = settings, steps_per_epoch, first
        self.epochs, self.accumulate = settings.training.epochs, settings.training.accumulate
        self.max_grad_norm = settings.training.max_grad_norm or math.inf
        self.total_steps = settings.training.epochs * steps_per_epoch

    def first_step(self, epoch: int) -> int:
        """The number of the first step of `epoch`."""
        return (epoch - 1) * self.steps_per_epoch

    def rate(self, step: int) -> float:
        """The learning rate of `step`."""
        training = self.settings.training
        warmup = training.warmup_epochs * self.steps_per_epoch
        position, length = SCHEDULE_POSITIONS[training.schedule_per](self, step)
        return learning_rate(position, length, warmup, training)

    def image_size(self, epoch: int) -> int:
        """The side of the training images in `epoch`, in pixels."""
        sizes = self.settings.image_sizes
        return sizes[(epoch - 1) * len(sizes) // self.epochs]

    def source_epoch(self, epoch: int) -> int:
        """The epoch whose order, augmentation and mixes `epoch` has: its own, or one that it
        repeats because of --teacher_epochs."""
        training = self.settings.training
        asked = training.teacher_epochs if training.teacher else 0
        return (epoch - 1) % asked + 1 if asked else epoch

    def evaluates(self, epoch: int) -> bool:
        """Whether the network is evaluated after `epoch`."""
        freq = self.settings.evaluation.eval_freq
        return epoch == self.epochs or (freq > 0 and epoch % freq == 0)

    def cost(self, epoch: int) -> float:
        """The cost of `epoch` in pixels per image, to estimate the time left. Each teacher adds a
        quarter of a full-size step where it is asked: it has no backward pass, and fewer pixels.
        After a resume it is asked again: its predictions are not in the snapshot."""
        training = self.settings.training
        asked = training.teacher and epoch < self.first + (training.teacher_epochs or self.epochs)
        views = 2 if training.teacher_tta == "flip" else 1
        passes = views * (training.teacher.count(",") + 1) if asked else 0
        return self.image_size(epoch) ** 2 + passes * self.settings.data.image_size**2 / 4

    def epochs_left(self, epoch: int) -> float:
        """The cost of all epochs after `epoch`, in epochs that cost as much as this one."""
        return sum(map(self.cost, range(epoch + 1, self.epochs + 1))) / self.cost(epoch)


# By --schedule_per: from a step of the run to its position in the schedule, and its length.
SCHEDULE_POSITIONS: dict[str, Callable[[Plan, int], tuple[int, int]]] = {
    "step": lambda plan, step: (step, plan.total_steps),
    # as torch's schedulers, stepped after each epoch
    "epoch": lambda plan, step: (step // plan.steps_per_epoch, plan.epochs + 1),
}
