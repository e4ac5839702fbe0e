"""The temperature of a network: fitted, kept in its file, applied wherever it is used."""

import csv
import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss
from support.commands import QUICK, QUIET, run
from support.outputs import assert_same_state, figures, metadata, snapshot

from cifarnet.checkpoints.snapshots import load_trained, pack, read_snapshot
from cifarnet.checkpoints.trained import write_weights
from cifarnet.images.imageset import ImageSet, Splits
from cifarnet.inference.classifier import TorchClassifier
from cifarnet.settings import Settings
from data import load_splits

IMAGES = {"dataset": "digits", "limit_train": 300, "limit_test": 240, "val_fraction": 0.4}
FLAGS = (
    *(*QUICK, *(word for name, value in IMAGES.items() for word in (f"--{name}", value))),
    *("--epochs", "3", "--image_sizes", "16", "--augment", "none", "--save_best"),
)
LAST = Path("snapshots_complete/last.pth")


class Calibrated(NamedTuple):
    """A run that validates: its folder, and its images."""

    root: Path
    splits: Splits


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> Calibrated:
    root = tmp_path_factory.mktemp("calibrated")
    assert run("main", *FLAGS, "--run_dir", root) == 0
    return Calibrated(root, load_splits(Settings.from_flags(**IMAGES).data, print))


