"""Images and policies for tests of augmentation, and albumentations told what was drawn."""

import albumentations.augmentations.geometric.functional as geometric
import numpy as np
import torch
from torch import Tensor

from cifarnet.augment.batched import BatchedEngine
from cifarnet.augment.per_image import PerImageEngine
from cifarnet.augment.policy import APPLIED, Draws, Policy, build_policy, take
from cifarnet.augment.step import Step
from cifarnet.settings.augmentation import AugmentationSettings

MEAN = (0.5, 0.4, 0.3)
FILL = (128, 102, 76)  # round(255 * MEAN)
CPU = torch.device("cpu")
EXACT, ROUNDING = (0, 1.0), (1, 0.999)  # the largest difference, and the share of equal pixels


def policy_of(augment: str, image_size: int = 32, **settings: object) -> Policy:
    """The policy of --augment, with probability 0.5 of each step beyond light."""
    chosen = AugmentationSettings(augment=augment, **{"augment_p": 0.5, **settings})
    return build_policy(chosen, image_size)


def step_of(kind: type[Step], image_size: int = 32, **settings: object) -> Step:
    """A step by its flags, with probability 1 unless they say otherwise."""
    return kind(AugmentationSettings(**{"augment_p": 1.0, **settings}), image_size)


def pictures(count: int = 256, size: int = 32) -> Tensor:
    """Half noise, which shows any displaced pixel; half gentle slopes, as in photographs."""
    generator = torch.Generator().manual_seed(0)
    shape = (count // 2, 3, size, size)
    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    slopes = 255 * torch.rand(count - count // 2, 3, 4, 4, generator=generator)
    slopes = torch.nn.functional.interpolate(slopes, size=size, mode="bicubic").clamp(0, 255)
    return torch.cat([noise, slopes.byte()])


def coordinates() -> np.ndarray:
    """Each pixel tells its place: red is 8 times the column, green 8 times the row, blue 255."""
    rows, columns = np.mgrid[:32, :32]
    return np.stack([columns * 8, rows * 8, np.full((32, 32), 255)]).astype(np.uint8)


def draws_of(step: Step, count: int, **values: Tensor) -> Draws:
    """Draws of `step` alone, which changes all images; `values` replace drawn ones."""
    drawn = step.draw(count, torch.Generator().manual_seed(7))
    return {step.name: {APPLIED: torch.ones(count, dtype=torch.bool)} | drawn | values}


def batched(policy: Policy | Step) -> BatchedEngine:
    """The engine for a policy, or for a step alone."""
    policy = policy if isinstance(policy, Policy) else Policy((policy,))
    return BatchedEngine(policy, MEAN, CPU)


def versions(policy: Policy | Step, image: np.ndarray, count: int, key=(1, 2, 3)) -> np.ndarray:
    """`count` versions uint8 [count,3,S,S] of `image` uint8 [3,S,S], by the per-image engine."""
    policy = policy if isinstance(policy, Policy) else Policy((policy,))
    return PerImageEngine(policy, MEAN, CPU)(np.repeat(image[None], count, axis=0), *key)


def by_albumentations(policy: Policy, images: Tensor, draws: Draws) -> Tensor:
    """The per-image forms of the steps of `policy`, which are told what was drawn."""
    forms = {step: step.for_image(FILL) for step in policy.steps}
    changed = []
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        drawn = take(draws, torch.tensor(i))
        for step, transforms in forms.items():
            if drawn[step.name][APPLIED]:
                values = {name: value.tolist() for name, value in drawn[step.name].items()}
                image = TOLD[step.name](step, transforms, np.ascontiguousarray(image), values)
        changed.append(torch.from_numpy(image.copy()).permute(2, 0, 1))
    return torch.stack(changed)


def _crop(step, transforms, image, drawn):
    pad, crop = transforms
    row, column = drawn["corner"]
    ends = column + step.size, row + step.size
    return crop.apply(pad(image=image)["image"], (column, row, *ends))


def _affine(step, transforms, image, drawn):
    shift = dict(zip("xy", drawn["shift"], strict=True))
    scale = dict.fromkeys("xy", drawn["scale"])
    centre, side = geometric.center((step.size,) * 2), (step.size,) * 2
    matrix = geometric.create_affine_transformation_matrix(
        shift, {"x": 0, "y": 0}, scale, drawn["rotate"], centre
    )
    return transforms[0].apply(image, matrix, side)


def _hole(step, transforms, image, drawn):
    row, column = drawn["corner"]
    box = [column, row, column + step.side, row + step.side]
    return transforms[0].apply(image, np.array([box]), 0)


TOLD = {
    "crop": _crop,
    "flip": lambda step, transforms, image, drawn: transforms[0].apply(image),
    "affine": _affine,
    "hole": _hole,
    "jitter": lambda step, transforms, image, drawn: transforms[0].apply(
        image, *drawn["factors"], drawn["order"]
    ),
}


def assert_same_pixels(policy: Policy | Step, images: Tensor, draws: Draws, tolerance) -> None:
    """Both forms make the same pixels, up to `tolerance` (see EXACT); `images` stay untouched."""
    policy = policy if isinstance(policy, Policy) else Policy((policy,))
    before = images.clone()
    changed = batched(policy).apply(images, draws)
    difference = (changed.int() - by_albumentations(policy, images, draws).int()).abs()
    most, equal = tolerance
    assert difference.max() <= most
    assert (difference == 0).float().mean() >= equal
    assert torch.equal(images, before)
    assert (changed.shape, changed.dtype) == (images.shape, torch.uint8)


def assert_same_spread(ours: Tensor, theirs: list | np.ndarray) -> None:
    """Two samples [N] have the same mean, deviation and range."""
    ours, theirs = ours.double().numpy(), np.asarray(theirs, dtype=float)
    span = theirs.max() - theirs.min()
    assert abs(ours.mean() - theirs.mean()) < 0.1 * theirs.std()
    assert abs(ours.std() - theirs.std()) < 0.1 * theirs.std()
    assert abs(ours.min() - theirs.min()) < 0.01 * span
    assert abs(ours.max() - theirs.max()) < 0.01 * span


def assert_fills(values: list[float], low: float, high: float) -> None:
    """`values` lie in [low, high], reach near both ends, and are spread evenly."""
    values, span = np.asarray(values), high - low
    assert low - 1e-9 <= values.min() < low + 0.02 * span
    assert high - 0.02 * span < values.max() <= high + 1e-9
    assert abs(values.mean() - (low + high) / 2) < 0.03 * span
