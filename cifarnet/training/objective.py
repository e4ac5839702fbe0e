"""Training losses: cross-entropy, mixed labels, distillation.

An objective is called with the network, a batch and its place in the run. It returns the loss,
summed over the images, and the logits. The training loop knows nothing else of it.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnet.core.device import Runtime
from cifarnet.settings.training import TrainingSettings

# Of a batch: the epoch (from 1) whose images it has, step in it and part of the batch (from 0).
Place = tuple[int, ...]
Net = Callable[[Tensor], Tensor]  # normalised images [B,3,H,W] -> logits [B,classes]
Loss = tuple[Tensor, Tensor]  # in nats, summed over the images; and the logits
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel
# Mixes images [B,3,H,W] and labels [B], and returns images and float32 shares [B,classes].
Mix = Callable[[Tensor, Tensor, Place], tuple[Tensor, Tensor]]

# By --teacher_tta: images [B,3,H,W] -> the views of them that the teacher is asked about.
TEACHER_VIEWS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "none": lambda images: (images,),
    "flip": lambda images: (images, images.flip(3)),
}

TEMPERATURE = 2.0  # flattens both sides' probabilities, so that small ones count


class Objective(Protocol):
    """A training loss."""

    def __call__(self, network: Net, images: Tensor, labels: Tensor, place: Place = ()) -> Loss:
        """The loss in nats, summed over the images, and the logits float32 [B,classes].

        `network` gives logits for normalised images [B,3,H,W]; `labels` are int64 [B], or the
        share of each class, float32 [B,classes]. Random draws depend on `place` only.
        """


class Labels:
    """Cross-entropy against the labels. `smoothing` of each is spread evenly over all classes
    (Szegedy et al. 2016, arXiv 1512.00567). `weights` float32 [classes] multiply the loss of the
    images of each class; their mean over the training images is 1."""

    def __init__(self, smoothing: float = 0.0, weights: Tensor | None = None) -> None:
        self.smoothing, self.weights = smoothing, weights

    def __call__(self, network: Net, images: Tensor, labels: Tensor, place: Place = ()) -> Loss:
        logits = network(images)
        if self.weights is None:
            loss = F.cross_entropy(logits, labels, label_smoothing=self.smoothing, reduction="sum")
            return loss, logits
        if labels.is_floating_point():  # each class of a mixed image has its weight
            labels = labels * self.weights
            weights = labels.sum(1)
            labels = labels / weights[:, None]
        else:
            weights = self.weights[labels]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.smoothing, reduction="none")
        return (loss * weights).sum(), logits


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """The weight of each class, float32 [classes], inverse to its number of `labels`: all classes
    together weigh the same, and the mean over `labels` is 1."""
    counts = labels.bincount(minlength=classes)
    return len(labels) / (classes * counts.float())


# By --class_weights: from the training labels and the number of classes.
CLASS_WEIGHTS: dict[str, Callable[[Tensor, int], Tensor | None]] = {
    "none": lambda labels, classes: None,
    "balanced": balanced_weights,
}


def label_objective(settings: TrainingSettings, labels: Tensor, classes: int) -> Labels:
    """The objective without a teacher. `labels` int64 [N] are those of the training images."""
    weights = CLASS_WEIGHTS[settings.class_weights](labels, classes)
    return Labels(settings.smoothing, weights)


class Distillation:
    """The divergence from a teacher's predictions, in place of the labels. Several teachers give
    the mean of their logits.

    The teacher sees the same augmented images as the network that learns, but at full size
    (Beyer et al. 2022, arXiv 2106.05237). Its predictions can be kept for epochs that repeat these
    images (Shen and Xing 2022, arXiv 2112.01528).
    """

    def __init__(
        self,
        teachers: Sequence[tuple[nn.Module, Statistics]],
        runtime: Runtime,
        of_images: Statistics,
        tta: str = "none",
        repeats: bool = False,
    ) -> None:
        """`teachers` are networks, each with the statistics that its training images were
        normalised by; the run normalises its images by `of_images`. They are asked about the
        `TEACHER_VIEWS` of `tta`. If the run `repeats` epochs, the mean logits are kept: 4 bytes for
        each image of an epoch and each class."""
        self.teachers = []  # networks, each with the factor and the shift of its input
        for network, of_network in teachers:
            mean, std, network_mean, network_std = (
                torch.tensor(values, device=runtime.device).view(1, 3, 1, 1)
                for values in (*of_images, *of_network)
            )
            network = network.requires_grad_(False).eval().to(runtime.device)
            self.teachers.append((network, std / network_std, (mean - network_mean) / network_std))
        self.views, self.repeats = TEACHER_VIEWS[tta], repeats
        self.kept: dict[Place, Tensor] = {}  # the mean logits

    def __call__(self, network: Net, images: Tensor, labels: Tensor, place: Place = ()) -> Loss:
        logits = network(images)
        if not len(images):  # a rank's share of a small last batch
            return logits.sum(), logits
        taught = self.kept.get(place)
        if taught is None:
            taught = self.teacher_logits(images)
            if self.repeats:
                self.kept[place] = taught
        return distillation_loss(logits, taught), logits

    @torch.no_grad()
    def teacher_logits(self, images: Tensor) -> Tensor:
        """The mean logits [B,classes] for images [B,3,H,W] as the run normalises them."""
        logits = [
            network(view)
            for network, factor, shift in self.teachers
            for view in self.views(images * factor + shift)
        ]
        return torch.stack(logits).mean(0)


def distillation_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """The divergence of `logits` from `teacher_logits`, both [B,classes], summed over images.

    T^2 times the Kullback-Leibler divergence of the probabilities at temperature T, in nats
    (Hinton et al. 2015, arXiv 1503.02531).
    """
    student = (logits / TEMPERATURE).log_softmax(1)
    teacher = (teacher_logits / TEMPERATURE).softmax(1)
    return TEMPERATURE**2 * F.kl_div(student, teacher, reduction="sum")


class Mixed:
    """An `objective` on mixed images, with the shares of the classes in place of labels.

    `mix` leaves the larger share of each image to its own label, so the training accuracy counts
    the class with the larger share. A teacher sees the mixed images.
    """

    def __init__(self, objective: Objective, mix: Mix) -> None:
        self.objective, self.mix = objective, mix

    def __call__(self, network: Net, images: Tensor, labels: Tensor, place: Place = ()) -> Loss:
        images, shares = self.mix(images, labels, place)
        return self.objective(network, images, shares, place)
