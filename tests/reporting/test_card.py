"""The folder for the Hugging Face hub: by the hub's own library, without network."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cifarnet.checkpoints.weights import Weights
from cifarnet.reporting.card import write_hub
from cifarnet.settings import Settings
from model import build_model, load_pretrained

ROOT = Path(__file__).parents[2]
CLASSES = ("a | b", "<img src=x>\n## no", "*ü* `c`")
FIGURES = {
    **{"top1": 0.75, "top3": 1.0, "top5": 1.0, "loss": 0.6931, "macro_f1": 0.7123, "images": 40},
    "per_class": {
        name: {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 13.0} for name in CLASSES
    },
}


def made(network: str = "cifarnet", classes=CLASSES, **changes) -> tuple[Weights, torch.nn.Module]:
    settings = Settings.from_flags(network=network, dataset="cifar100", epochs=7)
    model = build_model(settings.network, len(classes)).eval()
    weights = Weights(
        model=model.state_dict(),
        epoch=3,
        config={"network": network, "dataset": "cifar100", "epochs": 7},
        classes=list(classes),
        mean=[0.5, 0.4, 0.3],
        std=[0.3, 0.25, 0.2],
        dataset='CIFAR-100, "JPEG": re-encoding',
        selected_by="not selected",
        accuracy=0.75,
        accuracy_from="metrics.json, 40 images",
        source="there",
    )
    return replace(weights, **changes), model


def card_of(folder: Path):
    """The model card, parsed and validated by the hub's library."""
    cards = pytest.importorskip("huggingface_hub").ModelCard
    return cards.load(folder / "README.md")  # raises for front matter that it does not accept


def test_the_hub_accepts_the_card_and_finds_the_figures(tmp_path):
    write_hub(*made(), FIGURES, tmp_path / "hub")
    card = card_of(tmp_path / "hub")
    said = card.data.to_dict()
    assert said["license"] == "mit"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert said["pipeline_tag"] == "image-classification"
    assert said["datasets"] == ["uoft-cs/cifar100"]
    (entry,) = said["model-index"]
    (result,) = entry["results"]
    assert result["dataset"]["name"] == 'CIFAR-100, "JPEG": re-encoding'
    assert [(each["type"], each["value"]) for each in result["metrics"]] == [
        ("accuracy", 0.75), ("accuracy", 1.0), ("f1", 0.7123)
    ]  # fmt: skip
    assert {each.task_type for each in card.data.eval_results} == {"image-classification"}
    assert "a re-encoding, which has lost a little detail" in card.text
    assert "Epoch 3 of 7" in card.text
    assert "| `--epochs` | 7 |" in card.text
    assert "| top-1 accuracy | 75.00% |" in card.text
    assert card.text.count("| 50.00% | 25.00% | 0.3333 | 13 |") == 3


def test_names_of_classes_are_text_only(tmp_path):
    write_hub(*made(), FIGURES, tmp_path)
    text = card_of(tmp_path).text
    assert "<img" not in text
    assert "## no" not in text
    assert "*ü*" not in text
    rows = [line for line in text.splitlines() if line.endswith("| 13 |")]
    assert [line.count("|") for line in rows] == [6, 6, 6]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {str(label): name for label, name in enumerate(CLASSES)}
    assert config["label2id"] == {name: label for label, name in enumerate(CLASSES)}


@pytest.mark.parametrize(
    ("accuracy", "words"), [(0.75, "75.00%. Source: metrics.json, 40 images"), (None, "Not known")]
)
def test_without_a_report_the_card_says_what_is_kept_with_the_weights(tmp_path, accuracy, words):
    write_hub(*made(accuracy=accuracy, dataset="mine"), None, tmp_path)
    card = card_of(tmp_path)
    assert words in card.text
    assert "re-encoding, which" not in card.text
    values = [each.metric_value for each in card.data.eval_results or ()]
    assert values == ([] if accuracy is None else [accuracy])


@pytest.mark.parametrize("network", ["cifarnet", "residual"])
def test_the_folder_holds_the_network_and_how_to_prepare_its_images(tmp_path, network):
    weights, model = made(network, classes=[f"class {i}" for i in range(100)])
    write_hub(weights, model, None, tmp_path)
    back, classes, normalise = load_pretrained(tmp_path)
    assert classes == tuple(weights.classes)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(back(normalise(pixels)), model(normalise(pixels)), rtol=0, atol=0)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(weights.model)

    read = lambda name: json.loads((tmp_path / name).read_text())  # noqa: E731
    config, how = read("config.json"), read("preprocessor_config.json")
    assert config["architectures"] == [type(model).__name__]
    assert (config["num_labels"], config["image_size"]) == (100, 32)
    assert how["size"] == {"height": 32, "width": 32}
    mean, std = (torch.tensor(how[f"image_{name}"]).view(3, 1, 1) for name in ("mean", "std"))
    expected = (pixels * how["rescale_factor"] - mean) / std
    torch.testing.assert_close(normalise(pixels), expected)
