"""Class activation maps add up to the logits."""

import pytest
import torch
from support.random_models import noise, random_model
from torch.testing import assert_close

from cifarnet.inference.class_maps import caution, class_maps, why_no_maps
from cifarnet.inference.classifier import Augmented, Ensemble, TorchClassifier

EXACT = (
    {"network": "lite"},
    *({}, {"width": 0.5}, {"depth": 2.0}, {"compound_scale": 2.0}, {"amp": True}),
    *({"attention": name} for name in ("eca", "se", "simam", "cbam", "spatial")),
)


@pytest.mark.parametrize("flags", EXACT, ids=str)
@pytest.mark.parametrize("size", [32, 20])
@torch.inference_mode()
def test_a_logit_is_the_mean_of_its_map_plus_the_bias(flags, size):
    classifier = TorchClassifier(random_model(size, **flags))
    pixels = noise(3, size)
    labels = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 1, 1]])
    assert why_no_maps(classifier) == ""
    maps = class_maps(classifier, pixels, labels)
    assert maps.shape[2] > 4 and maps.flatten(2).std(2).min() > 0  # they differ by place
    expected = TorchClassifier(random_model(size, **flags), amp=False).logits(pixels)
    sums = maps.mean((2, 3)) + classifier.network.head.bias[labels]
    assert_close(sums, expected.gather(1, labels), atol=1e-4, rtol=1e-5)


@torch.inference_mode()
def test_a_map_shows_where_the_image_changed():
    """The receptive field is 15 pixels wide: other places keep their values."""
    classifier = TorchClassifier(random_model())
    pixels = noise(1).repeat(2, 1, 1, 1)
    pixels[1, :, 24:28, 4:8] ^= 255
    one, other = class_maps(classifier, pixels, torch.zeros(2, 1, dtype=torch.int64))
    changed = ((one - other).abs() > 1e-4)[0]  # [16,16], two pixels each
    rows, columns = changed.nonzero().T
    assert rows.min() >= (24 - 8) // 2 and columns.max() <= (8 + 8) // 2
    assert changed[12:14, 2:4].any()


def test_networks_without_maps_say_why():
    one = TorchClassifier(random_model())
    residual = TorchClassifier(random_model(network="residual"))
    for classifier, words in (
        (residual, "residual takes the maximum"),
        (Ensemble([one, one]), "average over networks or views"),
        (Augmented(one, "flip"), "average over networks or views"),
    ):
        assert words in why_no_maps(classifier)


@pytest.mark.parametrize("network", ["cifarnet", "lite"])
@pytest.mark.parametrize("attention", ["spatial", "se"])
def test_attention_is_named(network, attention):
    words = caution(random_model(network=network, attention=attention))
    assert words.startswith(f"With attention ({attention}), each part may depend on")


@pytest.mark.parametrize("network", ["cifarnet", "lite"])
def test_the_receptive_field_is_named(network):
    """In evaluation, on an image that is larger than it."""
    model = random_model(96, network=network)
    images = torch.randn(9, 3, 96, 96, requires_grad=True)
    model.build().eval().features(images)[:, :, 12, 12].sum().backward()  # not at the border
    rows = images.grad.abs().sum((0, 1, 3)).nonzero()
    assert f"the {rows.max() - rows.min() + 1}x{len(rows)} pixels" in caution(model)


def test_receptive_fields_that_are_larger_are_named():
    assert caution(random_model(network="lite")) == "Each part depends on nearly the whole image."
    for flags in ({"depth": 2.0}, {"compound_scale": 1.0}):
        assert "on more than the 15x15 pixels around it." in caution(random_model(**flags))
