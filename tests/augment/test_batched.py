"""Both engines: the same draws give the same pixels, and their draws are alike."""

import albumentations.augmentations.geometric.functional as geometric
import numpy as np
import pytest
import torch
from policies import policy_of

from cifarnet.augment.batched import BatchedEngine
from cifarnet.augment.per_image import PerImageEngine
from cifarnet.augment.policy import Draws, draw

MEAN = (0.5, 0.4, 0.3)
FILL = torch.tensor([128, 102, 76], dtype=torch.uint8)  # round(255 * MEAN)
POLICY = policy_of("full")
COUNT = 256
DRAWS = 20_000
OFF = torch.zeros(COUNT, dtype=torch.bool)


def pictures() -> torch.Tensor:
    """Half noise, which shows any displaced pixel; half gentle slopes, as in photographs."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (COUNT // 2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    slopes = 255 * torch.rand(COUNT // 2, 3, 4, 4, generator=generator)
    slopes = torch.nn.functional.interpolate(slopes, size=32, mode="bicubic").clamp(0, 255)
    return torch.cat([noise, slopes.to(torch.uint8)])


def nothing(**on) -> Draws:
    """Draws that change nothing except `on`; `...` takes what the policy draws."""
    drawn = draw(POLICY, COUNT, 7)
    still = {
        "flip": OFF,
        "affine": OFF,
        "jitter": OFF,
        "hole": OFF,
        "offset": torch.full((COUNT, 2), POLICY.pad),
    }
    return drawn._replace(**still)._replace(
        **{name: getattr(drawn, name) if x is ... else x for name, x in on.items()}
    )


def factors(**columns) -> torch.Tensor:
    """Factors of the jitter that change nothing except `columns`, which run from low to high."""
    values = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(COUNT, 1)
    for name, (low, high) in columns.items():
        values[:, ("brightness", "contrast", "saturation", "hue").index(name)] = torch.linspace(
            low, high, COUNT
        )
    return values


def batched(images: torch.Tensor, drawn: Draws) -> torch.Tensor:
    return BatchedEngine(POLICY, MEAN, torch.device("cpu")).apply(images, drawn)


def by_albumentations(images: torch.Tensor, drawn: Draws, policy=POLICY) -> torch.Tensor:
    """The results of the transforms of `PerImageEngine` when they are told what was drawn."""
    pad, crop, flip, affine, hole, jitter = PerImageEngine(policy, MEAN).transforms
    changed, side = [], policy.size
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        row, column = drawn.offset[i].tolist()
        image = crop.apply(pad(image=image)["image"], (column, row, column + side, row + side))
        if drawn.flip[i]:
            image = flip.apply(image)
        image = np.ascontiguousarray(image)
        if drawn.affine[i]:
            shift, scale = (
                dict(zip("xy", drawn.shift[i].tolist(), strict=True)),
                drawn.scale[i].item(),
            )
            matrix = geometric.create_affine_transformation_matrix(
                shift,
                {"x": 0, "y": 0},
                {"x": scale, "y": scale},
                drawn.rotate[i].item(),
                geometric.center((side, side)),
            )
            image = affine.apply(image, matrix, (side, side))
        if drawn.hole[i]:
            row, column = drawn.corner[i].tolist()
            ends = row + policy.hole, column + policy.hole
            image = hole.apply(image, np.array([[column, row, *ends[::-1]]]), 0)
        if drawn.jitter[i]:
            image = jitter.apply(image, *drawn.factors[i].tolist(), drawn.order[i].tolist())
        changed.append(torch.from_numpy(image.copy()).permute(2, 0, 1))
    return torch.stack(changed)


def test_larger_images_are_cropped_warped_and_punched_alike():
    policy = policy_of("full", image_size=64)
    images = torch.nn.functional.interpolate(pictures()[-40:], scale_factor=2)
    drawn = draw(policy, 40, 7)._replace(jitter=OFF[:40])
    ours = BatchedEngine(policy, MEAN, torch.device("cpu")).apply(images, drawn)
    difference = (ours.float() - by_albumentations(images, drawn, policy)).abs()
    assert ours.shape == (40, 3, 64, 64)
    assert difference.max() <= 1
    assert (difference == 0).float().mean() >= 0.999
    assert drawn.hole.any()
    assert drawn.affine.any()
    assert drawn.corner.max() > 16  # beyond those of 32 pixels
    assert drawn.offset.max() > 8


ONE, NONE = torch.ones(COUNT), torch.zeros(COUNT)
# The largest difference in grey levels, and the share of equal pixels.
EXACT, ROUNDING = (0, 1.0), (1, 0.999)
CASES = {
    "nothing": (EXACT, {}),
    "crop": (EXACT, {"offset": ...}),
    "flip": (EXACT, {"flip": ~OFF}),
    "crop and flip": (EXACT, {"offset": ..., "flip": ...}),
    "shift": (EXACT, {"affine": ~OFF, "scale": ONE, "rotate": NONE}),
    "scale": (ROUNDING, {"affine": ~OFF, "shift": torch.zeros(COUNT, 2), "rotate": NONE}),
    "rotation": (ROUNDING, {"affine": ~OFF, "shift": torch.zeros(COUNT, 2), "scale": ONE}),
    "all geometry": (ROUNDING, {"offset": ..., "flip": ..., "affine": ~OFF}),
    "brightness": (EXACT, {"jitter": ~OFF, "factors": factors(brightness=(0.5, 1.5))}),
    "contrast": (ROUNDING, {"jitter": ~OFF, "factors": factors(contrast=(0.5, 1.5))}),
    "saturation": ((1, 0.99), {"jitter": ~OFF, "factors": factors(saturation=(0.5, 1.5))}),
    "hole": (EXACT, {"hole": ...}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_draws_give_the_pixels_of_albumentations(case):
    (most, equal), on = CASES[case]
    images, drawn = pictures(), nothing(**on)
    difference = (batched(images, drawn).float() - by_albumentations(images, drawn)).abs()
    assert difference.max() <= most
    assert (difference == 0).float().mean() >= equal


@pytest.mark.parametrize(
    "on",
    [
        {"jitter": ~OFF, "factors": factors(hue=(-0.02, 0.02))},
        {"jitter": ~OFF, "factors": factors(hue=(-0.5, 0.5))},
        {"jitter": ~OFF},
        {"offset": ..., "flip": ..., "affine": ..., "jitter": ..., "hole": ...},
    ],
    ids=["hue", "any hue", "jitter", "all"],
)
def test_hues_are_those_of_albumentations_up_to_its_rounding(on):
    """OpenCV keeps hue and saturation as bytes in between: one step is up to 9 levels."""
    images, drawn = pictures(), nothing(**on)
    difference = batched(images, drawn).float() - by_albumentations(images, drawn)
    assert difference.abs().max() <= 16
    assert (difference.abs() <= 1).float().mean() > 0.98
    assert difference.mean().abs() < 0.25


def test_grey_pixels_black_and_white_have_no_hue_to_turn():
    images = torch.linspace(0, 255, COUNT).to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 32, 32)
    drawn = nothing(jitter=~OFF, factors=factors(hue=(-0.5, 0.5)))
    assert torch.equal(batched(images, drawn), images)


def test_what_the_crop_cut_off_stays_cut_off():
    """A crop without the first 4 rows and columns, then half the size: the mean fills the rest."""
    images = torch.full((COUNT, 3, 32, 32), 255, dtype=torch.uint8)
    drawn = nothing(
        # 28 rows and columns of the image, then 4 of the mean
        offset=torch.full((COUNT, 2), 2 * POLICY.pad),
        affine=~OFF,
        shift=torch.zeros(COUNT, 2),
        scale=torch.full((COUNT,), 0.5),
        rotate=torch.zeros(COUNT),
    )
    expected = FILL.view(3, 1, 1).repeat(1, 32, 32)
    expected[:, 8:22, 8:22] = 255
    assert (batched(images, drawn) == expected).all()
    assert (by_albumentations(images, drawn) == expected).all()


def assert_alike(ours, theirs, *, spread: float):
    """Means and deviations of two samples agree within `spread` of the second's deviation."""
    ours, theirs = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    assert abs(ours.mean() - theirs.mean()) < spread * theirs.std()
    assert abs(ours.std() - theirs.std()) < spread * theirs.std()


