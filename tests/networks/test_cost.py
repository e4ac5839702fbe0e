import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from cifarnet.networks.build import build_model, parameter_count
from cifarnet.networks.cost import multiply_adds, training_memory
from cifarnet.settings.network import NetworkSettings

# Blocks of CIFARNet: channels in and out, side of the output, kernels 1x1 (two with a shortcut).
PUBLISHED = [(40, 128, 32, 2), (128, 240, 32, 2), (240, 384, 16, 1)]
TWICE_AS_WIDE = [(2 * i, 2 * o, *how) for i, o, *how in PUBLISHED]
A_STEP_LARGER = [(48, 144, 36, 2), (144, 264, 36, 2), (264, 424, 18, 1), (424, 424, 18, 1)]


def by_hand(blocks, first=(40, 32), head=384) -> int:
    """The sum of k * k * in / groups * out * height * width."""
    total = 9 * 3 * first[0] * first[1] ** 2 + head * 10
    for inside, outside, side, kernels in blocks:
        total += (9 * inside + kernels * inside * outside) * side**2
    return total


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 100_204_288),
        ({"attention": "eca"}, by_hand(PUBLISHED) + 5 * (128 + 240 + 384)),
        ({"attention": "spatial", "attention_at": "4"}, by_hand(PUBLISHED) + 2 * 49 * 16**2),
        ({"depth": 1.3}, by_hand([*PUBLISHED, (384, 384, 16, 1)])),
        ({"width": 2.0}, by_hand(TWICE_AS_WIDE, (80, 32), 768)),
        ({"compound_scale": 1.0}, by_hand(A_STEP_LARGER, (48, 36), 424)),
    ],
    ids=str,
)
def test_multiply_adds_of_cifarnet(changes, expected):
    assert multiply_adds(build_model(NetworkSettings(**changes), 10), 32) == expected


def test_training_memory_is_twice_what_the_forward_pass_keeps():
    """conv keeps its input, ReLU its output; the weights are not counted."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    assert training_memory(model, 16) == 2 * (3 + 4) * 16 * 16 * 4


def test_memory_is_measured_without_a_word_to_other_ranks(monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    expected = training_memory(model, 16)
    monkeypatch.delattr(nn.SyncBatchNorm, "forward")
    assert training_memory(nn.SyncBatchNorm.convert_sync_batchnorm(model), 16) == expected


def test_looking_changes_nothing():
    model = build_model(NetworkSettings(compound_scale=1.0, dropout=0.5), 10).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    multiply_adds(model, 32)
    training_memory(model, 32)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_figures_in_the_guide_are_these():
    guide = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    for scale in (0, 1, 2):
        model = build_model(NetworkSettings(compound_scale=scale), 10)
        count, work = parameter_count(model), multiply_adds(model, 32) / 1e6
        assert re.search(rf"^\| {scale} \| .* \| {count:,} \| {work:.1f} million \|$", guide, re.M)
