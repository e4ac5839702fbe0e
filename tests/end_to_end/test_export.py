"""export.py --format safetensors, as someone uses it."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import QUICK, QUIET, assert_one_line, from_folder
from support.outputs import figures, metadata, settings_of, snapshot

from cifarnet.checkpoints.trained import fingerprint
from cifarnet.settings.output import PLOTS


def test_export_keeps_what_using_the_weights_needs(command, trained):
    done = command("export", "--snapshot", trained.snapshot, "--out", "new/w.safetensors")
    assert (done.code, done.err) == (0, "")
    content, report = torch.load(trained.snapshot), json.loads(trained.metrics.read_text())
    top1 = f"{report['top1']:.2%}"
    about, read_back = done.out.splitlines()
    assert about == (
        f"{trained.snapshot}: epoch 4 on pictures, top-1 {top1} (the run's history, epoch 4); "
        f"0.70 MB of weights in float32"
    )
    assert read_back == (
        "new/w.safetensors: 0.70 MB; on 9 test images: largest difference of a logit 0, "
        f"equal top-1 100.00%, top-1 {top1} (network {top1}, in float32)"
    )
    fields = metadata(Path("new/w.safetensors"))
    for name in ("format", "network", "image_size", "classes", "mean", "std", "sha256"):
        assert fields[name] == content[name]
    assert fields["origin"]["accuracy"] == report["top1"] == content["history"][-1]["test_accuracy"]
    assert fields["origin"]["selected_by"] == report["selected_by"]
    weights = load_file("new/w.safetensors")
    assert weights.keys() == content["weights"].keys()
    assert all(torch.equal(weights[name], value) for name, value in content["weights"].items())
    assert Path("new/w.safetensors").stat().st_size < 750_000


def test_the_settings_in_the_weights_name_no_folder(trained):
    settings, of_run = (settings_of(str(p)) for p in (trained.weights, trained.snapshot))
    assert settings.items() <= of_run.items()
    assert settings["batch_size"] == 6
    folders = {name for name in of_run if name.endswith("_dir")}
    assert len(folders) == 5
    assert not settings.keys() & (folders | {"resume", "data_url", "preview_augment"})
    assert str(trained.tree.parent) not in json.dumps(metadata(trained.weights))


def test_the_accuracy_may_come_from_a_report(command, trained):
    report = json.loads(trained.metrics.read_text())
    assert report["sha256"] == fingerprint(torch.load(trained.snapshot)["weights"])
    request = ("export", "--snapshot", trained.snapshot, "--metrics", "metrics.json")
    Path("metrics.json").write_text(json.dumps(report | {"top1": 0.625}))
    assert command(*request).code == 0
    origin = metadata(Path("weights.safetensors"))["origin"]
    assert (origin["accuracy"], origin["accuracy_from"]) == (0.625, "metrics.json, 9 images")
    without = {name: value for name, value in report.items() if name != "sha256"}
    for wrong in (without, [], report | {"epoch": 3}):
        Path("metrics.json").write_text(json.dumps(wrong))
        done = command(*request)
        assert done.code == 2
        assert "--metrics metrics.json" in done.err


def test_a_page_takes_the_thresholds_of_the_report(command, trained):
    thresholds = json.loads(trained.metrics.read_text())["thresholds"]
    row = next(row for row in thresholds if row["threshold"] == 0.8)
    expected = json.dumps([row[name] for name in ("threshold", "answered", "accuracy")])
    for path, folder in ((trained.snapshot, "snapshots_complete"), (trained.metrics, PLOTS)):
        Path("run", folder).mkdir(parents=True)
        shutil.copy(path, Path("run", folder))
    shutil.copy(trained.snapshot, "alone.pth")
    metrics, nothing = ("--metrics", trained.metrics), "the page has no thresholds: "
    for flags in (("run/snapshots_complete/last.pth",), ("alone.pth",), ("alone.pth", *metrics)):
        done = command("export", "--format", "page", "--snapshot", *flags)
        assert (done.code, done.err) == (0, "")
        is_alone = flags == ("alone.pth",)
        assert (expected in Path("page.html").read_text(encoding="utf-8")) != is_alone
        assert ("When not to trust it" in Path("page.html").read_text()) != is_alone
        assert (f"{nothing}there is no metrics.json beside" in done.out) == is_alone


def test_averaged_weights_are_exported_where_the_run_evaluates_them(command, trained):
    flags = (*QUICK, *from_folder(trained.tree), "--epochs", "1")
    assert command("main", *flags, "--ema_decay", "0.5", "--evaluate", "ema").code == 0
    report, content = figures(), snapshot("last.pth")
    biases = {
        "ema": content["averaged"]["module.head.bias"],
        "raw": content["weights"]["head.bias"],
    }
    export = ("export", "--snapshot", "snapshots_complete/last.pth")
    for kind, more in (("ema", ()), ("raw", ("--evaluate", "raw"))):
        assert command(*export, *more).code == 0
        assert torch.equal(load_file("weights.safetensors")["head.bias"], biases[kind])
        origin = metadata(Path("weights.safetensors"))["origin"]
        assert origin["weights"] == kind
        assert origin["accuracy"] == (report["top1"] if kind == "ema" else None)
        images = ("--data_dir", trained.tree, "--plot_dir", kind, *QUIET)
        assert command("evaluate", "--pretrained", "weights.safetensors", *images).code == 0
        text = Path(kind, "classification_report.txt").read_text()
        assert ("averaged weights; last epoch" in text) == (kind == "ema")
    assert figures(Path("ema"))["loss"] == report["loss"] != figures(Path("raw"))["loss"]
    wrong = command(*export, "--evaluate", "raw", "--metrics", "ema/metrics.json")
    assert wrong.code == 2
    assert "weights ema; the weights to export are" in wrong.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "is required"),
        (("--snapshot", "missing.pth"), "No such file"),
        (("--snapshot", f"{'long' * 75}.pth"), "File name too long"),
        (("--snapshot", "SNAPSHOT", "--evaluate", "ema"), "keeps no averaged weights"),
        (("--snapshot", "SNAPSHOT", "--out", "weights.bin"), "does not end in .safetensors"),
        (
            ("--snapshot", "SNAPSHOT", "--out", "a_file/w.safetensors"),
            "a broken link has this name",
        ),
        (("--snapshot", "SNAPSHOT", "--metrics", "missing"), "No such file"),
        (("--snapshot", "SNAPSHOT", "--out", "a_folder.safetensors"), "is a folder; name a file"),
        (("--pretrained", "SNAPSHOT", "--evaluate", "raw"), "leave it out with --pretrained"),
        (("--snapshot", "SNAPSHOT", "--format", "safetensor"), "did you mean safetensors?"),
        (("--snapshot", "SNAPSHOT", "--dataset", "digits"), "class names differ"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_export_is_one_line(command, trained, flags, words):
    Path("a_file").touch()
    Path("a_folder.safetensors").mkdir()
    done = command(
        "export", *(str(trained.snapshot) if flag == "SNAPSHOT" else flag for flag in flags)
    )
    assert_one_line(done, 2, words)
    assert sorted(path.name for path in Path().iterdir()) == ["a_file", "a_folder.safetensors"]


def test_a_full_disk_ends_the_export_with_1(command, trained, monkeypatch):
    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    done = command("export", "--snapshot", trained.snapshot)
    assert (done.code, "No space left on device" in done.err) == (1, True)
    assert not list(Path().iterdir())