def test_rates_and_ranges_are_those_of_albumentations():
    """2000 draws of each transform of `PerImageEngine` against 20,000 of ours."""
    drawn = draw(POLICY, DRAWS, 1)
    transforms = PerImageEngine(POLICY, MEAN).transforms
    _, crop, flip, affine, hole, jitter = transforms
    for seed, transform in enumerate(transforms):
        transform.set_random_seed(seed)
    for ours, theirs in (
        (drawn.flip, flip),
        (drawn.affine, affine),
        (drawn.jitter, jitter),
        (drawn.hole, hole),
    ):
        assert abs(ours.float().mean() - theirs.p) < 0.02
    size = {"shape": (32, 32, 3)}
    crops = [
        crop.get_params_dependent_on_data({"shape": (40, 40, 3)}, {})["crop_coords"][:2]
        for _ in range(2000)
    ]
    warps = [affine.get_params_dependent_on_data(size, {}) for _ in range(2000)]
    jitters = [jitter.get_params() for _ in range(2000)]
    holes = [hole.get_params_dependent_on_data(size, {})["holes"][0][:2] for _ in range(2000)]
    centre = np.array([15.5, 15.5, 1])
    shifts = [(np.asarray(warp["matrix"]) @ centre - centre)[:2].round() for warp in warps]
    for ours, theirs in (
        (drawn.offset.flip(1), crops),
        (drawn.shift, shifts),
        (drawn.corner.flip(1), holes),
        (drawn.order, [j["order"] for j in jitters]),
    ):
        assert {tuple(row) for row in np.asarray(theirs, dtype=int).tolist()} <= {
            tuple(row) for row in ours.tolist()
        }
        for axis in range(ours.shape[1]):
            mine, others = ours[:, axis].numpy(), np.asarray(theirs)[:, axis]
            assert set(mine.tolist()) == set(others.tolist())
            assert_alike(mine, others, spread=0.1)
    names = ("brightness", "contrast", "saturation", "hue")
    pairs = [(drawn.factors[:, i], [j[name] for j in jitters]) for i, name in enumerate(names)]
    pairs += [
        (drawn.scale, [w["scale"]["x"] for w in warps]),
        (drawn.rotate, [w["rotate"] for w in warps]),
    ]
    for ours, theirs in pairs:
        assert_alike(ours, theirs, spread=0.1)
        span = max(theirs) - min(theirs)
        assert abs(ours.min() - min(theirs)) < 0.01 * span
        assert abs(ours.max() - max(theirs)) < 0.01 * span
    assert len({tuple(row) for row in drawn.order.tolist()}) == 24


