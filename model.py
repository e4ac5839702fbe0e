"""CIFARNet: four convolution blocks and a linear head; 174,762 parameters for ten classes.

cifarnet/networks/ has its blocks (blocks.py) and a larger network to be its teacher (residual.py).
Attention (attention.py) and another size (scaling.py) are added to the published network.
"""

import contextlib
import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cifarnet.checkpoints.checks import fits
from cifarnet.checkpoints.places import find_trained, split_names
from cifarnet.checkpoints.snapshots import read_trained
from cifarnet.checkpoints.weights import Weights, weights_from
from cifarnet.core.errors import UserError
from cifarnet.inference.classifier import Augmented, Classifier, Ensemble, TorchClassifier
from cifarnet.inference.onnx import OnnxClassifier, read_onnx
from cifarnet.inference.predictor import NetworkInput, PixelInput
from cifarnet.networks.attention import add_attention
from cifarnet.networks.blocks import ConvBlock, SeparableBlock, channel_means
from cifarnet.networks.fast import use_fast_forms, use_plain_forms
from cifarnet.networks.residual import ResidualNet
from cifarnet.networks.scaling import deepen, enlarged, widened
from cifarnet.settings import settings_from_dict
from cifarnet.settings.network import NetworkSettings


class CIFARNet(nn.Module):
    """Normalised images [B,3,H,W] of any size -> logits float32 [B,classes].

    The receptive field before the pooling is 15x15 pixels.
    """

    def __init__(
        self,
        classes: int = 10,
        dropout: Sequence[float] = (0.0,) * 4,
        width: float = 1.0,
        enlarge: float = 1.0,
    ) -> None:
        """`dropout` holds a rate for each block. `width` multiplies the channels, `enlarge` the
        sides of the images; the comments below are for 1."""
        super().__init__()
        n1, n2, n3, n4 = (widened(channels, width) for channels in (40, 128, 240, 384))
        self.enlarge = enlarge
        self.c1 = ConvBlock(3, n1, dropout[0])
        self.c2 = SeparableBlock(n1, n2, dropout[1])
        self.c3 = SeparableBlock(n2, n3, dropout[2], dilation=4)
        self.c4 = SeparableBlock(n3, n4, 0.0, stride=2, shortcut=False)
        self.dropout = nn.Dropout(dropout[3])  # c4's spatial dropout, cheaper after the pooling
        self.head = nn.Linear(n4, classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.enlarge != 1:
            x = enlarged(x, self.enlarge)
        x = self.c1(x)  # [B, 40, 32, 32]
        x = self.c2(x)  # [B, 128, 32, 32]
        x = self.c3(x)  # [B, 240, 32, 32]
        x = self.c4(x)  # [B, 384, 16, 16]
        x = self.dropout(channel_means(x))  # [B, 384]
        with torch.autocast(x.device.type, enabled=False):  # 16 bits would make close logits equal
            return self.head(x.to(self.head.weight.dtype))  # [B, classes]


Network = CIFARNet | ResidualNet


def build_model(settings: NetworkSettings, classes: int) -> Network:
    """The network that --network names, with fresh random weights, in channels_last layout.

    Repeats and attention come last: the other weights are those of the published network.
    """
    rates = settings.dropouts
    depth, width, enlarge = settings.scaling
    if settings.network == "residual":
        model = ResidualNet(classes, rates[-1])
    else:
        model = CIFARNet(classes, rates, width, enlarge)
        deepen((model.c2, model.c3, model.c4), depth)
        attended = [getattr(model, f"c{number}") for number in settings.attended]
        add_attention(attended, settings.attention)
    return use_fast_forms(model).to(memory_format=torch.channels_last)


def load_weights(model: Network, weights: dict[str, Tensor]) -> None:
    """Loads the state_dict `weights`. Raises `UserError` if it belongs to another network."""
    if not fits(model.state_dict(), weights):
        raise UserError(
            f"the weights do not fit this {type(model).__name__}; use others, or another --network"
        )
    model.load_state_dict(weights)


def restore(trained: Weights) -> Network:
    """The trained network, on the CPU in evaluation mode.

    Raises `UserError` if settings and weights are of different networks.
    """
    model = build_model(settings_from_dict(trained.config).network, len(trained.classes))
    load_weights(model, trained.model)
    return model.eval()


def start_from(model: Network, trained: Weights, classes: Sequence[str]) -> list[str]:
    """Loads what fits of `trained` into `model`, by name and shape, running statistics too.

    Of the head it takes the rows of those `classes` that the trained network knows by their names.
    Returns the names of the weights that stay as they are, if only in part. Raises `UserError` if
    nothing fits.
    """
    own = model.state_dict()
    head = {name: own[name].clone() for name in own if name.startswith("head.")}
    taken = {
        name: value
        for name, value in trained.model.items()
        if name in own.keys() - head.keys()
        and (value.shape, value.dtype) == (own[name].shape, own[name].dtype)
    }
    if not taken.keys() & dict(model.named_parameters()).keys():
        raise UserError(
            f"no weights of {trained.source} fit this {type(model).__name__}; use others, or "
            f"another --network"
        )
    known = [name for name in classes if name in trained.classes]
    if all(
        name in trained.model
        and trained.model[name].shape == (len(trained.classes), *value.shape[1:])
        for name, value in head.items()
    ):
        here = [list(classes).index(name) for name in known]
        there = [list(trained.classes).index(name) for name in known]
        for name, value in head.items():
            value[here] = trained.model[name][there]
        own |= head
        if len(known) == len(classes):
            taken |= head
    load_weights(model, own | taken)
    return [name for name in own if name not in taken]


@dataclass(frozen=True)
class Exported(Weights):
    """A trained network that runs as an ONNX file. `model` is empty."""

    classifier: OnnxClassifier

    @property
    def sha256(self) -> str:
        """The checksum that identifies it in reports: that of the file, not of the weights."""
        return self.classifier.sha256


def read_network(name: str) -> Weights:
    """A trained network as `read_trained` reads it, or an ONNX file that export.py wrote.

    Raises `UserError`.
    """
    path = find_trained(name)
    if path.suffix != ".onnx":
        return read_trained(name)
    classifier = read_onnx(path, name)
    return Exported(
        **vars(weights_from(classifier.metadata, {}, name, path)), classifier=classifier
    )


def build_classifier(
    trained: Sequence[Weights], tta: str = "none", amp: bool | None = None
) -> Classifier:
    """The trained network, or the ensemble of several, with test-time augmentation, on the CPU.

    `amp` says whether an autocast around it has an effect. None: only for networks that were
    trained with --amp. Raises `UserError` if the networks do not fit together.
    """
    members = []
    for one in trained:
        if isinstance(one, Exported):
            members.append(one.classifier)
            continue
        settings = settings_from_dict(one.config)
        normalise = NetworkInput(one.mean, one.std, settings.data.image_size)
        about = {"classes": one.classes, "size": settings.data.image_size, "source": one.source}
        amp_here = settings.precision.amp if amp is None else amp
        members.append(TorchClassifier(restore(one), normalise, **about, amp=amp_here))
    classifier = members[0] if len(members) == 1 else Ensemble(members)
    return classifier if tta == "none" else Augmented(classifier, tta)


def load_pretrained(
    name: str | Path, tta: str = "none"
) -> tuple[Network | Classifier, tuple[str, ...], PixelInput]:
    """Returns a trained network, on the CPU in evaluation mode, its class names, and `normalise`.

    `name` is the name of a result (results/<name>/weights.safetensors), or the path of a file that
    export.py wrote; or several of these, separated by commas: an ensemble. `tta` is the test-time
    augmentation: "none", "flip" or "shift", see `views`.

    `normalise(picture)` gives the network's input: see `NetworkInput`. An ensemble and a network
    with `tta` are a `Classifier`, which normalises inside; their `normalise` is a `PixelInput`.
    Raises `UserError`.
    """
    names = split_names(name) if isinstance(name, str) else [str(name.absolute())]
    trained = [read_network(one) for one in names]
    classifier = build_classifier(trained, tta)
    if isinstance(classifier, TorchClassifier):
        return classifier.network, classifier.classes, classifier.normalise
    return classifier, classifier.classes, PixelInput(classifier.size)


def parameter_count(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def trained_parameters(trained: Weights) -> int:
    """The number of parameters of the network that `trained` holds, in whatever form."""
    with torch.device("meta"):  # takes neither time nor random numbers
        model = build_model(settings_from_dict(trained.config).network, len(trained.classes))
    return parameter_count(model)


def model_table(model: nn.Module, size: int = 32) -> str:
    """torchsummary's table of layers, output shapes and parameters, for images of `size`.

    Changes neither `model` nor a random state.
    """
    import torchsummary  # only the log of a run needs it

    # The table lists modules that are called; the fast forms call fewer.
    twin = use_plain_forms(copy.deepcopy(model).cpu().eval())
    table = io.StringIO()
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(table):
        torchsummary.summary(twin, (3, size, size), device="cpu")
    return table.getvalue().rstrip()
