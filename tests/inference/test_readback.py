import pytest
import torch

from cifarnet.inference.readback import compare, compute_logits, top1


def test_differences_are_measured():
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    logits = torch.tensor([[0.0, 0.75], [0.25, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert compare(expected, logits) == (2.0, 0.75)
    assert top1(logits, torch.tensor([1, 1, 1, 1])) == 0.5
    logits[2, 1] = torch.nan
    assert compare(expected, logits)[0] == torch.inf


@pytest.mark.parametrize(
    ("side", "parts"), [(32, [256, 256, 88]), (16, [600]), (64, [64] * 9 + [24])]
)
def test_all_images_are_asked_in_parts_that_take_equal_memory(side, parts):
    pixels = torch.arange(600, dtype=torch.float32).view(600, 1, 1, 1).expand(600, 1, side, side)
    sizes = []

    def classify(part):
        sizes.append(len(part))
        return 2 * part[:, :, 0, 0]

    assert torch.equal(compute_logits(classify, pixels), 2 * pixels[:, :, 0, 0])
    assert sizes == parts
