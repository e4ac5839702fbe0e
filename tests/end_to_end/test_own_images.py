"""Own images from download to prediction, as a user goes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.commands import QUIET
from support.outputs import figures, settings_of

import hubconf

SUFFIXES = ("png", "JPG", "gif", "tif", "bmp", "webp", "jfif")
QUICK = (
    *("--dataset", "folder", "--epochs", "1", "--num_workers", "0", "--augment", "none"),
    *("--no-plot_training", "--no-plot_evaluation", "--no-report", "--device", "cpu"),
)


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Class folders alone, as a download has them: many formats and sizes, and other files."""
    root, random = tmp_path / "mixed", np.random.default_rng(0)
    for label, (name, count) in enumerate({"ants": 20, "bees": 2}.items()):
        (root / name / "more").mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 90, (30 + i, 40, 3)) + 90 * label
            folder = root / name / ("more" if i % 5 == 0 else "")
            path = folder / f"{i:02d}.{SUFFIXES[i % len(SUFFIXES)]}"
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    (root / "ants" / "licence.txt").write_text("free")
    (root / "ants" / "02.gif").rename(root / "ants" / "02")  # its content says what it is
    return root


def test_from_class_folders_to_predictions(command, mixed):
    size = ("--image_size", "48")
    flags = ("--test_fraction", "0.5", "--class_weights", "balanced", "--accumulate", "2")
    done = command("main", *QUICK, "--data_dir", mixed, *size, *flags)
    assert (done.code, done.err) == (0, "")
    for line in (
        f"warning: ignored 1 file in no image format, such as {mixed}/ants/licence.txt",
        f"{mixed} has no test folder: 11 of the 22 images",
        "resized 22 of 22 images to 48x48",
        "--batch_size is 8, as with 10 the last batch would have too few images: 1",
        "training images of the 2 classes: ants 10, bees 1",
        "warning: ants has 10 training images and bees only 1",
    ):
        assert f"\n{line}" in done.out
    assert "[-1, 40, 48, 48]" in done.out
    assert figures()["images"] == 11
    last = settings_of()
    assert (last["batch_size"], last["image_size"]) == (8, 48)

    # the same test images at the same size, without a flag
    before = figures()
    last = ("--snapshot", "snapshots_complete/last.pth", "--device", "cpu")
    done = command("evaluate", *last, "--no-plot_evaluation")
    assert (done.code, done.err) == (0, "")
    assert {name: figures()[name] for name in ("top1", "loss")} == pytest.approx(
        {name: before[name] for name in ("top1", "loss")}
    )

    # exported, and used on the files that were trained on
    assert command("export", "--snapshot", "snapshots_complete/last.pth").code == 0
    weights = str(Path("weights.safetensors").resolve())
    done = command("predict", "--json", "--pretrained", weights, mixed)
    assert done.code == 0
    assert done.out.count("probability") == 22 * 2
    assert "ignored 1 file in no image format" in done.err
    network = hubconf.cifarnet(pretrained=weights)
    with Image.open(mixed / "ants" / "01.JPG") as picture:
        seen = network.normalise(picture)
    assert seen.shape == (1, 3, 48, 48)
    said = next(line for line in done.out.splitlines() if "01.JPG" in line)
    ours = dict(zip(network.classes, network(seen).softmax(1)[0].tolist(), strict=True))
    for prediction in json.loads(said)["predictions"]:
        assert prediction["probability"] == pytest.approx(ours[prediction["class"]], abs=1e-4)

    # a run goes on with the same images only
    done = command("main", *QUICK, "--data_dir", mixed, *flags, "--resume", "auto")
    assert done.code == 2
    assert "image_size 48 -> 32" in done.err
    done = command("main", *QUICK, "--data_dir", mixed, "--teacher", weights)
    assert (done.code, done.out.count("epoch 1/1")) == (2, 0)
    assert "it was trained with --image_size 48; add that" in done.err


def test_images_named_by_a_csv_file(command, mixed):
    files = sorted(path for path in mixed.rglob("*.*") if path.is_file() and path.suffix != ".txt")
    rows = [
        f"{path.relative_to(mixed)},{'even' if i % 2 else 'odd'}" for i, path in enumerate(files)
    ]
    Path("labels.csv").write_text("\n".join(["path,label", *rows]))
    flags = ("--data_dir", mixed, "--labels", "labels.csv")
    done = command("main", *QUICK, *flags)
    assert (done.code, done.err) == (0, "")
    assert list(figures()["per_class"]) == ["even", "odd"]
    assert figures()["images"] == 4  # a fifth of 10 and of 11, rounded down
    last = ("--snapshot", "snapshots_complete/last.pth", "--device", "cpu")
    done = command("evaluate", *last, *QUIET)
    assert (done.code, figures()["images"]) == (0, 4)
