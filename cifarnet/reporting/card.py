"""A trained network as a folder for the Hugging Face hub, with a model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from cifarnet.checkpoints.places import HUB_CONFIG, HUB_WEIGHTS
from cifarnet.checkpoints.weights import Weights, write_weights
from cifarnet.core.errors import printable
from cifarnet.core.files import write_text
from cifarnet.core.templates import read_template
from cifarnet.settings import Settings, settings_from_dict

ON_THE_HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}  # by --dataset
BICUBIC = 3  # as Pillow and the hub number the ways to resize


def write_hub(
    weights: Weights, network: nn.Module, figures: Mapping[str, Any] | None, folder: Path
) -> None:
    """Writes the folder, which need not exist: weights, configurations, model card.

    `network` is the network that `weights` make. `figures` are those of its report: top1, top3,
    top5, macro_f1, loss, images and per_class; None: the card has the accuracy that is kept with
    the weights. Raises `OSError`.
    """
    settings = settings_from_dict(weights.config)
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(weights, folder / HUB_WEIGHTS)
    config = {
        "architectures": [type(network).__name__],
        "model_type": settings.network.network,
        "image_size": settings.data.image_size,
        "num_channels": 3,
        "num_labels": len(weights.classes),
        "id2label": dict(enumerate(weights.classes)),
        "label2id": {name: label for label, name in enumerate(weights.classes)},
    }
    preprocessor = {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": settings.data.image_size, "width": settings.data.image_size},
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": weights.mean,
        "image_std": weights.std,
    }
    write_text(folder / HUB_CONFIG, json.dumps(config, indent=2) + "\n")
    write_text(folder / "preprocessor_config.json", json.dumps(preprocessor, indent=2) + "\n")
    write_text(folder / "README.md", model_card(weights, network, figures))


def model_card(weights: Weights, network: nn.Module, figures: Mapping[str, Any] | None) -> str:
    """The README.md of the folder: front matter, and what a user should know of the network."""
    settings = settings_from_dict(weights.config)
    usual = Settings().flags
    filters = {"text": _markdown, "percent": "{:.2%}".format}
    template = read_template(Path(__file__).with_name("card.md.j2"), escape=False, **filters)
    return template.render(
        weights=weights,
        settings=settings,
        changed={k: v for k, v in weights.config.items() if k in usual and v != usual[k]},
        architecture=type(network).__name__,
        parameters=sum(values.numel() for values in network.parameters()),
        figures=figures,
        on_the_hub=ON_THE_HUB.get(settings.data.dataset),
    )


def _markdown(text: object) -> str:
    """`text` as it is, in Markdown: every sign that could have a meaning becomes a number."""
    plain = " -.,:;/()%"
    shown = printable(str(text))
    return "".join(c if c.isalnum() or c in plain else f"&#{ord(c)};" for c in shown)
