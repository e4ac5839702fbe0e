"""export.py: what is read back decides whether a file takes its place; ONNX files in use."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.commands import QUIET
from support.outputs import figures
from support.pictures import draw_tree
from support.random_models import random_model
from support.small_runs import small_splits

import bench
from cifarnet.core.errors import UserError
from cifarnet.inference.classifier import TorchClassifier
from commands import exporting
from commands.export_formats import FORMATS, Format, Source
from model import load_pretrained


def answering(file, change=lambda logits: logits, **limits) -> Format:
    """A format whose files hold `new` and answer as the network does, changed."""

    def read(path):
        return lambda pixels: change(logits_of(None, pixels))

    return Format(file, lambda source, path: path.write_bytes(b"new"), read, **limits)


def logits_of(classifier, pixels):
    return pixels.float().mean((2, 3))


@pytest.fixture
def add(monkeypatch):
    """Adds a format to the real ones: `add(name, format)`."""
    monkeypatch.setattr(TorchClassifier, "logits", logits_of)

    return partial(monkeypatch.setitem, FORMATS)


@pytest.fixture
def formats(add):
    add("exact", answering("exact.txt", difference=0.0))
    add("near", answering("near.txt", lambda x: x + 0.5, difference=1.0))
    add("far", answering("far.txt", lambda x: x + 1.5, difference=1.0))
    add("turned", answering("turned.txt", lambda x: -x, same=0.9))
    add("not a number", answering("nan.txt", lambda x: x / 0, difference=1.0))


@pytest.mark.parametrize("name", ["far", "turned", "not a number"])
def test_other_answers_than_the_networks_leave_no_file(command, trained, formats, name):
    Path("former").mkdir()
    former = Path("former", FORMATS[name].file)
    former.write_bytes(b"former")
    model = ("--snapshot", trained.snapshot)
    for out in ("former", "fresh"):
        done = command("export", *model, "--format", f"exact,{name}", "--out", out)
        assert done.code == 1
        assert done.err.startswith(f"error: --format {name} was not written, because its")
        assert done.err.count("\n") == 1
    assert former.read_bytes() == b"former"
    assert [path.name for path in Path("former").iterdir()] == [former.name]
    assert not list(Path("fresh").iterdir())


def test_several_formats_go_into_one_folder(command, trained, formats):
    done = command(
        "export", "--snapshot", trained.snapshot, "--format", "near, exact,near", "--out", "a.b/c"
    )
    assert (done.code, done.err) == (0, "")
    assert sorted(path.name for path in Path("a.b/c").iterdir()) == ["exact.txt", "near.txt"]
    _, near, exact = done.out.splitlines()
    assert near.startswith("a.b/c/near.txt: 0.00 MB; on 9 test images: largest difference of a")
    assert "logit 0.5, equal top-1 100.00%" in near
    assert "logit 0, equal top-1 100.00%" in exact
    several = ("--format", "near,exact", "--out", "d.txt")
    done = command("export", "--snapshot", trained.snapshot, *several)
    assert (done.code, done.out) == (2, "")
    assert "--out d.txt is one file, for several formats; name a folder" in done.err


def test_a_folder_is_exported_file_by_file(command, trained, add):
    def write(source, path: Path) -> None:
        (path / "deep").mkdir(parents=True)
        (path / "a.txt").write_text("a")
        (path / "deep/b.txt").write_text("b")

    add("folder", answering("hub")._replace(write=write))
    for flags, place in (((), "hub"), (("--out", "other"), "other/hub")):
        done = command("export", "--snapshot", trained.snapshot, "--format", "folder", *flags)
        assert (done.code, done.err) == (0, "")
        assert Path(place, "deep/b.txt").read_text() == "b"


def test_a_writer_that_fails_is_one_line(command, trained, add):
    def fail(source, path):
        raise OSError(28, "No space left on device")

    add("full", Format("full.txt", fail, None))
    done = command("export", "--snapshot", trained.snapshot, "--format", "full")
    assert (done.code, done.err) == (
        1,
        "error: --format full could not be written (No space left on device)\n",
    )
    assert not list(Path().iterdir())


def test_a_file_that_cannot_be_read_back_is_a_failure(command, trained, add):
    def refuse(path):
        raise UserError("it is damaged")

    add("odd", answering("odd.txt")._replace(read=refuse))
    done = command("export", "--snapshot", trained.snapshot, "--format", "odd")
    assert (done.code, done.err) == (1, "error: --format odd cannot be read back (it is damaged)\n")
    assert not list(Path().iterdir())


def test_weights_of_half_the_size_are_used_like_others(command, trained):
    formats = ("--format", "safetensors,safetensors-half", "--out", "out")
    done = command("export", "--snapshot", trained.snapshot, *formats)
    assert (done.code, done.err) == (0, "")
    whole, half = (Path("out", f"weights{kind}.safetensors") for kind in ("", "-half"))
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    picture = next((trained.tree / "test").rglob("*.png"))
    for weights in (whole, half):
        done = command("predict", "--pretrained", weights, picture)
        assert (done.code, done.err) == (0, "")
    done = command("export", "--pretrained", half, "--format", "safetensors-half", "--out", "again")
    assert (done.code, done.err) == (0, "")
    assert "largest difference of a logit 0," in done.out


def test_without_the_images_of_the_training_random_ones_are_compared(command, trained):
    """Weights do not say where their images are; a format that needs some asks for them."""
    done = command("export", "--pretrained", trained.weights)
    assert (done.code, done.err) == (0, "")
    why, about, read_back = done.out.splitlines()
    assert about.startswith(f"{trained.weights}: epoch 4 on pictures, top-1 ")
    assert why.startswith("no test images: comparing on random ones (")
    assert "does not say where; add --dataset folder --data_dir TREE" in why
    assert "on 100 random images: largest difference of a logit 0, equal top-1 100.0" in read_back
    assert "network" not in read_back
    done = command("export", "--pretrained", trained.weights, "--data_dir", trained.tree)
    assert "on 9 test images" in done.out
    other = draw_tree(Path("other"), classes=("bar", "tree"))
    done = command("export", "--pretrained", trained.weights, "--data_dir", other)
    assert done.code == 2
    assert "has the class 'tree', which the network lacks" in done.err


def test_cifar10_is_not_downloaded_unasked(command, trained, monkeypatch):
    changed = {"dataset": "cifar10", "data_dir": "nowhere"}
    settings = exporting.evaluation_settings
    monkeypatch.setattr(
        exporting, "evaluation_settings", lambda *request: settings(*request).replace(**changed)
    )
    done = command("export", "--snapshot", trained.snapshot)
    assert (done.code, done.err) == (0, "")
    assert "on 100 random images" in done.out
    assert not Path("nowhere").exists()


# --- ONNX, through the commands ---


@pytest.mark.parametrize("file", ["model.onnx", "model-int8.onnx"])
def test_predict_and_evaluate_take_onnx_files(command, trained, onnx_files, file):
    pictures = sorted(trained.tree.glob("test/*/*.png"))

    def shares(path):
        done = command("predict", "--json", "--pretrained", path, *pictures)
        assert (done.code, done.err) == (0, "")
        rows = [json.loads(line)["predictions"] for line in done.out.splitlines()]
        return [[guess["probability"] for guess in row] for row in rows], rows

    probabilities, rows = shares(onnx_files / file)
    expected, _ = shares(trained.weights)
    near = 1e-5 if file == "model.onnx" else 0.05
    assert torch.tensor(probabilities).sub(torch.tensor(expected)).abs().max() < near
    assert [row[0]["class"] for row in rows] == [path.parent.name for path in pictures]

    flags = ("--data_dir", trained.tree, *QUIET)
    done = command("evaluate", "--pretrained", onnx_files / file, *flags)
    assert (done.code, done.err) == (0, "")
    report = figures()
    of_the_run = json.loads(trained.metrics.read_text())
    for name in ("top1", "epoch", "dataset", "selected_by", "parameters"):
        assert report[name] == of_the_run[name]
    assert report["loss"] == pytest.approx(of_the_run["loss"], abs=near)
    assert report["sha256"] != of_the_run["sha256"]  # it is another network, with its own report


def test_an_onnx_file_is_as_accurate_on_corrupted_images(command, trained, onnx_files):
    tables = []
    for model in (trained.weights, onnx_files / "model.onnx"):
        flags = ("--data_dir", trained.tree, "--corruptions", "--plot_dir", model.name, *QUIET)
        assert command("evaluate", "--pretrained", model, *flags).code == 0
        tables.append(Path(model.name, "corruptions.csv").read_text())
    assert tables[0] == tables[1]


def test_an_onnx_file_is_a_member_of_an_ensemble_and_loads_from_python(
    command, trained, onnx_files
):
    """An ensemble of the same network twice answers as the network does."""
    picture = next(trained.tree.glob("test/disc/*.png"))
    alone = command("predict", "--pretrained", trained.weights, picture)
    both = f"{trained.weights},{onnx_files / 'model.onnx'}"
    assert command("predict", "--pretrained", both, picture).out == alone.out
    classifier = load_pretrained(onnx_files / "model.onnx")
    with Image.open(picture) as opened:
        assert classifier.classes[classifier(classifier.pixels(opened)).argmax()] == "disc"


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_a_wrong_onnx_file_is_one_line(command, trained, onnx_files, content):
    if content is None:
        content = (onnx_files / "model.onnx").read_bytes()[:-1]
    Path("cut.onnx").write_bytes(content)
    picture = next(trained.tree.glob("test/disc/*.png"))
    for name, *flags in (("predict", picture), ("evaluate", "--data_dir", trained.tree)):
        done = command(name, "--pretrained", "cut.onnx", *flags)
        assert (done.code, done.out) == (2, "")
        assert done.err == (
            "error: cut.onnx is truncated, damaged, or of another program; "
            "use an .onnx file that export.py wrote\n"
        )
    refused = command("export", "--pretrained", "cut.onnx")
    assert refused.code == 2
    assert "only predict.py and evaluate.py read an ONNX file" in refused.err


def test_8_bits_are_calibrated_with_training_images(command, trained):
    done = command("export", "--pretrained", trained.weights, "--format", "onnx-int8")
    assert done.code == 2
    assert "does not say where; add --dataset folder --data_dir TREE" in done.err
    assert not list(Path().iterdir())


def test_test_images_suffice_except_for_the_calibration(command, trained):
    """A part of the classes, and no folder of training images."""
    shutil.copytree(trained.tree / "test" / "disc", "mine/test/disc")
    images = ("--dataset", "folder", "--data_dir", "mine")
    export = ("export", "--pretrained", trained.weights, *images)
    done = command(*export, "--format", "onnx-int8", "--out", "out")
    assert (done.code, Path("out").exists()) == (2, False)
    assert "--format onnx-int8 is calibrated with training images, but mine has none" in done.err
    assert command(*export, "--format", "page", "--out", "out").code == 0


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_not_installed_is_named_before_any_work(
    command, trained, onnx_files, monkeypatch, package
):
    monkeypatch.setitem(sys.modules, package, None)
    done = command("export", "--snapshot", trained.snapshot, "--format", "safetensors,onnx")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"error: --format onnx needs the package {package}, which is not installed; "
        f"pip install -r requirements-extra.txt, or leave --format onnx out\n"
    )
    assert bench.main(["--inference"]) == 2
    file = onnx_files / "model.onnx"
    picture = next(trained.tree.glob("test/disc/*.png"))
    done = command("predict", "--pretrained", file, picture)
    assert done.code == (2 if package == "onnxruntime" else 0)
    assert ("needs the package onnxruntime" in done.err) == (package == "onnxruntime")


def test_int8_is_calibrated_with_training_images(tmp_path, monkeypatch):
    taken, splits = [], small_splits()
    write = "cifarnet.export.onnx.write_int8"
    monkeypatch.setattr(write, lambda classifier, images, path: taken.append(images))
    source = Source(random_model(classes="ab"), splits, None)
    FORMATS["onnx-int8"].write(source, tmp_path / "model.onnx")
    assert torch.equal(taken[0], splits.train.images)
