"""Temperature scaling: one number makes the probabilities of a network fit its accuracy."""

import math

import numpy as np
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from cifarnet.checkpoints.trained import TEMPERATURE_RANGE

LEAST = 100  # images: on fewer, the temperature that fits is mostly chance


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """The temperature that divides the logits [N,C] to minimise the cross-entropy for labels [N].

    It lies in `TEMPERATURE_RANGE`. The most probable class stays the same. None if no image is
    classified wrongly: then the lowest temperature always wins. Guo et al., On Calibration of
    Modern Neural Networks, 2017, section 4.2.
    """
    logits = logits.double()
    if (logits.argmax(dim=1) == labels).all():
        return None
    fit = minimize_scalar(
        lambda log: F.cross_entropy(logits / math.exp(log), labels).item(),
        bounds=np.log(TEMPERATURE_RANGE),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(fit.x)
