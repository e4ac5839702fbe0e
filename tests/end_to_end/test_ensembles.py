"""Several networks as one, and test-time augmentation, as someone uses them."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.commands import QUIET
from support.outputs import figures

import hubconf
from cifarnet.checkpoints.snapshots import load_trained
from cifarnet.checkpoints.trained import fingerprint, write_weights


@pytest.fixture
def other(trained, tmp_path) -> str:
    """A network for the same pictures with other weights; there is a comma in its path."""
    model = load_trained(str(trained.weights))
    noise = torch.Generator().manual_seed(0)
    head = model.weights["head.weight"]
    weights = model.weights | {"head.weight": head + 0.2 * torch.randn(head.shape, generator=noise)}
    origin = dataclasses.replace(model.origin, epoch=7)
    changes = {"weights": weights, "origin": origin, "sha256": fingerprint(weights)}
    write_weights(dataclasses.replace(model, **changes), tmp_path / "a,b.safetensors")
    return "a,b.safetensors"


def shares_of(done) -> list[dict[str, float]]:
    assert (done.code, done.err) == (0, "")
    rows = [json.loads(line)["predictions"] for line in done.out.splitlines()]
    return [{guess["class"]: guess["probability"] for guess in row} for row in rows]


def mean(*sides: list[dict[str, float]]) -> list[dict[str, float]]:
    return [
        {name: pytest.approx(np.mean([row[name] for row in rows]), abs=1e-6) for name in rows[0]}
        for rows in zip(*sides, strict=True)
    ]


# --- predict ---


def test_an_ensemble_and_mirror_images_average_the_probabilities(command, trained, other):
    Path("mirrored").mkdir()
    for path in sorted(trained.tree.glob("test/*/*.png")):
        with Image.open(path) as picture:
            picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
                Path("mirrored") / f"{path.parent.name}{path.name}"
            )
    pictures = sorted(trained.tree.glob("test/*/*.png"))

    def shares(pretrained, *rest):
        return shares_of(command("predict", "--json", "--pretrained", pretrained, *rest))

    one, two = shares(trained.weights, *pictures), shares(other, *pictures)
    both = f"{trained.snapshot},{other}"
    assert shares(both, *pictures) == mean(one, two)
    assert one != mean(two)
    turned = shares(trained.weights, "mirrored")
    for where in (pictures, ["mirrored"]):
        assert shares(trained.weights, "--tta", "flip", *where) == mean(one, turned)
    expected = mean(one, two, turned, shares(other, "mirrored"))
    assert shares(both, "--tta", "flip", *pictures) == expected


# --- evaluate ---


def test_networks_that_do_not_fit_together_are_one_line(command, trained):
    model = load_trained(str(trained.weights))
    odd = dataclasses.replace(model, classes=("bar", "star", "disc"))
    write_weights(odd, Path("odd.safetensors"))
    done = command("evaluate", "--pretrained", f"{trained.weights},odd.safetensors")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "odd.safetensors has 3 (bar, star, disc)" in done.err
    assert [path.name for path in Path().iterdir()] == ["odd.safetensors"]


def test_the_report_says_that_it_is_of_an_ensemble(command, trained, other):
    images = ("--dataset", "folder", "--data_dir", trained.tree, *QUIET)
    one, two = str(trained.weights), other
    for where, pretrained in (
        ("1", one),
        ("2", two),
        ("12", f"{one},{two}"),
        ("21", f"{two},{one}"),
    ):
        page = ("--report",) if where == "12" else ()
        done = command("evaluate", "--pretrained", pretrained, *images, "--plot_dir", where, *page)
        assert (done.code, done.err) == (0, "")
    alone, both = [figures(Path(where)) for where in "12"], figures(Path("12"))
    assert (both["snapshot"], both["epoch"], both["weights"]) == (f"{one},{two}", "4, 7", "raw")
    assert both["selected_by"] == alone[0]["selected_by"]
    assert both["parameters"] == 2 * alone[0]["parameters"]
    about = ("snapshot", "epoch", "weights", "selected_by", "sha256")
    about += ("temperature", "calibrated_on")
    assert both["members"] == [{name: report[name] for name in about} for report in alone]
    assert [report["members"] for report in alone] == [[], []]
    sha256 = [report["sha256"] for report in alone]
    assert both["sha256"] == hashlib.sha256("".join(sha256).encode()).hexdigest()
    assert figures(Path("21"))["sha256"] != both["sha256"]
    assert figures(Path("21"))["loss"] == pytest.approx(both["loss"])
    text = Path("12/classification_report.txt").read_text()
    assert f"snapshot: ensemble of 2: {one},{two} (epoch 4, 7; last epoch" in text
    assert f"parameters: {both['parameters']:,}\n" in text
    page = Path("12/report.html").read_text(encoding="utf-8")
    assert f"<code>ensemble of 2: {one},{two}</code>, epoch 4, 7; last epoch" in page

    refused = command("export", "--snapshot", trained.snapshot, "--metrics", "12/metrics.json")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("error: --metrics 12/metrics.json is of an ensemble, or of a")


def test_a_report_with_augmentation_does_not_replace_the_one_without(command, trained):
    evaluate = ("evaluate", "--snapshot", trained.snapshot, *QUIET)
    assert command(*evaluate).code == 0
    plain = figures(Path("plots_complete"))
    done = command(*evaluate, "--tta", "flip", "--report")
    moved = "moved the report of another network, temperature or images to plots_complete/before_"
    assert moved in done.out
    assert f"{trained.snapshot}, --tta flip (epoch 4): top-1" in done.out
    augmented = figures(Path("plots_complete"))
    assert (plain["tta"], augmented["tta"]) == ("none", "flip")
    page = Path("plots_complete/report.html").read_text(encoding="utf-8")
    assert f"<code>{trained.snapshot}, --tta flip</code>, epoch 4" in page
    assert augmented["sha256"] == plain["sha256"]
    assert augmented["loss"] != plain["loss"]
    (moved,) = Path("plots_complete").glob("before_*/metrics.json")
    assert json.loads(moved.read_text()) == plain
    assert command("export", "--snapshot", trained.snapshot, "--metrics", moved).code == 0
    refused = command(
        "export", "--snapshot", trained.snapshot, "--metrics", "plots_complete/metrics.json"
    )
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "or of a network with --tta; evaluate the network alone" in refused.err


# --- torch.hub ---


@torch.inference_mode()
def test_the_hub_has_ensembles_too(trained, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    both = hubconf.classifier(f"{trained.weights},{other}", tta="flip")
    with Image.open(next(trained.tree.glob("test/disc/*.png"))) as picture:
        probabilities = both(both.pixels(picture))
    assert both.classes[probabilities.argmax()] == "disc"
    assert (len(both.infos), both.tta) == (2, "flip")
