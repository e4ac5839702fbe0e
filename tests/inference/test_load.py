from pathlib import Path

import pytest
import torch
from support.snapshots import make_trained

from cifarnet.checkpoints.trained import write_weights
from cifarnet.core.errors import UserError
from cifarnet.inference.classifier import TorchClassifier
from cifarnet.inference.load import combine, load_classifier
from cifarnet.networks.build import build_model
from cifarnet.settings.network import NetworkSettings

PIXELS = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
SMALL = NetworkSettings(width=0.1)


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch) -> None:
    """a.safetensors and b.safetensors: networks with other weights, b trained with --amp."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        weights = build_model(SMALL, 2).state_dict()
        model = make_trained(weights, {"amp": name == "b"}, network=SMALL)
        write_weights(model, Path(f"{name}.safetensors"))


def test_several_names_are_an_ensemble_and_views_come_last():
    with torch.inference_mode():
        a, b = (load_classifier([f"{name}.safetensors"])(PIXELS) for name in "ab")
        both = load_classifier(["a.safetensors", "b.safetensors"])
        flipped = load_classifier(["a.safetensors", "b.safetensors"], "flip")
        torch.testing.assert_close(both(PIXELS), (a + b) / 2)
        expected = (both(PIXELS) + both(PIXELS.flip(3))) / 2
        torch.testing.assert_close(flipped(PIXELS), expected)
    assert (both.tta, flipped.tta) == ("none", "flip")
    for classifier in (both, flipped):
        assert [member.source for member in classifier.members] == [
            "a.safetensors",
            "b.safetensors",
        ]


def test_one_name_is_its_network_alone():
    classifier = load_classifier(["a.safetensors"])
    assert isinstance(classifier, TorchClassifier)
    assert combine([classifier]) is classifier


@pytest.mark.parametrize(("amp", "expected"), [(None, "01"), (True, "11"), (False, "00")])
def test_each_network_is_autocast_as_it_was_trained_unless_the_caller_decides(amp, expected):
    members = load_classifier(["a.safetensors", "b.safetensors"], amp=amp).members
    assert "".join(str(int(member.amp)) for member in members) == expected


def test_networks_that_do_not_fit_together_are_refused():
    weights = build_model(SMALL, 2).state_dict()
    odd = make_trained(weights, network=SMALL, classes=("a", "b"))
    write_weights(odd, Path("odd.safetensors"))
    with pytest.raises(UserError, match=r"a\.safetensors has ü as class 2, odd\.safetensors b"):
        load_classifier(["a.safetensors", "odd.safetensors"])
