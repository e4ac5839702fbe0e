import copy
import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from cifarnet.checkpoints import places
from cifarnet.checkpoints.weights import read_weights
from cifarnet.core.device import init_process
from cifarnet.core.errors import UserError
from cifarnet.images.imageset import ImageSet
from cifarnet.images.pictures import read_image
from cifarnet.networks.fast import use_fast_forms
from cifarnet.reporting.metrics import predict
from cifarnet.settings.network import NetworkSettings
from cifarnet.settings.precision import PrecisionSettings
from data import EvalBatches
from model import (
    CIFARNet,
    build_classifier,
    build_model,
    load_pretrained,
    model_table,
    parameter_count,
    restore,
    start_from,
)

ROWS = {"c1": 1_160, "c2": 11_112, "c3": 63_552, "c4": 95_088, "head": 3_850}


def test_parameters_row_by_row():
    model = CIFARNet()
    rows = {name: parameter_count(part) for name, part in model.named_children()}
    assert rows == ROWS | {"dropout": 0}
    assert parameter_count(model) == sum(ROWS.values()) == 174_762


def test_convolutions_have_4d_weights_and_no_bias():
    convolutions = [
        module for module in CIFARNet().modules() if isinstance(module, torch.nn.Conv2d)
    ]
    assert len(convolutions) == 9
    assert all(conv.weight.ndim == 4 and conv.bias is None for conv in convolutions)


def test_shapes_block_by_block():
    model, x = CIFARNet(classes=7).eval(), torch.randn(2, 3, 32, 32)
    for block, shape in (
        ("c1", (40, 32, 32)),
        ("c2", (128, 32, 32)),
        ("c3", (240, 32, 32)),
        ("c4", (384, 16, 16)),
    ):
        x = getattr(model, block)(x)
        assert x.shape == (2, *shape)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert model(torch.randn(1, 3, 45, 30)).shape == (1, 7)


def reference_forward(state, x):
    """The published table, written down a second time, in plain functional calls."""

    def bn(x, name):
        s = {
            key: state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        }
        return F.batch_norm(
            x, s["running_mean"], s["running_var"], s["weight"], s["bias"], training=False
        )

    def separable(x, name, channels, **settings):
        x = F.conv2d(x, state[f"{name}.conv.0.weight"], groups=channels, **settings)
        return bn(F.conv2d(x, state[f"{name}.conv.1.weight"]), f"{name}.bn")

    def shortcut(x, name):
        return bn(F.conv2d(x, state[f"{name}.shortcut.0.weight"]), f"{name}.shortcut.1")

    x = F.relu(bn(F.conv2d(x, state["c1.conv.weight"], padding=1), "c1.bn"))
    x = F.relu(separable(x, "c2", 40, padding=1) + shortcut(x, "c2"))
    x = F.relu(separable(x, "c3", 128, padding=4, dilation=4) + shortcut(x, "c3"))
    x = F.relu(separable(x, "c4", 240, padding=1, stride=2))
    return F.linear(x.mean((2, 3)), state["head.weight"], state["head.bias"])


def test_the_forward_pass_is_the_published_one():
    torch.manual_seed(0)
    model = CIFARNet(dropout=(0.5,) * 4)
    with torch.no_grad():
        model(torch.randn(8, 3, 32, 32))  # moves the running statistics away from 0 and 1
    model.eval()
    images = torch.randn(4, 3, 32, 32)
    state = {name: value.double() for name, value in model.state_dict().items()}
    torch.testing.assert_close(
        model(images).double(), reference_forward(state, images.double()), rtol=1e-4, atol=1e-5
    )


def test_fast_and_plain_forms_are_the_same_function():
    """In 64 bits no rounding hides a difference: outputs, gradients, running statistics."""
    torch.manual_seed(0)
    plain = CIFARNet().double()
    fast = use_fast_forms(copy.deepcopy(plain))
    images, labels = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.arange(4)
    for model in (fast, plain):
        F.cross_entropy(model(images), labels).backward()
    for (name, ours), expected in zip(fast.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-9, atol=1e-12, msg=name)
    for (name, ours), expected in zip(fast.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12, msg=name)
    torch.testing.assert_close(fast.eval()(images), plain.eval()(images), rtol=1e-9, atol=1e-12)


