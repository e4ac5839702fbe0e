import base64
import hashlib
import html
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from support.pages import Elements, data_of, words
from support.reports import ABOUT, make_report, random_logits
from support.snapshots import make_row

from cifarnet.reporting.html import CIFAR10, LIMIT, ReportData, write_page
from cifarnet.reporting.metrics import build_report
from cifarnet.reporting.thumbnails import COLUMNS, LARGEST


def noise(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def page_of(directory, report, best=None, **parts) -> str:
    figures = {"run": report.run, "last": report.headline(), "best": best}
    parts = {
        "images": noise(report.images),
        "official": False,
        "names": range(report.images),
    } | parts
    write_page(report, figures, ReportData(**parts), directory)
    return (directory / "report.html").read_text(encoding="utf-8")


HOSTILE = ("</script><script>alert(1)</script>", "\"q'&<!--", "漢字", "مرحبا", "]]>{{ 7 * 7 }}")


def test_hostile_names_are_text(tmp_path):
    plain = Elements(page_of(tmp_path, make_report("abcde"))).names
    run = {"command": HOSTILE[1], "settings": {"dataset_name": HOSTILE[0], "augment": "none"}}
    report = make_report(HOSTILE, dataset=HOSTILE[0], run=run)
    report = replace(report, snapshot="\udcff.pth")  # a name that is not text
    paths = [f"{HOSTILE[i % 5]}.png" for i in range(60)]
    page = page_of(tmp_path, report, names=paths)
    names = Elements(page).names
    assert names.count("script") == plain.count("script") == 2
    assert names.count("bdi") == plain.count("bdi")  # no name became an element
    assert data_of(page)["classes"] == list(HOSTILE)
    assert set(data_of(page)["names"]) <= set(paths)
    text = words(page)
    assert all(name in text for name in (*HOSTILE, "\\udcff.pth"))


def test_the_policy_allows_this_script_and_style_and_nothing_else(tmp_path):
    page = page_of(tmp_path, make_report("ab"), history=[make_row(1)])
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    rules = dict(rule.split(None, 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for kind, text in (
        ("style-src", re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]),
        ("script-src", re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]),
    ):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[kind] == f"'sha256-{digest}'"
    elements = Elements(page)
    assert not [n for n, _ in elements.attributes if n == "style" or n.startswith("on")]
    assert all(address.startswith(("#", "data:image/")) for address in elements.addresses)
    assert "http" not in re.sub(r"http-equiv", "", page)


@pytest.mark.parametrize(
    ("classes", "images", "size"), [(10, 3000, 128), (100, 8000, 32), (300, 3000, 32)]
)
def test_a_page_stays_small(tmp_path, classes, images, size):
    report = make_report([f"class {i}" for i in range(classes)], images)
    pixels = np.resize(noise(500, size), (images, 3, size, size))  # the largest as JPEG
    page = page_of(tmp_path, report, images=pixels)
    assert len(page.encode()) < LIMIT == 4_000_000
    text, shown = words(page), len(data_of(page)["shown"])
    data = data_of(page)
    assert f"of the {images:,} images, at most {data['most']} per cell" in text
    assert f"the page shows {shown:,} of " in text
    assert ("100 of 300 classes with the most mistakes" in text) == (classes == 300)


def test_what_is_not_known_is_left_out(tmp_path):
    bare = page_of(tmp_path, make_report("ab"))
    full = page_of(
        tmp_path,
        make_report("ab", run={"settings": {"augment": "light", "lr": 0.25}}),
        history=[make_row(1), make_row(2)],
        computed_on="a machine",
        augmented=lambda: noise(6).reshape(2, 3, 3, 32, 32),
    )
    for part in (
        *("2 epochs in 0:00:01 of training on a machine", "trained ona machine"),
        *("augmented versions, as in training (--augment light)", "--lr0.250.1"),
    ):
        assert (part in words(full), part in words(bare)) == (True, False)
    assert "Training time and device are not known" in words(bare)
    for section in ("training", "augmentation"):
        assert all(f'{place}{section}"' in full for place in ('id="', 'href="#'))
        assert f'{section}"' not in bare  # neither an empty section nor a link to it


def test_mixing_is_a_part_of_augmentation(tmp_path):
    mixed = make_report("abc", run={"settings": {"augment": "none", "mixup": 0.2}})
    text = words(page_of(tmp_path, mixed, augmented=lambda: noise(6).reshape(2, 3, 3, 32, 32)))
    assert "(--augment none, --mixup 0.2)" in text


def test_pictures_from_files_are_larger_than_what_the_network_sees(tmp_path):
    colours = np.arange(60, dtype=np.uint8)[:, None, None, None]

    def larger(indices):
        return (4 * colours[indices]).repeat(3, 1).repeat(LARGEST, 2).repeat(LARGEST, 3)

    page = page_of(tmp_path, make_report("abc"), larger=larger)
    assert data_of(page)["tile"] == LARGEST
    assert "shown with 64 by 64 pixels; the network sees 32 by 32" in words(page)
    sheet = base64.b64decode(re.search(r'src="data:image/jpeg;base64,([^"]*)"', page)[1])
    pixels = np.asarray(Image.open(io.BytesIO(sheet))).astype(int)
    for place, (index, *_) in enumerate(data_of(page)["shown"]):
        x, y = LARGEST * (place % COLUMNS), LARGEST * (place // COLUMNS)
        assert abs(pixels[y + 32, x + 32] - 4 * index).max() <= 4


def test_the_page_of_an_ensemble_shows_no_single_training(tmp_path):
    members = [{"snapshot": name} for name in ("a.pth", "b.pth")]
    text = words(page_of(tmp_path, replace(make_report("abc"), members=members)))
    assert "The report on each member shows its settings" in text
    assert "Repeat the training" not in text


def test_the_published_run_stands_beside_cifar_10_only(tmp_path):
    assert "published run" not in words(page_of(tmp_path, make_report("ab")))
    report = make_report(CIFAR10, dataset="CIFAR-10, squeezed")
    text = words(page_of(tmp_path, report))
    assert "60 images of CIFAR-10, squeezed, not the official test images" in text
    assert f"{100 * (report.top1 - 0.8788):+.2f} points" in text
    text = words(page_of(tmp_path, report, official=True))
    assert "This network: 60 of the 10,000 official images. " in text
    assert "approximate" not in text


@pytest.mark.parametrize(("top1", "clear"), [(0.8788, False), (0.875, False), (0.92, True)])
def test_a_difference_within_the_interval_is_not_claimed(tmp_path, top1, clear):
    """The bounds of 87.88 % of 10,000 images are 87.23 % and 88.50 %."""
    report = replace(make_report(CIFAR10), top1=top1, images=10_000)
    text = words(page_of(tmp_path, report, official=True))
    assert "This network: all 10,000 official images. " in text
    (row,) = re.findall(r"top-1[0-9.]+.%87.88.%(unclear|[-+0-9.]+ points) top-3", text)
    assert row == (f"{100 * (top1 - 0.8788):+.2f} points" if clear else "unclear")
    assert ("“unclear”: the published figure is in" in text) != clear


def test_figures_and_command_of_the_run(tmp_path):
    settings = {"epochs": 3, "lr": 0.25, "seed": 42}
    report = make_report("abcde", run={"settings": settings, "command": "main.py --lr 0.25"})
    best = {"epoch": 2, "top1": 0.75, "loss": 0.5}
    text = words(page_of(tmp_path, report, best=best)).replace("\N{NO-BREAK SPACE}", " ")
    low, high = (f"{100 * share:.2f} %" for share in report.interval)
    for part in (
        *(f"{low} to {high}", f"macro F1{report.macro['f1']:.4f}", f"loss{report.loss:.4f}"),
        *("parameters1,234", "best275.00 %0.5000", "python main.py --epochs 3 --lr 0.25"),
    ):
        assert part in text


def test_the_summary_has_the_figures_of_the_report(tmp_path):
    logits, labels = random_logits(4, 400)
    logits[labels == 2, 2] -= 1  # the weakest class
    noise_shares = {"noise": np.array([0.7, 0.8]), "checks": np.array([0.9, 0.95])}
    report = build_report(3 * logits, labels, ("a", "b", "<c>", "d"), noise_shares, **ABOUT)
    text = words(page_of(tmp_path, report)).replace("\N{NO-BREAK SPACE}", " ")
    (at_80,) = (row for row in report.thresholds if row["threshold"] == 0.8)
    p, hits = (
        report.predictions.p_predicted,
        report.predictions.true == report.predictions.predicted,
    )
    for part in (
        f"It is right for {report.top1:.1%} of the test images",
        f"The weakest class is <c>: {report.per_class['<c>']['recall']:.1%} of its images (",
        f"{100 * (p.mean() - report.top1):.1f} points too high on average; they are not calibrated",
        f"answers {at_80['answered']:.1%} of the images with 80% or more, and "
        f"{at_80['accuracy']:.1%} of these answers are right",
        f"Below 80%: {hits[p < 0.8].mean():.1%} of these answers are right",
        "it still names one, with 80% or more for up to 100% of such images (checks).",
    ):
        assert part.replace("%", " %") in text


def test_classes_that_stay_unreliable_above_the_threshold_are_named(tmp_path):
    logits = 9 * torch.eye(3)[torch.arange(600) % 3]
    labels = torch.arange(600) % 3
    labels[:300:3] = 1  # half of the answers "a" are wrong
    text = words(page_of(tmp_path, build_report(logits, labels, tuple("abc"), **ABOUT)))
    assert "When it says a: it is wrong more often" in text
    assert re.search(r"of all answers: a\. answer ?images ?correct ?interval ?a ?200 ?50\.0", text)


def test_pictures_of_no_class_are_shown(tmp_path):
    shares = {kind: np.array([0.9]) for kind in ("noise", "checks")}
    report = build_report(torch.eye(2), torch.tensor([0, 1]), ("a", "b"), shares, **ABOUT)
    page = page_of(tmp_path, report, no_class=np.full((2, 3, 32, 32), 200, np.uint8))
    first, shown = data_of(page)["samples"], data_of(page)["shown"]
    assert page.count('class="sample"') == 2
    sheet = base64.b64decode(re.search(r'src="data:image/jpeg;base64,([^"]*)"', page)[1])
    pixels = np.asarray(Image.open(io.BytesIO(sheet))).astype(int)[:32]
    assert first == len(shown)
    assert abs(pixels[:, 32 * first : 32 * (first + 2)] - 200).max() <= 4


@pytest.mark.parametrize(("labels", "empty"), [([0, 1], "mistakes"), ([1, 0], "hits")])
def test_without_mistakes_or_hits_their_section_is_left_out(tmp_path, labels, empty):
    report = build_report(torch.eye(2), torch.tensor(labels), ("a", "b"), **ABOUT)
    page = page_of(tmp_path, report)
    sections = [name for name in ("mistakes", "hits") if f'id="{name}"' in page]
    assert sections == [name for name in ("mistakes", "hits") if name != empty]
    assert ("No image is classified wrongly." in words(page)) == (empty == "mistakes")


def test_hits_that_are_sure_are_not_called_the_least_confident(tmp_path):
    report = build_report(20 * torch.eye(2), torch.tensor([0, 1]), ("a", "b"), **ABOUT)
    assert 'id="hits"' not in page_of(tmp_path, report)