def test_whole_images_are_alike_on_average():
    """Mean and deviation of each pixel over many versions of one image, by both engines."""
    image = pictures()[-1:].numpy().repeat(4000, axis=0)
    ours, theirs = (
        engine(image, 3).astype(np.float32)
        for engine in (
            BatchedEngine(POLICY, MEAN, torch.device("cpu")),
            PerImageEngine(POLICY, MEAN),
        )
    )
    error = theirs.std(axis=0) / np.sqrt(len(image) / 2)  # of the difference of two means
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 5 * error + 0.3).all()
    np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.15)


def test_equal_keys_draw_equal_changes_and_others_do_not():
    engine, images = BatchedEngine(POLICY, MEAN, torch.device("cpu")), pictures().numpy()
    first, state = engine(images, 42, 1, 2), torch.get_rng_state()
    assert (engine(images, 42, 1, 2) == first).all()
    for other in ((43, 1, 2), (42, 2, 2), (42, 1, 3)):
        assert (engine(images, *other) != first).any(axis=(1, 2, 3)).mean() > 0.99
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [1, 7, 100, COUNT])
def test_neither_chunks_nor_parts_of_a_batch_change_an_image(size):
    images, drawn = pictures(), draw(POLICY, COUNT, 3)
    kept, engine = images.clone(), BatchedEngine(POLICY, MEAN, torch.device("cpu"))
    whole = engine.apply(images, drawn)
    engine.chunk = size
    assert torch.equal(engine.apply(images, drawn), whole)
    parts = [
        engine.apply(images[i : i + size], drawn.part(i, i + size)) for i in range(0, COUNT, size)
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(images, kept)


def test_other_ranges_and_black_borders_are_those_of_albumentations_too():
    policy = policy_of("full", pad=2, border="black", hole=8, shift=0.1)
    images, drawn = pictures(), draw(policy, COUNT, 7)._replace(jitter=OFF)
    ours = BatchedEngine(policy, MEAN, torch.device("cpu")).apply(images, drawn)
    difference = (ours.int() - by_albumentations(images, drawn, policy).int()).abs()
    assert difference.max() <= 1
    assert (difference == 0).float().mean() > 0.999


def test_the_policies_none_and_light():
    images = pictures()
    none, light = (
        torch.from_numpy(BatchedEngine(policy, MEAN, torch.device("cpu"))(images.numpy(), 1))
        for policy in (policy_of("none"), policy_of("light"))
    )
    assert torch.equal(none, images)
    drawn = draw(policy_of("light"), COUNT, 1)
    assert not (drawn.affine.any() or drawn.jitter.any() or drawn.hole.any())
    assert torch.equal(light, by_albumentations(images, drawn))
