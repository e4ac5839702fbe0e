"""A trained network as a folder for the Hugging Face hub, with a model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifarnet.checkpoints.paths import HUB_CONFIG, HUB_WEIGHTS
from cifarnet.checkpoints.trained import TrainedModel, write_weights
from cifarnet.core.errors import printable
from cifarnet.core.files import write_text
from cifarnet.core.templates import read_template
from cifarnet.settings import Settings

ON_THE_HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}  # by --dataset
BICUBIC = 3  # as Pillow and the hub number the ways to resize


def write_hub(model: TrainedModel, figures: Mapping[str, Any] | None, folder: Path) -> None:
    """Writes the folder, which need not exist: weights, configurations, model card.

    `figures` are those of its metrics.json, see `FIGURES`; None: the card has the accuracy that is
    kept with the weights. Raises `OSError`.
    """
    architecture = type(model.build()).__name__
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(model, folder / HUB_WEIGHTS)
    config = {
        "architectures": [architecture],
        "model_type": model.network.network,
        "image_size": model.image_size,
        "num_channels": 3,
        "num_labels": len(model.classes),
        "id2label": dict(enumerate(model.classes)),
        "label2id": {name: label for label, name in enumerate(model.classes)},
    }
    preprocessor = {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": model.image_size, "width": model.image_size},
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": model.mean,
        "image_std": model.std,
    }
    write_text(folder / HUB_CONFIG, json.dumps(config, indent=2) + "\n")
    write_text(folder / "preprocessor_config.json", json.dumps(preprocessor, indent=2) + "\n")
    write_text(folder / "README.md", model_card(model, architecture, figures))


def model_card(model: TrainedModel, architecture: str, figures: Mapping[str, Any] | None) -> str:
    """The README.md of the folder: front matter, and what a user should know of the model."""
    settings = model.settings
    usual, flags = Settings().flags, model.origin.settings
    filters = {"text": _markdown, "percent": "{:.2%}".format}
    template = read_template(Path(__file__).with_name("model_card.md.j2"), escape=False, **filters)
    return template.render(
        model=model,
        origin=model.origin,
        settings=settings,
        changed={name: v for name, v in flags.items() if name in usual and v != usual[name]},
        architecture=architecture,
        figures=figures,
        on_the_hub=ON_THE_HUB.get(settings.data.dataset),
    )


def _markdown(text: object) -> str:
    """Escapes all Markdown characters in `text`."""
    plain = " -.,:;/()%"
    shown = printable(str(text))
    return "".join(c if c.isalnum() or c in plain else f"&#{ord(c)};" for c in shown)
