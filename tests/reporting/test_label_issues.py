import csv
import shutil
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.commands import QUICK, QUIET, from_folder
from support.pages import data_of, words

from cifarnet.reporting.label_issues import label_issues
from cifarnet.reporting.predictions import build_predictions


@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 60))
def test_doubtful_labels_are_off_the_diagonal_of_the_confident_joint(seed, classes, images):
    """Northcutt et al. 2021, equations 1 and 2, image by image."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, generator=generator)
    labels = torch.randint(0, classes, (images,), generator=generator)
    issues = label_issues(build_predictions(logits, labels))
    shares, expected = logits.double().softmax(dim=1), {}
    for x in range(images):
        confident = [
            j
            for j in range(classes)
            if (labels == j).any() and shares[x, j] >= shares[labels == j, j].mean()
        ]
        best = max(confident, key=lambda j: shares[x, j], default=labels[x])
        if best != labels[x]:
            expected[x] = best
    assert dict(zip(*(part.tolist() for part in issues), strict=True)) == expected
    doubts = [shares[x, labels[x]].item() for x in issues.images]
    assert doubts == sorted(doubts)


def test_a_wrong_label_is_found_and_shown(command, trained, tmp_path):
    """A disc lies among the stars."""
    tree = tmp_path / "tree"
    shutil.copytree(trained.tree, tree)
    (tree / "test/disc/000.png").rename(tree / "test/star/moved.png")
    flags = (*from_folder(tree)[:4], "--plot_dir", "p", "--no-plot_evaluation")
    done = command("evaluate", "--snapshot", trained.snapshot, *flags)
    assert (done.code, done.err) == (0, "")
    with Path("p/label_issues.csv").open(newline="", encoding="utf-8") as file:
        first, *_ = csv.DictReader(file)
    named = first["image"], first["label"], first["suggested"]
    assert (first["part"], *named) == ("test", "test/star/moved.png", "star", "disc")
    assert float(first["probability_label"]) < float(first["probability_suggested"])
    page = data_of(Path("p/report.html").read_text(encoding="utf-8"))
    assert page["names"][page["lists"]["doubts"][0]] == named[0]


def test_a_wrong_label_of_a_validation_image_is_found_and_shown(command, trained, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(trained.tree, tree)
    shutil.copytree(tree / "test", tree / "val")
    (tree / "val/disc/000.png").rename(tree / "val/star/moved.png")
    recipe = ("--network", "cifarnet", "--epochs", "4", "--augment", "none", "--dropout", "0")
    recipe += ("--image_sizes", "32")
    done = command("main", *QUICK, *from_folder(tree), *recipe, "--report", "--plot_dir", "p")
    assert (done.code, done.err) == (0, "")
    with Path("p/label_issues.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == "validation"]
    named = rows[0]["image"], rows[0]["label"], rows[0]["suggested"]
    assert named == ("val/star/moved.png", "star", "disc")
    text = Path("p/report.html").read_text(encoding="utf-8")
    page, count = data_of(text), len(rows)
    before = Path("p/label_issues.csv").read_bytes()
    last = ("--snapshot", "snapshots_complete/last.pth", "--plot_dir", "p", *QUIET)
    done = command("evaluate", *last)
    assert (done.code, done.err) == (0, "")
    assert Path("p/label_issues.csv").read_bytes() == before
    shown = [page["shown"][place][0] for place in page["lists"]["validation"]]
    assert shown == [row["image"] for row in rows]
    assert page["tested"] + count == len(page["shown"])
    assert f"{count} validation image{'s' if count > 1 else ''}" in words(text)


def test_a_class_without_images_is_never_suggested():
    logits = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 9.0]])
    predictions = build_predictions(logits, torch.tensor([0, 1]))
    assert not np.isin(label_issues(predictions).suggested, [2]).any()


def test_without_the_validation_images_of_the_run_a_line_says_so(command, trained):
    flags = (*QUICK, *from_folder(trained.tree), "--epochs", "1", "--val_fraction", "0.4")
    assert command("main", *flags).code == 0
    again = ("evaluate", "--snapshot", "snapshots_complete/last.pth", "--plot_dir", "p", *QUIET)
    for more, said in (((), False), (("--data_dir", trained.tree), True)):
        done = command(*again, *more)
        assert (done.code, done.err) == (0, "")
        words = "label_issues.csv lists test images only: the validation images are not known"
        assert (words in done.out) == said
