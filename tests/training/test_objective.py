import copy
import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F
from support.small_runs import small_run, small_splits

from cifarnet.augment.mixing import Mixing
from cifarnet.core.device import init_process
from cifarnet.networks.build import build_model
from cifarnet.settings.augmentation import AugmentationSettings
from cifarnet.settings.network import NetworkSettings
from cifarnet.settings.precision import PrecisionSettings
from cifarnet.settings.training import TrainingSettings
from cifarnet.training.objective import (
    Distillation,
    Labels,
    Mixed,
    balanced_weights,
    distillation_loss,
    label_objective,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.3, 0.25, 0.2)


def trained_network(**settings):
    return copy.deepcopy(_trained_network(**settings))


@functools.cache
def _trained_network(**settings):
    """Random weights, and the running statistics of some batches."""
    torch.manual_seed(3)
    model = build_model(NetworkSettings(dropout=0.0, **settings), 2).train()
    for _ in range(30):
        model(torch.randn(16, 3, 32, 32))
    return model.eval()


def test_the_loss_of_labels_is_summed_over_images():
    logits, labels = torch.randn(5, 4), torch.arange(5) % 4
    loss, returned = Labels()(lambda images: logits, torch.zeros(5, 3, 1, 1), labels)
    assert returned is logits
    expected = -logits.log_softmax(1)[torch.arange(5), labels].sum()
    torch.testing.assert_close(loss, expected)


def test_the_flags_choose_smoothing_and_weights():
    labels = torch.tensor([0] * 6 + [1] * 2 + [2])
    default = label_objective(TrainingSettings(), labels, 3)
    assert (default.smoothing, default.weights) == (0.1, None)
    settings = TrainingSettings(class_weights="balanced", label_smoothing=0.0)
    balanced = label_objective(settings, labels, 3)
    assert balanced.smoothing == 0
    torch.testing.assert_close(balanced.weights, balanced_weights(labels, 3))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_balanced_classes_weigh_the_same_and_images_one_on_average(smoothing):
    labels = torch.tensor([0] * 6 + [1] * 2 + [2])
    weights = balanced_weights(labels, 3)
    torch.testing.assert_close(weights, torch.tensor([0.5, 1.5, 3.0]))
    assert weights[labels].mean().item() == pytest.approx(1)
    logits = torch.randn(9, 3)
    loss, _ = Labels(smoothing, weights)(lambda images: logits, torch.zeros(9, 3, 1, 1), labels)
    each = Labels(smoothing)
    of_image = [
        each(lambda images, i=i: logits[i : i + 1], None, labels[i : i + 1])[0] for i in range(9)
    ]
    of_class = [torch.stack(of_image)[labels == c].mean() for c in range(3)]
    torch.testing.assert_close(loss, 9 * torch.stack(of_class).mean())


def test_the_loss_is_the_divergence_of_the_flattened_probabilities():
    """Against its definition, sum p log(p/q), and its value and gradient where both agree."""
    logits, taught = (torch.randn(5, 4, dtype=torch.float64) * 3 for _ in range(2))
    p, q = ((x / 2).exp() / (x / 2).exp().sum(1, keepdim=True) for x in (taught, logits))
    expected = 4 * (p * (p / q).log()).sum().item()
    assert distillation_loss(logits, taught).item() == pytest.approx(expected)
    same = taught.clone().requires_grad_()
    loss = distillation_loss(same, taught + 7)  # logits are right up to a constant
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert same.grad.abs().max() < 1e-12


def halves(images, labels, place):
    """A mix for tests: 70 % of each image and 30 % of the one before."""
    one_hot = F.one_hot(labels, 4).double()
    return tuple(0.7 * x + 0.3 * x.roll(1, 0) for x in (images, one_hot))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 1.0, 0.25]).double()])
def test_the_loss_of_mixed_labels_is_the_mix_of_the_losses(smoothing, weights):
    head = torch.nn.Linear(3, 4).double()
    images, labels = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 4
    objective = Labels(smoothing, weights)
    loss, logits = Mixed(objective, halves)(head, images, labels, (1, 2, 3))
    torch.testing.assert_close(logits, head(0.7 * images + 0.3 * images.roll(1, 0)))
    own, other = (objective(lambda x: logits, None, y)[0] for y in (labels, labels.roll(1)))
    torch.testing.assert_close(loss, 0.7 * own + 0.3 * other)


def test_a_mix_is_told_its_place():
    places = []
    mix = Mixed(Labels(0.1), lambda *batch: places.append(batch[2]) or batch[:2])
    run = small_run(objective=mix, epochs=2, accumulate=2, batch_size=12)
    run.fit()
    steps_and_parts = [(step, part) for step in (0, 1) for part in (0, 1)]
    assert places == [(epoch, *each) for epoch in (1, 2) for each in steps_and_parts]


