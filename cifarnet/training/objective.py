"""A trained network that another learns from, in place of the labels (`--teacher`)."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarnet.checkpoints.weights import Weights, fingerprint
from cifarnet.core.device import Runtime
from cifarnet.core.errors import UserError
from cifarnet.images.imageset import Splits
from model import restore

TEMPERATURE = 2.0  # flattens both sides' probabilities, so that the small ones count


class Teacher:
    """Calls give the logits of `trained`, float32 [B,classes], for images [B,3,H,W] normalised as those of `splits`.

    Each image is seen as the student sees it, augmented, but at full size (Beyer et al. 2022, arXiv 2106.05237).
    Raises `UserError` where the network is for other classes than those of `splits`.
    """

    def __init__(self, trained: Weights, splits: Splits, runtime: Runtime) -> None:
        for its, ours in itertools.zip_longest(trained.classes, splits.train.classes):
            if its != ours:
                raise UserError(
                    f"{trained.source} is for other classes than the training images have, or in another order "
                    f"({its or 'none'} in place of {ours or 'none'}); use one for these"
                )
        self.classes, self.runtime = len(trained.classes), runtime
        self.model = restore(trained).requires_grad_(False)
        self.sha256 = fingerprint(trained.model)  # by which a resumed run knows it again
        self.model.to(runtime.device)
        statistics = (trained.mean, trained.std, splits.mean, splits.std)
        its_mean, its_std, mean, std = (
            torch.tensor(x, device=runtime.device).view(1, 3, 1, 1) for x in statistics
        )
        self.factor, self.shift = (
            std / its_std,
            (mean - its_mean) / its_std,
        )  # from one normalisation to the other

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if not len(images):  # a rank's share of a small last batch
            return images.new_zeros(0, self.classes)
        with self.runtime.autocast():
            return self.model(images * self.factor + self.shift)


def distillation_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """How far `logits` are from `teacher_logits`, both [B,classes], as a sum over images: T^2 times the Kullback-Leibler
    divergence of their probabilities at temperature T, in nats (Hinton et al. 2015, arXiv 1503.02531)."""
    student, teacher = (
        (logits / TEMPERATURE).log_softmax(1),
        (teacher_logits / TEMPERATURE).softmax(1),
    )
    return TEMPERATURE**2 * F.kl_div(student, teacher, reduction="sum")
