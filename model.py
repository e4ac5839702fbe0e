"""The network: load a trained one, start from its weights, print its table.

CIFARNet itself is in cifarnet/networks/cifarnet.py, its blocks in blocks.py beside it, and
the table of all networks, which builds them, in build.py.
"""

import contextlib
import copy
import io
from collections.abc import Sequence
from pathlib import Path

import torch
import torchsummary
from torch import nn

from cifarnet.checkpoints.paths import split_names
from cifarnet.checkpoints.trained import TrainedModel, load_weights
from cifarnet.core.errors import UserError
from cifarnet.inference.classifier import Classifier
from cifarnet.inference.load import load_classifier
from cifarnet.networks.fast import use_plain_forms


def load_pretrained(name: str | Path, tta: str = "none") -> Classifier:
    """Returns a trained classifier on the CPU: pixels uint8 [N,3,S,S] in, probabilities out.

    `name` is the name of a result (results/<name>/weights.safetensors), or the path of a snapshot
    or of a file that export.py wrote; or several of these, separated by commas: an ensemble. `tta`
    is the test-time augmentation: "none", "flip" or "shift", see `views`.

    `classifier.pixels(image)` gives its input, `classifier.classes` the class names. Raises
    `UserError`.
    """
    names = split_names(name) if isinstance(name, str) else [str(name.absolute())]
    return load_classifier(names, tta)


def start_from(
    model: nn.Module, trained: TrainedModel, classes: Sequence[str]
) -> tuple[list[str], int]:
    """Loads the weights and running statistics of `trained` that match `model` by name and shape.

    Of the head it loads the rows of those `classes` that the trained network has, by their names.
    Returns the names of the weights that stay as they are, if only in part, and the number of rows
    of the head that it loaded. Raises `UserError` if nothing fits.
    """
    weights = model.state_dict()
    head = {name: weights[name].clone() for name in weights if name.startswith("head.")}
    matching = {
        name: value
        for name, value in trained.weights.items()
        if name in weights.keys() - head.keys()
        and (value.shape, value.dtype) == (weights[name].shape, weights[name].dtype)
    }
    if not matching.keys() & dict(model.named_parameters()).keys():
        raise UserError(
            f"no weights of {trained.source} fit this {type(model).__name__}; they need --network "
            f"{trained.network.network} --width {trained.network.width:g}; or use other weights"
        )
    fits = all(
        name in trained.weights
        and trained.weights[name].shape == (len(trained.classes), *value.shape[1:])
        for name, value in head.items()
    )
    shared = [name for name in classes if fits and name in trained.classes]
    rows = [list(classes).index(name) for name in shared]
    source_rows = [list(trained.classes).index(name) for name in shared]
    if shared:
        for name, value in head.items():
            value[rows] = trained.weights[name][source_rows]
        weights |= head
    if len(shared) == len(classes):
        matching |= head
    load_weights(model, weights | matching)
    return [name for name in weights if name not in matching], len(shared)


def model_table(model: nn.Module, size: int = 32) -> str:
    """torchsummary's table of layers, output shapes and parameters, for images of `size`. Changes
    neither `model` nor a random state."""
    # The table lists modules that are called; the fast forms call fewer.
    twin = use_plain_forms(copy.deepcopy(model).cpu().eval())
    table = io.StringIO()
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(table):
        torchsummary.summary(twin, (3, size, size), device="cpu")
    return table.getvalue().rstrip()
