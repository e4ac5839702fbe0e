"""--preview_augment: a picture of the augmentation, and no run."""

from pathlib import Path

from PIL import Image
from support.commands import QUICK

import plots


def test_the_preview_is_a_grid_of_the_engine_that_the_run_would_use(command):
    pixels = []
    for engine in ("albumentations", "batched"):
        preview = ("--augment_engine", engine, "--preview_augment", "grid.png")
        done = command("main", "--dataset", "digits", *preview)
        assert (done.code, done.err) == (0, "")
        with Image.open("grid.png") as image:
            assert min(image.size) > 800
            pixels.append(image.tobytes())
    assert pixels[0] != pixels[1]
    assert [path.name for path in Path().iterdir()] == ["grid.png"]


def test_the_preview_shows_policies_and_mixing(command, monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "augmentations", lambda *arguments: shown.append(arguments[:2]))
    plain = (*QUICK, "--augment", "none", "--preview_augment", "p.png")
    for flags in ((), ("--auto_augment", "autoaugment"), ("--cutmix", "1"), ("--mixup", "1")):
        assert command("main", *plain, *flags).code == 0
    (originals, same), *changed = shown
    assert all((batch == originals).all() for batch in same)
    for _, versions in changed:
        assert len(versions) == 8
        assert {(batch.dtype.name, batch.shape) for batch in versions} == {
            ("uint8", originals.shape)
        }
        assert sum((batch != originals).any() for batch in versions) > 4
    pasted = changed[1][1][0]  # by CutMix: each pixel is that of an image of the batch
    assert (pasted[:, None] == originals[None]).all(axis=2).any(axis=1).all()
