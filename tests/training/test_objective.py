import dataclasses

import pytest
import torch
import torch.nn.functional as F
from test_train import make_trainer, small_splits

from cifarnet.checkpoints.weights import Weights
from cifarnet.core.device import start
from cifarnet.core.errors import UserError
from cifarnet.core.settings import Settings
from cifarnet.images.imageset import Splits
from cifarnet.networks.residual import ResidualNet
from cifarnet.training.objective import Teacher, distillation_loss
from model import build_model, restore

MEAN, STD = (0.5, 0.4, 0.3), (0.3, 0.25, 0.2)


def trained_network(classes=("a", "b"), mean=MEAN, std=STD, **settings) -> Weights:
    """Of random weights, whose running statistics are those of some batches."""
    config = Settings(dropout=0.0, **settings)
    torch.manual_seed(3)
    model = build_model(config, len(classes)).train()
    for _ in range(30):
        model(torch.randn(16, 3, 32, 32))
    kept = dataclasses.asdict(config)
    return Weights(
        model.state_dict(),
        1,
        kept,
        list(classes),
        list(mean),
        list(std),
        "noise",
        "",
        None,
        "",
        "t.pth",
    )


def splits_of(mean=MEAN, std=STD) -> Splits:
    return dataclasses.replace(small_splits(), mean=mean, std=std)


def test_the_loss_is_the_divergence_of_the_flattened_probabilities():
    """Against its definition, sum p log(p/q), and its value and gradient where both sides agree."""
    logits, taught = (torch.randn(5, 4, dtype=torch.float64) * 3 for _ in range(2))
    p, q = ((x / 2).exp() / (x / 2).exp().sum(1, keepdim=True) for x in (taught, logits))
    assert distillation_loss(logits, taught).item() == pytest.approx(
        4 * (p * (p / q).log()).sum().item()
    )
    same = taught.clone().requires_grad_()
    loss = distillation_loss(same, taught + 7)  # logits are right up to a constant
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert same.grad.abs().max() < 1e-12


@pytest.mark.parametrize("network", ["cifarnet", "residual"])
def test_a_teacher_sees_the_images_as_it_was_trained_to(network):
    """Normalised by its own statistics, whatever the student's."""
    trained = trained_network(network=network)
    pixels = torch.rand(6, 3, 32, 32)

    def normalised(mean, std):
        return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)

    other = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    teacher = Teacher(trained, splits_of(*other), start(Settings(device="cpu")))
    with torch.no_grad():
        expected = restore(trained)(normalised(MEAN, STD))
    torch.testing.assert_close(teacher(normalised(*other)), expected, atol=1e-4, rtol=1e-4)
    assert teacher(pixels[:0]).shape == (0, 2)


def test_a_teacher_for_other_classes_is_refused():
    differing = {
        ("a", "b", "c"): "c in place of none",
        ("a",): "none in place of b",
        ("b", "a"): "b in place of a",
    }
    for classes, words in differing.items():
        with pytest.raises(UserError, match=rf"t\.pth is for other classes .* \({words}\)"):
            Teacher(trained_network(classes), splits_of(), start(Settings(device="cpu")))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_goes_down_the_gradient_of_the_divergence_from_what_the_teacher_says(accumulate):
    """The teacher looks at full size while the student learns on smaller images, and is no part of what is trained."""
    trained = trained_network()
    settings = {
        "batch_size": 24,
        "epochs": 1,
        "dropout": 0.0,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "lr": 0.05,
    }
    splits = splits_of()
    trainer = make_trainer(
        splits, image_sizes="16", accumulate=accumulate, max_grad_norm=0.0, **settings
    )
    trainer.teacher = Teacher(trained, splits, trainer.runtime)
    student = build_model(Settings(dropout=0.0), 2)
    student.load_state_dict(trainer.model.state_dict())
    images, _ = next(trainer.batches.epoch(1))
    with torch.no_grad():
        taught = (restore(trained)(images) / 2).softmax(1)
    small = F.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    loss = 0
    for part, right in zip(
        small.tensor_split(accumulate), taught.tensor_split(accumulate), strict=True
    ):
        loss = loss + 4 / 24 * (right * (right.log() - (student(part) / 2).log_softmax(1))).sum()
    loss.backward()
    trainer.fit(lambda row: None)
    assert trainer.history[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-4)
    for ours, expected in zip(trainer.model.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(ours, expected - 0.05 * expected.grad, atol=1e-5, rtol=1e-3)
    for name, value in trainer.teacher.model.state_dict().items():
        assert torch.equal(value, trained.model[name]), name


def test_the_larger_network_in_evaluation_is_what_its_layers_say():
    """Against plain functional calls, in 64 bits; a normalisation is folded into its convolution there."""
    trained = trained_network(network="residual")
    model = restore(trained).double()
    state = model.state_dict()

    def conv(x, name):
        x = F.conv2d(x, state[f"{name}.conv.weight"], padding=1)
        s = {
            key: state[f"{name}.bn.{key}"]
            for key in ("running_mean", "running_var", "weight", "bias")
        }
        return F.batch_norm(x, s["running_mean"], s["running_var"], s["weight"], s["bias"])

    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    x = F.relu(conv(images, "stem"))
    for i in range(3):
        y = F.relu(F.max_pool2d(conv(x, f"blocks.{i}.down"), 2))
        x = y + F.relu(conv(F.relu(conv(y, f"blocks.{i}.residual.0")), f"blocks.{i}.residual.1"))
    expected = F.linear(x.flatten(2).max(2).values, state["head.weight"], state["head.bias"])
    torch.testing.assert_close(model(images), expected)


def test_the_larger_networks_size():
    assert sum(p.numel() for p in ResidualNet().parameters()) == 2_494_890
    assert ResidualNet(7)(torch.randn(2, 3, 16, 21)).shape == (2, 7)
    assert ResidualNet()(torch.randn(1, 3, 16, 16)).shape == (1, 10)  # a last batch of one image
    with pytest.raises(UserError, match="--image_sizes 15,32 is too small for --network residual"):
        Settings(network="residual", image_sizes="15,32")
