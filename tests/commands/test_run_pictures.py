"""compare.py --html: the images that only one of two runs predicts correctly, as pictures."""

import base64
import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.browser import console, open_page
from support.commands import run
from support.pages import words
from support.pictures import draw_tree
from support.runs import leave_run

from cifarnet.images.digits import read_digits
from cifarnet.settings.data import DataSettings

HEAD = ("image", "true", "predicted", "probability_true", "probability_predicted")


def leave(folder: Path, rows: list[tuple], **flags: object) -> None:
    """A run with the predictions `rows`."""
    leave_run(folder, **flags)
    with (folder / "plots_complete/predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEAD, *rows])


def leave_two(rows: list[tuple[str, str]], wrong: str, **flags: object) -> None:
    """Two runs on images with true classes: one is wrong on the first, the other on the last two.

    `wrong` is what they predict there.
    """
    for name, mistakes in (("one", rows[:1]), ("other", rows[-2:])):
        answers = [(*row, wrong if row in mistakes else row[1]) for row in rows]
        leave(Path(name), [(*row, 0.2, 0.5 + at / 10) for at, row in enumerate(answers)], **flags)


def pictures(page: Path) -> list[tuple[str, np.ndarray]]:
    """Names and pixels uint8 [H,W,3] of the pictures on the page."""
    text = page.read_text(encoding="utf-8")
    return [
        (name, np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))))
        for content, name in re.findall(r'src="data:image/png;base64,([^"]+)" alt="([^"]+)"', text)
    ]


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    """`compare(*flags)` -> exit code and stderr; runs are "one" and "other" in a new folder."""
    monkeypatch.chdir(tmp_path)

    def compare_in_directory(*flags):
        code = run("compare", "one", "other", "--html", "page.html", *flags)
        return code, capsys.readouterr().err

    return compare_in_directory


def test_files_are_shown_by_their_names_the_most_confident_mistake_first(compare, browser):
    tree = draw_tree(Path("pictures"), classes=("bar", "disc"))
    names = [path.relative_to(tree).as_posix() for path in sorted(tree.glob("test/bar/*.png"))]
    leave_two([(name, "bar") for name in names], "disc", dataset="folder", data_dir=str(tree))
    assert compare() == (0, "")
    shown = pictures(Path("page.html"))
    assert [name for name, _ in shown] == [names[2], names[1], names[0]]
    for name, pixels in shown:
        assert np.array_equal(pixels, np.asarray(Image.open(tree / name)))
    text = words(Path("page.html").read_text())
    assert "one is right, other is wrong: 2 images" in text
    assert "other is right, one is wrong: 1 image" in text

    open_page(browser, Path("page.html"))
    widths = "return [...document.images].map((image) => image.naturalWidth)"
    assert browser.execute_script(widths) == [32] * 3
    assert console(browser) == []

    tree.rename("moved")
    code, err = compare()
    assert (code, err.count("\n")) == (0, 1) and "the page shows no images: " in err
    assert pictures(Path("page.html")) == []
    assert names[2] in words(Path("page.html").read_text())
    assert compare("--data_dir", "moved") == (0, "")
    assert len(pictures(Path("page.html"))) == 3


def test_images_of_a_data_set_are_shown_by_their_numbers(compare):
    test = read_digits(DataSettings(), print).test
    classes = [test.classes[label] for label in test.labels[:5]]
    leave_two([(str(at), name) for at, name in enumerate(classes)], "none", dataset="digits")
    assert compare() == (0, "")
    shown = pictures(Path("page.html"))
    assert [name for name, _ in shown] == ["4", "3", "0"]
    for name, pixels in shown:
        assert np.array_equal(pixels.transpose(2, 0, 1), test.images[int(name)].numpy())


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"dataset": "digits"}, "are not those of predictions.csv"),
        ({"dataset": "cifar10", "data_dir": "nowhere"}, "nowhere does not hold CIFAR-10"),
    ],
)
def test_other_or_missing_images_are_not_shown(compare, flags, reason):
    leave_two([(str(at), "bar") for at in range(4)], "disc", **flags)
    code, err = compare()
    assert (code, err.count("\n")) == (0, 1) and reason in err
    assert reason in words(Path("page.html").read_text())
    assert not Path("nowhere").exists()