def test_each_block_has_its_dropout_in_training_only():
    model = build_model(NetworkSettings(dropout="0.5,0.4,0.3,0.2"), 10)
    images = torch.randn(2, 3, 32, 32)
    blocks = (model.c1, model.c2, model.c3, model)
    assert [block.dropout.p for block in blocks] == [0.5, 0.4, 0.3, 0.2]
    assert model.c4.dropout.p == 0
    assert (
        build_model(NetworkSettings(network="residual", dropout="0.5,0.4,0.3,0.2"), 10).dropout.p
        == 0.2
    )
    dropped = (model.c1(images) == 0).all(dim=3).all(dim=2)  # [B, channels]
    assert 0.3 < dropped.float().mean() < 0.7
    model.eval()
    torch.testing.assert_close(model(images), model(images))


def test_logits_are_32_bit_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert CIFARNet()(torch.randn(2, 3, 32, 32)).dtype is torch.float32


def test_the_table_changes_nothing():
    model = build_model(NetworkSettings(), 10).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    table = model_table(model)
    assert "Total params: 174,762" in table
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("classes", [2, 100])
def test_the_head_follows_the_data(classes):
    assert (
        parameter_count(build_model(NetworkSettings(), classes)) == 174_762 - 3_850 + 385 * classes
    )


# --- trained networks ---


def test_a_pretrained_network_is_the_trained_one(trained):
    model, classes, normalise = load_pretrained(trained.weights)
    snapshot = torch.load(trained.snapshot)
    assert classes == tuple(snapshot["classes"]) == ("bar", "disc", "star")
    assert not model.training
    assert all(
        torch.equal(value, snapshot["model"][name]) for name, value in model.state_dict().items()
    )
    images = torch.stack(
        [
            torch.from_numpy(read_image(path)[0])
            for path in sorted(trained.tree.glob("test/*/*.png"))
        ]
    )
    mean, std = (torch.tensor(snapshot[name])[:, None, None] for name in ("mean", "std"))
    expected = (images / 255 - mean) / std
    torch.testing.assert_close(normalise(images), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(normalise(images / 255), expected, rtol=1e-5, atol=1e-5)
    assert model(normalise(images)).argmax(dim=1).tolist() == [0] * 3 + [1] * 3 + [2] * 3


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_the_logits_of_one_network_are_not_changed_by_a_bit(trained, dtype):
    """They are those of the network and of images that the batches normalise."""
    held = read_weights(str(trained.weights))
    pixels = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)
    images = ImageSet(pixels, torch.arange(10) % 3, tuple(held.classes))
    runtime = dataclasses.replace(init_process(PrecisionSettings(device="cpu")), amp_dtype=dtype)
    normalised = EvalBatches(images, 4, runtime, tuple(held.mean), tuple(held.std))
    expected, _ = predict(restore(held), normalised, runtime)
    classifier = build_classifier([held], amp=dtype is not None)
    logits, labels = predict(classifier, EvalBatches(images, 4, runtime), runtime)
    assert torch.equal(logits, expected)
    assert torch.equal(labels, images.labels)


def test_only_networks_trained_with_amp_are_autocast_unless_it_is_said(trained):
    held = read_weights(str(trained.weights))
    with_amp = dataclasses.replace(held, config=held.config | {"amp": True})
    for said, expected in ((None, [False, True]), (True, [True] * 2), (False, [False] * 2)):
        members = build_classifier([held, with_amp], amp=said).members
        assert [member.amp for member in members] == expected