def test_a_teacher_sees_the_mixed_images():
    teacher = trained_network()
    objective = Distillation(
        [(teacher, (MEAN, STD))], init_process(PrecisionSettings(device="cpu")), (MEAN, STD)
    )
    images, labels = torch.randn(6, 3, 32, 32), torch.arange(6) % 2
    student = build_model(NetworkSettings(dropout=0.0), 2).eval()
    loss, _ = Mixed(objective, halves)(student, images, labels)
    mixed = 0.7 * images + 0.3 * images.roll(1, 0)
    expected = distillation_loss(student(mixed), teacher(mixed))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", ["cifarnet", "residual"])
def test_a_teacher_sees_the_images_as_it_was_trained_to(network):
    """Normalised by its own statistics, whatever those of the run."""
    teacher, pixels = trained_network(network=network), torch.rand(6, 3, 32, 32)

    def normalised(mean, std):
        return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)

    other = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    with torch.no_grad():
        expected = teacher(normalised(MEAN, STD))
    objective = Distillation(
        [(teacher, (MEAN, STD))], init_process(PrecisionSettings(device="cpu")), other
    )
    logits = objective.teacher_logits(normalised(*other))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_share_without_images_has_a_loss_of_zero():
    teachers = [(trained_network(), (MEAN, STD))]
    objective = Distillation(teachers, init_process(PrecisionSettings(device="cpu")), (MEAN, STD))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
    loss, logits = objective(network, torch.zeros(0, 3, 1, 1), torch.zeros(0, dtype=torch.int64))
    assert (loss.item(), logits.shape) == (0, (0, 2))
    loss.backward()
    assert network[1].weight.grad.abs().max() == 0


@torch.no_grad()
def test_a_teacher_may_look_at_the_mirror_image_too():
    teacher, images = trained_network(network="lite"), torch.randn(6, 3, 32, 32)
    runtime = init_process(PrecisionSettings(device="cpu"))
    teachers = [(teacher, (MEAN, STD))]
    both = Distillation(teachers, runtime, (MEAN, STD), "flip").teacher_logits(images)
    expected = (teacher(images) + teacher(images.flip(3))) / 2
    torch.testing.assert_close(both, expected, atol=1e-5, rtol=1e-5)
    assert (both - teacher(images)).abs().max() > 1e-3


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_teacher_is_asked_in_the_first_epochs_and_remembered_where_they_repeat(accumulate):
    """The run is the same as one whose teacher is asked again."""
    splits, seen = small_splits(), []
    teacher = trained_network(network="lite")
    teacher.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))

    def trained(remember):
        seen.clear()
        statistics = (splits.mean, splits.std)
        runtime = init_process(PrecisionSettings(device="cpu"))
        objective = Distillation([(teacher, statistics)], runtime, statistics, repeats=remember)
        settings = {"epochs": 5, "teacher": "lite", "teacher_epochs": 2, "accumulate": accumulate}
        mix = Mixing(AugmentationSettings(mixup=0.5), 42, 2)
        run = small_run(
            splits,
            objective=Mixed(objective, mix),
            network="lite",
            augment="full",
            batch_size=12,
            **settings,
        )
        run.fit()
        return run.learner.network.state_dict(), list(seen)

    again, all_images = trained(remember=False)
    once, images = trained(remember=True)
    epoch = 2 * accumulate  # batches
    assert (len(all_images), len(images)) == (5 * epoch, 2 * epoch)
    for at, batch in enumerate(all_images):
        assert torch.equal(batch, images[at % (2 * epoch)])
    assert not torch.equal(images[0], images[epoch])
    assert all(torch.equal(again[name], once[name]) for name in again)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_goes_down_the_gradient_of_the_divergence_from_what_the_teacher_says(accumulate):
    """The teacher looks at full size while the student learns on smaller images, and is no part
    of what is trained."""
    settings = {
        "batch_size": 24,
        "epochs": 1,
        "dropout": 0.0,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "lr": 0.05,
        "image_sizes": "16",
        "accumulate": accumulate,
        "max_grad_norm": 0.0,
    }
    teacher, splits = trained_network(), dataclasses.replace(small_splits(), mean=MEAN, std=STD)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    statistics = (splits.mean, splits.std)
    objective = Distillation(
        [(teacher, (MEAN, STD))], init_process(PrecisionSettings(device="cpu")), statistics
    )
    run = small_run(splits, objective=objective, **settings)
    student = build_model(NetworkSettings(dropout=0.0), 2)
    student.load_state_dict(run.learner.network.state_dict())
    images, _ = next(run.data.train.epoch(1))
    with torch.no_grad():
        taught = (teacher(images) / 2).softmax(1)
    small = F.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    loss = 0
    for part, right in zip(
        small.tensor_split(accumulate), taught.tensor_split(accumulate), strict=True
    ):
        loss = loss + 4 / 24 * (right * (right.log() - (student(part) / 2).log_softmax(1))).sum()
    loss.backward()
    assert run.fit()[0].train_loss == pytest.approx(loss.item(), rel=1e-4)
    for ours, expected in zip(run.learner.network.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(ours, expected - 0.05 * expected.grad, atol=1e-5, rtol=1e-3)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