@pytest.fixture
def folder(calibrated, tmp_path) -> Path:
    """A copy of the run, as the working directory of `command`."""
    shutil.copytree(calibrated.root, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_validation_images_with_doubtful_labels_are_listed(calibrated):
    """By the calibrated probabilities, and by their places among all training images."""
    whole = load_splits(Settings.from_flags(dataset="digits").data, print).train
    with (calibrated.root / "plots_complete/label_issues.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "validation"]
    assert rows
    places = [int(row["image"]) for row in rows]
    labels, suggested = ([int(row[name]) for row in rows] for name in ("label", "suggested"))
    model = load_trained(str(calibrated.root / LAST))
    with torch.inference_mode():
        shares = TorchClassifier(model, amp=False).logits(whole.images[places]).softmax(1).numpy()
    assert whole.labels[places].tolist() == labels
    for name, classes in (("label", labels), ("suggested", suggested)):
        expected = shares[np.arange(len(rows)), classes]
        listed = [float(row[f"probability_{name}"]) for row in rows]
        np.testing.assert_allclose(listed, expected, rtol=1e-3)


def uncalibrated(path: Path) -> torch.nn.Module:
    return TorchClassifier(replace(load_trained(str(path)), temperature=1.0), amp=False)


def fit(path: Path, images: ImageSet) -> float:
    """The temperature by scikit-learn's cross-entropy, in 64 bits."""
    with torch.inference_mode():
        logits = uncalibrated(path).logits(images.images).double()

    def loss(inverse: float) -> float:
        return log_loss(images.labels, (logits * inverse).softmax(1).numpy(), labels=range(10))

    return 1 / minimize_scalar(loss, bounds=(0.01, 100), method="bounded").x


def picture(splits: Splits) -> None:
    """Writes a test image that some networks are unsure of."""
    pixels = splits.test.images[0].permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save("digit.png")


def highest(done) -> float:
    (line,) = done.out.splitlines()
    return json.loads(line)["predictions"][0]["probability"]


def probability(splits: Splits, path: Path, temperature: float) -> float:
    with torch.inference_mode():
        logits = uncalibrated(path).logits(splits.test.images[:1])
    return (logits.double() / temperature).softmax(1).max().item()


@pytest.mark.parametrize("name", ["last", "best_model"])
def test_a_run_fits_the_temperature_of_each_model_on_its_validation_images(calibrated, name):
    root, splits = calibrated
    content = snapshot(f"{name}.pth", root / "snapshots_complete")
    assert content["calibrated_on"] == f"{len(splits.val)} validation images of digits"
    path = root / "snapshots_complete" / f"{name}.pth"
    assert content["temperature"] == pytest.approx(fit(path, splits.val), rel=1e-3)
    report = figures(root / "plots_complete")[name.partition("_")[0]]
    assert report["temperature"] == content["temperature"] != 1
    assert report["calibration_error"] != report["calibration_error_before"]


def test_it_changes_no_answer(calibrated, command):
    root, splits = calibrated
    with (root / "plots_complete" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with torch.inference_mode():
        logits = uncalibrated(root / LAST).logits(splits.test.images)
    assert [row["predicted"] for row in rows] == [splits.test.classes[i] for i in logits.argmax(1)]
    temperature = snapshot("last.pth", root / "snapshots_complete")["temperature"]
    shares = (logits.double() / temperature).softmax(1).amax(1)
    written = [float(row["probability_predicted"]) for row in rows]
    np.testing.assert_allclose(written, shares, atol=1e-4)


def test_a_resumed_run_is_calibrated_as_an_uninterrupted_one(folder, command):
    numbered = "snapshots_complete/snapshot_epoch_0002.pth"
    flags = ("--resume", numbered, "--run_dir", "again", "--epochs", "3")
    assert snapshot("snapshot_epoch_0002.pth")["temperature"] == 1
    assert command("main", *flags).code == 0
    again, first = snapshot("last.pth", "again/snapshots_complete"), snapshot("last.pth")
    for content in (again, first):
        del content["origin"]  # names the folders
    assert again["temperature"] != 1
    assert_same_state(again, first)


def test_a_finished_run_is_calibrated_wherever_its_folder_is_named(folder, command):
    before = snapshot("last.pth")["temperature"]
    content = read_snapshot(LAST)
    fresh = replace(content.model, temperature=1.0, calibrated_on="")
    LAST.write_bytes(pack(replace(content, model=fresh)))
    assert command("main", "--resume", LAST, "--run_dir", folder).code == 0
    assert snapshot("last.pth")["temperature"] == pytest.approx(before, rel=1e-6)


def test_a_run_that_evaluates_other_weights_now_keeps_no_temperature(folder, command):
    """--evaluate ema of a finished run: its snapshot goes on to name the raw weights."""
    shutil.rmtree("snapshots_complete")
    flags = (*FLAGS, "--epochs", "1", "--ema_decay", "0.5")
    assert command("main", *flags).code == 0
    before = LAST.read_bytes()
    done = command("main", *flags, "--evaluate", "ema", "--resume", "auto", "--resume_override")
    assert (done.code, done.err, LAST.read_bytes()) == (0, "", before)
    assert f"the temperature is not kept: the run of {LAST} evaluates raw" in done.out


def test_a_folder_may_be_called_val(folder, command):
    """--calibrate val is that folder, not the validation images of the run."""
    done = command("evaluate", "--snapshot", LAST, "--calibrate", "val")
    assert done.code == 2 and "--calibrate val does not exist" in done.err


def test_every_use_applies_it(folder, command, calibrated):
    splits = calibrated.splits
    picture(splits)
    temperature = snapshot("last.pth")["temperature"]
    expected = pytest.approx(probability(splits, LAST, temperature), abs=1e-4)
    assert expected != probability(splits, LAST, 1)
    formats = ("--format", "safetensors,hub", "--out", "out")
    exported = command("export", "--snapshot", LAST, *formats)
    assert exported.code == 0, exported.err
    assert metadata(Path("out/weights.safetensors"))["temperature"] == temperature
    for path in (LAST, "out/weights.safetensors", "out/hub"):
        done = command("predict", "--pretrained", path, "--json", "digit.png")
        assert highest(done) == expected, path
    twice = f"{LAST},out/weights.safetensors"
    assert highest(command("predict", "--pretrained", twice, "--json", "digit.png")) == expected


@pytest.mark.parametrize("form", ["old.pth", "whole.safetensors", "half.safetensors"])
def test_a_file_without_temperature_is_calibrated_by_evaluate(folder, command, form):
    fitted, path = snapshot("last.pth"), Path(form)
    model = replace(load_trained(str(LAST)), temperature=1.0, calibrated_on="")
    if form == "old.pth":
        path.write_bytes(pack(replace(read_snapshot(LAST), model=model)))
    else:
        write_weights(model, path, half=form == "half.safetensors")
    rounded, before, size = "half" in form, load_trained(form), path.stat().st_size
    done = command("evaluate", "--pretrained", path, "--calibrate", *QUIET)
    assert (done.code, done.err) == (0, "")
    kept = load_trained(form)
    rel = 1e-3 if rounded else 1e-6
    assert kept.temperature == pytest.approx(fitted["temperature"], rel=rel)
    assert (kept.calibrated_on, kept.sha256) == (fitted["calibrated_on"], before.sha256)
    assert (kept.sha256 == fitted["sha256"]) is not rounded
    assert figures()["temperature"] == kept.temperature
    assert path.stat().st_size == pytest.approx(size, rel=0.01)  # floats keep their 16 or 32 bits
    if form == "old.pth":
        assert_same_state(snapshot(form, "."), fitted | {"temperature": kept.temperature})


def answers(file: str) -> dict[str, tuple[str, str]]:
    """Of the test images."""
    with (Path("plots_complete") / file).open(newline="") as text:
        rows = [row for row in csv.DictReader(text) if row.get("part") != "validation"]
    return {row["image"]: tuple(row.values())[-4:-2] for row in rows}


def test_a_share_of_the_test_images_is_left_out_of_the_report(folder, command):
    all_answers = answers("predictions.csv")
    done = command("evaluate", "--snapshot", LAST, "--calibrate", "0.5", *QUIET)
    assert (done.code, done.err) == (0, "")
    half = figures()
    assert half["images"] == 120
    assert half["calibrated_on"].startswith("120 of the 240 test images of digits")
    assert half["calibrated_on"] == snapshot("last.pth")["calibrated_on"]
    numbered = answers("predictions.csv")  # as in the report on all images
    assert numbered.items() <= all_answers.items()
    assert (len(numbered), list(numbered) == [str(i) for i in range(120)]) == (120, False)
    assert {image: label for image, (label, _) in answers("label_issues.csv").items()}.items() <= {
        image: true for image, (true, _) in numbered.items()
    }.items()
    assert list(np.load("plots_complete/predictions.npz")["paths"]) == list(numbered)


@pytest.mark.parametrize(
    ("flags", "stated"),
    [((), True), (("--limit_test", "120"), True), (("--calibrate", "0.5"), False),
     (("--calibrate", "0.25"), True)],  # too few to fit it again
)  # fmt: skip
def test_a_report_on_images_that_fitted_the_temperature_says_so(folder, command, flags, stated):
    about = "120 of the 240 test images of digits (--calibrate 0.5 reports on the others)"
    model = replace(load_trained(str(LAST)), temperature=2.0, calibrated_on=about)
    write_weights(model, Path("half.safetensors"))
    flags += ("--plot_dir", "p", "--no-plot_evaluation")
    done = command("evaluate", "--pretrained", "half.safetensors", *flags)
    said = "the temperature may have been fitted on some"
    assert (done.code, said in done.out) == (0, stated)
    for file in ("classification_report.txt", "report.html"):
        assert (said in Path("p", file).read_text(encoding="utf-8")) == stated


def test_too_few_images_leave_the_temperature(folder, command):
    before = snapshot("last.pth")
    done = command("evaluate", "--snapshot", LAST, "--calibrate", "0.25", *QUIET)
    assert (done.code, done.err) == (0, "")
    words = "60 of the 240 test images of digits (--calibrate 0.25 reports on the others) are too"
    assert f"not calibrated, the temperature stays {before['temperature']:g}: {words}" in done.out
    assert_same_state(snapshot("last.pth"), before)
    assert figures()["images"] == 180


def write_images(images: ImageSet, root: Path, chosen: slice) -> None:
    for at, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
        if at in range(*chosen.indices(len(images))):
            path = root / images.classes[label] / f"{at}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


def test_other_images_in_a_folder(folder, command, calibrated):
    splits = calibrated.splits
    write_images(splits.val, Path("other"), slice(None))
    done = command("evaluate", "--snapshot", LAST, "--calibrate", "other", *QUIET)
    assert (done.code, done.err) == (0, "")
    assert figures()["calibrated_on"] == f"{len(splits.val)} images in other"
    assert figures()["temperature"] == pytest.approx(fit(LAST, splits.val), rel=1e-3)
    for part, name in ((splits.test, "test"), (splits.train, "training")):
        shutil.copytree("other", name)
        write_images(part, Path(name), slice(-2, None))
        done = command("evaluate", "--snapshot", LAST, "--calibrate", name, *QUIET)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert f"--calibrate {name}: 2 {name} images of digits are among" in done.err


def test_a_threshold_says_unsure(folder, command, calibrated):
    picture(calibrated.splits)
    approx = partial(pytest.approx, abs=1e-4)
    p = probability(calibrated.splits, LAST, snapshot("last.pth")["temperature"])
    for threshold, unsure in ((p - 0.01, False), (p + 0.01, True)):
        flags = ("--pretrained", LAST, "--threshold", f"{threshold:.4f}", "digit.png")
        (line,) = command("predict", *flags, "--json", "--csv", "p.csv").out.splitlines()
        assert json.loads(line)["unsure"] is unsure
        with Path("p.csv").open(newline="") as file:
            (cells,) = csv.DictReader(file)
        assert (cells["unsure"], float(cells["probability"])) == (str(int(unsure)), approx(p))
        head, row = command("predict", *flags).out.splitlines()
        assert re.split(r"\s\s+", head)[:2] == ["image", "answer"]
        assert (row.split()[1] == "unsure") == unsure
    for wrong in ("80", "-0.1", "nan"):
        done = command("predict", "--pretrained", LAST, "--threshold", wrong, "digit.png")
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "is not in [0, 1]; use 0.8" in done.err