def test_ensembles_and_augmented_networks_take_pixels(trained):
    pictures = sorted(trained.tree.glob("test/*/*.png"))
    pixels = torch.stack([torch.from_numpy(read_image(path)[0]) for path in pictures])
    network, _, normalise = load_pretrained(trained.weights)

    def shares(images):
        return network(normalise(images)).double().softmax(1)

    mirrored = (shares(pixels) + shares(pixels.flip(3))) / 2
    twice = f"{trained.weights},{trained.weights}"
    for name, tta, expected in (
        (trained.weights, "flip", mirrored),
        (twice, "none", shares(pixels)),
        (twice, "flip", mirrored),
    ):
        model, classes, prepare = load_pretrained(name, tta=tta)
        assert (classes, model.training) == (("bar", "disc", "star"), False)
        assert torch.equal(prepare(pixels), pixels)
        found = model(prepare(pixels)).double().exp()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="no test-time augmentation 'crop'"):
        load_pretrained(trained.weights, tta="crop")


def test_a_path_is_no_name_of_a_result(trained, tmp_path, monkeypatch):
    (tmp_path / "results" / "mine").mkdir(parents=True)
    (tmp_path / "results" / "mine" / places.WEIGHTS_FILE).write_bytes(b"another")
    monkeypatch.setattr(places, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_bytes(trained.weights.read_bytes())
    assert load_pretrained(Path("mine"))[1] == ("bar", "disc", "star")
    with pytest.raises(UserError, match="no safetensors"):
        load_pretrained("mine")


def test_another_networks_weights_are_refused(trained):
    held = read_weights(str(trained.weights))
    for strange in (
        {"weight": torch.ones(3)},
        held.model | {"c1.conv.weight": torch.ones(40, 3, 5, 5)},
        {},
    ):
        with pytest.raises(UserError, match="do not fit this CIFARNet"):
            restore(dataclasses.replace(held, model=strange))


@pytest.mark.parametrize(
    "classes",
    [
        ("bar", "disc", "star"),
        ("star", "bar", "disc"),
        ("disc", "bar"),
        ("x", "star"),
        tuple("abc"),
    ],
)
def test_a_start_from_weights_keeps_the_rows_of_the_head_of_known_classes(trained, classes):
    held = read_weights(str(trained.weights))
    assert held.classes == ["bar", "disc", "star"]
    model = build_model(NetworkSettings(), len(classes))
    fresh = copy.deepcopy(model.state_dict())
    left = start_from(model, held, classes)
    known = set(classes) & set(held.classes)
    assert left == ([] if len(known) == len(classes) else ["head.weight", "head.bias"])
    for name, value in model.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(value, held.model[name]), name
            continue
        for row, of in zip(value, classes, strict=True):
            expected = held.model[name][held.classes.index(of)] if of in known else None
            assert torch.equal(
                row, fresh[name][classes.index(of)] if expected is None else expected
            )


def test_a_start_takes_what_fits_by_name_and_shape_and_names_the_rest(trained):
    held = read_weights(str(trained.weights))
    weights = dict(held.model)
    name = "c4.conv.1.weight"
    weights[name] = torch.zeros(2, 2)
    weights["unknown.weight"] = weights.pop("c1.bn.bias")
    model = build_model(NetworkSettings(), 3)
    fresh = copy.deepcopy(model.state_dict())
    left = start_from(model, dataclasses.replace(held, model=weights), held.classes)
    assert sorted(left) == ["c1.bn.bias", name]
    for key, value in model.state_dict().items():
        assert torch.equal(value, (fresh if key in left else weights)[key]), key


@pytest.mark.parametrize("classes", [tuple("abc"), ("bar", "disc", "star")])
@pytest.mark.parametrize("other", [{"network": "residual"}, {"width": 2.0}])
def test_a_start_from_which_nothing_fits_is_refused(trained, classes, other):
    """A head belongs to the blocks before it: its bias alone is no start."""
    held = read_weights(str(trained.weights))
    with pytest.raises(UserError, match=r"no weights of .* fit this (ResidualNet|CIFARNet)"):
        start_from(build_model(NetworkSettings(**other), 3), held, classes)
