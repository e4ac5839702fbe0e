import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import v2

from cifarnet.augment.mixing import Mixing, Pairs, mixed
from cifarnet.settings.augmentation import AugmentationSettings

CLASSES = 4


def mixing(rank: int = 0, seed: int = 42, **settings: object) -> Mixing:
    return Mixing(AugmentationSettings(**settings), seed, CLASSES, rank)


def batch(count: int = 6, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, size, size, generator=generator)
    return images.contiguous(memory_format=torch.channels_last), torch.arange(count) % CLASSES


def draws(count: int, size: int = 32, **settings: object) -> list[Pairs | None]:
    mix = mixing(**settings)
    return [mix.draw(16, size, (1, step, 0)) for step in range(count)]


def as_the_papers(images, labels, pairs) -> tuple[np.ndarray, np.ndarray]:
    """Images and soft labels by the papers' formulas, in float64: each image mixed with its
    partner, which gets what the drawn share leaves, however large that is."""
    images, one_hot = images.double().numpy(), np.eye(CLASSES)[labels.numpy()]
    partner = pairs.partner.numpy()
    if pairs.box is None:
        result = pairs.share * images + (1 - pairs.share) * images[partner]
    else:
        mask = np.ones(images.shape[2:])
        top, bottom, left, right = pairs.box
        mask[top:bottom, left:right] = 0
        assert mask.mean() == pytest.approx(pairs.share)
        result = mask * images + (1 - mask) * images[partner]
    return result, pairs.share * one_hot + (1 - pairs.share) * one_hot[partner]


@given(kind=st.sampled_from(["mixup", "cutmix"]), step=st.integers(0, 10**6))
def test_a_batch_holds_the_images_and_soft_labels_of_the_papers(kind, step):
    """Where the share is below a half, image and partner change places: the same batch for the
    opposite permutation, with each image where its own share is the larger one."""
    mix, (images, labels) = mixing(**{kind: 0.7}), batch()
    place = (2, step, 1)
    pairs = mix.draw(6, 8, place)
    seen, shares = mix(images, labels, place)
    if pairs.share >= 0.5:
        expected, soft = as_the_papers(images, labels, pairs)
    else:
        back = pairs._replace(partner=pairs.partner.argsort())
        expected, soft = (values[pairs.partner] for values in as_the_papers(images, labels, back))
    np.testing.assert_allclose(seen, expected, atol=1e-5)
    np.testing.assert_allclose(shares, soft, atol=1e-6)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert (shares[torch.arange(6), labels] >= 0.5 - 1e-6).all()
    assert seen.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, batch()[0])  # untouched


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_the_same_pairs_give_the_images_of_torchvision(kind):
    images, labels = batch()
    theirs = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[kind](num_classes=CLASSES)
    soft = torch.eye(CLASSES)[labels]
    for pairs in draws(20, 8, **{kind: 1.0}):
        if pairs.share < 0.5:
            continue
        pairs = pairs._replace(partner=torch.arange(6).roll(1))  # as torchvision pairs them
        top, bottom, left, right = pairs.box or (0, 0, 0, 0)
        params = {"labels": labels, "batch_size": 6, "box": (left, top, right, bottom)}
        params |= {"lam": pairs.share, "lam_adjusted": pairs.share}
        seen, shares = mixed(images, soft, pairs)
        torch.testing.assert_close(seen, theirs.transform(images, params))
        torch.testing.assert_close(shares, theirs.transform(labels, params))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_and_boxes_are_drawn_as_in_torchvision(alpha):
    """Equal distributions of shares, corners and sides, by Kolmogorov and Smirnov."""
    for ours in draws(1, mixup=alpha):
        assert (ours.box, sorted(ours.partner.tolist())) == (None, list(range(16)))
    shares = [pairs.share for pairs in draws(800, mixup=alpha)]
    assert stats.kstest(shares, "beta", (alpha, alpha)).pvalue > 0.001
    torch.manual_seed(0)
    theirs = v2.CutMix(alpha=alpha, num_classes=CLASSES)
    params = [theirs.make_params([torch.zeros(1, 3, 32, 32)]) for _ in range(800)]
    boxes = np.array([p["box"] for p in params])[:, [1, 3, 0, 2]]
    ours = draws(800, cutmix=alpha)
    both = [
        ([pairs.share for pairs in ours], [p["lam_adjusted"] for p in params]),
        *zip(np.array([pairs.box for pairs in ours]).T, boxes.T, strict=True),
    ]
    for sample, expected in both:
        assert stats.ks_2samp(sample, expected).pvalue > 0.001


def test_batches_are_mixed_with_their_probability_by_either_way():
    drawn = draws(1000, mixup=0.3, cutmix=1.0, mix_p=0.6)
    kinds = ["none" if pairs is None else "cutmix" if pairs.box else "mixup" for pairs in drawn]
    assert abs(kinds.count("none") - 400) < 50
    assert abs(kinds.count("mixup") - 300) < 50
    assert all(draws(100, mixup=1.0)) and not any(draws(100, cutmix=1.0, mix_p=0.0))


def test_draws_depend_on_the_seed_the_place_and_the_rank_only():
    images, labels = batch()

    def seen(place=(3, 5, 1), **settings):
        return mixing(mixup=1.0, **settings)(images, labels, place)[0]

    assert torch.equal(seen(), seen())
    others = [seen((4, 5, 1)), seen((3, 6, 1)), seen((3, 5, 0)), seen(seed=1), seen(rank=1)]
    assert not any(torch.equal(other, seen()) for other in others)


@pytest.mark.parametrize("count", [0, 1])
def test_an_image_without_a_partner_stays_as_it_is(count):
    images, labels = batch(count)
    seen, shares = mixing(mixup=1.0, cutmix=1.0)(images, labels, (1, 0, 0))
    assert torch.equal(seen, images)
    assert shares.tolist() == [[1, 0, 0, 0]] * count
