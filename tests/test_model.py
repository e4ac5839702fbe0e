import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from support.random_models import CLASSES, noise, random_model
from support.snapshots import make_snapshot

from cifarnet.checkpoints import paths
from cifarnet.checkpoints.snapshots import pack
from cifarnet.checkpoints.trained import write_weights
from cifarnet.core.errors import UserError
from cifarnet.inference.classifier import Classifier
from cifarnet.networks.build import build_model
from cifarnet.settings.network import NetworkSettings
from model import load_pretrained, model_table, start_from

SMALL = random_model(width=0.1)
OTHER = random_model(width=0.2)
PIXELS = noise(4)


@pytest.fixture
def files(tmp_path, monkeypatch) -> None:
    """A result `mine`, w.safetensors and last.pth are `SMALL`; other.safetensors is `OTHER`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    (tmp_path / "results" / "mine").mkdir(parents=True)
    write_weights(SMALL, tmp_path / "results" / "mine" / paths.WEIGHTS_FILE)
    write_weights(SMALL, Path("w.safetensors"))
    write_weights(OTHER, Path("other.safetensors"))
    Path("last.pth").write_bytes(pack(dataclasses.replace(make_snapshot(), model=SMALL)))


# --- trained networks ---


@pytest.mark.usefixtures("files")
@torch.inference_mode()
@pytest.mark.parametrize("tta", ["none", "flip", "shift"])
@pytest.mark.parametrize(
    "name", ["mine", "last.pth", "w.safetensors", Path("w.safetensors"), "mine,other.safetensors"]
)
def test_a_trained_network_is_always_a_classifier(name, tta):
    classifier = load_pretrained(name, tta)
    assert isinstance(classifier, Classifier)
    assert (classifier.classes, classifier.image_size, classifier.tta) == (CLASSES, 32, tta)
    assert not any(part.training for part in classifier.modules())
    probabilities = classifier(PIXELS)
    assert (probabilities.dtype, probabilities.shape) == (torch.float32, (4, 3))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))
    torch.testing.assert_close(probabilities, classifier.logits(PIXELS).softmax(1))
    if name != "mine,other.safetensors":
        assert torch.equal(probabilities, load_pretrained("mine", tta)(PIXELS))
    else:
        parts = [load_pretrained(part, tta)(PIXELS) for part in name.split(",")]
        torch.testing.assert_close(probabilities, (parts[0] + parts[1]) / 2)


@pytest.mark.usefixtures("files")
def test_a_path_is_not_the_name_of_a_result(tmp_path):
    Path("mine").write_bytes(Path("other.safetensors").read_bytes())
    sources = [load_pretrained(name).source for name in ("mine", Path("mine"))]
    assert sources == ["mine", str(tmp_path / "mine")]
    assert load_pretrained(Path("mine")).infos[0].sha256 == OTHER.sha256
    with pytest.raises(UserError, match="no test-time augmentation 'crop'"):
        load_pretrained("mine", "crop")


# --- starting from one ---


@pytest.mark.parametrize(
    "classes", [CLASSES, ("star", "bar", "disc"), ("disc", "bar"), ("x", "star"), tuple("abc")]
)
def test_a_start_keeps_the_rows_of_the_head_of_known_classes(classes):
    model = build_model(SMALL.network, len(classes))
    fresh = copy.deepcopy(model.state_dict())
    known = set(classes) & set(CLASSES)
    left = [] if len(known) == len(classes) else ["head.weight", "head.bias"]
    assert start_from(model, SMALL, classes) == (left, len(known))
    for name, value in model.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(value, SMALL.weights[name]), name
            continue
        for row, label, before in zip(value, classes, fresh[name], strict=True):
            expected = SMALL.weights[name][CLASSES.index(label)] if label in known else before
            assert torch.equal(row, expected)


def test_a_start_takes_what_fits_by_name_shape_and_type_and_names_the_rest():
    weights = dict(SMALL.weights)
    weights["c4.conv.1.weight"] = torch.zeros(2, 2)
    weights["c2.bn.weight"] = weights["c2.bn.weight"].double()
    weights["unknown.weight"] = weights.pop("c1.bn.bias")
    model = build_model(SMALL.network, 3)
    fresh = copy.deepcopy(model.state_dict())
    left, rows = start_from(model, dataclasses.replace(SMALL, weights=weights), CLASSES)
    assert sorted(left) == ["c1.bn.bias", "c2.bn.weight", "c4.conv.1.weight"] and rows == 3
    for name, value in model.state_dict().items():
        assert torch.equal(value, (fresh if name in left else weights)[name]), name


@pytest.mark.parametrize("classes", [tuple("abc"), CLASSES])
@pytest.mark.parametrize("other", [{"network": "residual"}, {"width": 2.0}])
def test_a_start_from_which_nothing_fits_is_refused(classes, other):
    """A head belongs to the blocks before it: its bias alone is no start."""
    model = build_model(NetworkSettings(**other), 3)
    with pytest.raises(UserError, match=r"no weights of .* fit this (ResidualNet|CIFARNet)"):
        start_from(model, SMALL, classes)


# --- the table ---


def test_the_table_changes_nothing():
    model = build_model(NetworkSettings(), 10).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert "Total params: 174,762" in model_table(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
