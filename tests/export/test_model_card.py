"""The folder for the Hugging Face hub: by the hub's own library, without network."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from support.random_models import noise, random_model

from cifarnet.checkpoints.trained import TrainedModel
from cifarnet.export.model_card import write_hub
from cifarnet.images.normalise import Normalise
from cifarnet.inference.classifier import TorchClassifier
from model import load_pretrained

ROOT = Path(__file__).parents[2]
CLASSES = ("a | b", "<img src=x>\n## no", "*ü* `c`")
DATASET = 'CIFAR-100, "JPEG": re-encoding'
FIGURES = {
    **{"top1": 0.75, "top3": 1.0, "top5": 1.0, "loss": 0.6931, "images": 40},
    **{"interval": [0.6, 0.9], "calibration_error": 0.01, "macro": {"f1": 0.7123}},
    "per_class": {
        name: {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 13} for name in CLASSES
    },
}


def build(network: str = "cifarnet", classes=CLASSES, **changes) -> TrainedModel:
    """A trained model with random weights; `changes` are fields of its origin."""
    model = random_model(classes=classes, network=network, dataset="cifar100", epochs=7)
    about = {"accuracy": 0.75, "accuracy_from": "metrics.json, 40 images", "dataset": DATASET}
    return dataclasses.replace(model, origin=dataclasses.replace(model.origin, **about | changes))


def card_of(folder: Path):
    """The model card, parsed and validated by the hub's library."""
    cards = pytest.importorskip("huggingface_hub").ModelCard
    return cards.load(folder / "README.md")  # raises for front matter that it does not accept


def test_only_networks_trained_on_public_images_name_the_licence(tmp_path):
    own = build()
    settings = own.origin.settings | {"dataset": "folder"}
    own = dataclasses.replace(own, origin=dataclasses.replace(own.origin, settings=settings))
    write_hub(own, FIGURES, tmp_path / "hub")
    assert "license" not in card_of(tmp_path / "hub").data.to_dict()


def test_the_hub_accepts_the_card_and_finds_the_figures(tmp_path):
    write_hub(build(), FIGURES, tmp_path / "hub")
    card = card_of(tmp_path / "hub")
    front = card.data.to_dict()
    assert front["license"] == "mit"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert front["pipeline_tag"] == "image-classification"
    assert front["datasets"] == ["uoft-cs/cifar100"]
    (entry,) = front["model-index"]
    (result,) = entry["results"]
    assert result["dataset"]["name"] == DATASET
    assert [(each["type"], each["value"]) for each in result["metrics"]] == [
        ("accuracy", 0.75), ("f1", 0.7123)  # top-3 of three classes is always 1
    ]  # fmt: skip
    assert {each.task_type for each in card.data.eval_results} == {"image-classification"}
    assert "a re-encoding, which has lost a little detail" in card.text
    assert "Epoch 3 of 7" in card.text
    assert "| `--epochs` | 7 |" in card.text
    assert "| top-1 accuracy | 75.00% |" in card.text
    assert card.text.count("| 50.00% | 25.00% | 0.3333 | 13 |") == 3


def test_names_of_classes_are_text_only(tmp_path):
    write_hub(build(), FIGURES, tmp_path)
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
    write_hub(build(accuracy=accuracy, dataset="mine"), None, tmp_path)
    card = card_of(tmp_path)
    assert words in card.text
    assert "re-encoding, which" not in card.text
    values = [each.metric_value for each in card.data.eval_results or ()]
    assert values == ([] if accuracy is None else [accuracy])


@pytest.mark.parametrize("network", ["cifarnet", "residual"])
def test_the_folder_holds_the_network_and_how_to_prepare_its_images(tmp_path, network):
    model = build(network, classes=tuple(f"class {i}" for i in range(100)))
    write_hub(model, None, tmp_path)
    classifier = load_pretrained(tmp_path)
    assert classifier.classes == model.classes
    pixels = noise(2)
    with torch.inference_mode():
        assert torch.equal(classifier(pixels), TorchClassifier(model, amp=False)(pixels))
    read = lambda name: json.loads((tmp_path / name).read_text())  # noqa: E731
    config, how = read("config.json"), read("preprocessor_config.json")
    assert config["architectures"] == [{"cifarnet": "CIFARNet", "residual": "ResidualNet"}[network]]
    assert (config["num_labels"], config["image_size"]) == (100, 32)
    assert how["size"] == {"height": 32, "width": 32}
    mean, std = (torch.tensor(how[f"image_{name}"]).view(3, 1, 1) for name in ("mean", "std"))
    expected = (pixels * how["rescale_factor"] - mean) / std
    normalise = Normalise(model.mean, model.std, torch.device("cpu"))
    torch.testing.assert_close(normalise(pixels), expected)
