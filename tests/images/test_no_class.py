import torch

from cifarnet.images.no_class import MOST, PARTS, no_class_pictures


def sample_images(count: int = 6, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(60, 200, (count, 3, size, size), generator=generator).byte()


def of_kind(kind: str, images: torch.Tensor) -> torch.Tensor:
    pictures = no_class_pictures(images)
    return pictures.images[pictures.labels == pictures.classes.index(kind)]


def patches_of(image: torch.Tensor) -> list[bytes]:
    side = image.shape[-1] // PARTS
    patches = image.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4)
    return [patch.numpy().tobytes() for patch in patches.flatten(0, 1)]


def test_each_kind_has_the_same_pictures_each_time():
    pictures, again = no_class_pictures(sample_images()), no_class_pictures(sample_images())
    assert torch.equal(pictures.images, again.images)
    assert pictures.images.shape == (6 * len(pictures.classes), 3, 32, 32)
    assert pictures.labels.bincount().tolist() == [6] * len(pictures.classes)
    assert len(pictures.images.unique(dim=0)) == len(pictures)
    assert len(no_class_pictures(sample_images(200))) == MOST * len(pictures.classes)
    assert no_class_pictures(sample_images(1, 48)).images.shape[-1] == 48


def test_stripes_have_two_colours():
    for picture in of_kind("stripes and checks", sample_images()):
        assert len(picture.flatten(1).unique(dim=1).T) == 2


def test_patches_are_those_of_the_images_but_a_picture_mixes_them():
    images = sample_images(40)
    origin = {patch: i for i, image in enumerate(images) for patch in patches_of(image)}
    for picture in of_kind("mixed patches", images):
        assert len({origin[patch] for patch in patches_of(picture)}) > 1


def test_scrambled_images_keep_the_spectrum_of_an_image():
    spectra = torch.fft.fft2(sample_images().float()).abs()
    for picture in of_kind("scrambled images", sample_images())[:10]:
        spectrum = torch.fft.fft2(picture.float()).abs()
        errors = (spectra - spectrum).flatten(1).norm(dim=1) / spectra.flatten(1).norm(dim=1)
        assert errors.min() < 0.02
