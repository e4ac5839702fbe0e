"""report.html and predictions.csv, as a run and evaluate.py write them; the page in a browser."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.browser import console, fetched, open_page
from support.commands import QUICK, from_folder
from support.outputs import figures
from support.pages import data_of
from support.pictures import draw_tree

PLOTS = Path("plots_complete")


def rows_of(directory: Path = PLOTS) -> list[dict]:
    with (directory / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def page_of(directory: Path = PLOTS) -> str:
    return (directory / "report.html").read_text(encoding="utf-8")


def test_a_run_and_an_evaluation_say_the_same(command):
    done = command("main", *QUICK, "--report", "--save_best")
    assert (done.code, done.err) == (0, "")
    rows, report = rows_of(), figures()
    numbers = [int(row["image"]) for row in rows]  # of the 40 images, among all test images
    assert (len(numbers), numbers) == (40, sorted(set(numbers))) and numbers[-1] > 40
    assert np.mean([row["true"] == row["predicted"] for row in rows]) == report["top1"]
    low, high = report["interval"]
    assert 0 < low < report["top1"] < high < 1
    losses = -np.log([float(row["probability_true"]) for row in rows])
    assert np.mean(losses) == pytest.approx(report["loss"], rel=1e-4)
    assert 0 < report["calibration_error"] < 1
    page = page_of()
    for part in ("--save_best", "log/training_", ".run.json", "/best_model.pth", "predictions.csv"):
        assert part in page

    last = ("--snapshot", "snapshots_complete/last.pth", "--plot_dir", "again")
    assert command("evaluate", *last, "--no-plot_evaluation").code == 0
    assert rows_of(Path("again")) == rows
    assert data_of(page_of(Path("again")))["epochs"] == data_of(page)["epochs"]


def test_weights_alone_have_no_curves_and_images_are_named(command, trained):
    flags = ("--pretrained", trained.weights, *from_folder(trained.tree)[:4], "--plot_dir", "it")
    done = command("evaluate", *flags, "--no-plot_evaluation")
    assert (done.code, done.err) == (0, "")
    names = [row["image"] for row in rows_of(Path("it"))]
    files = sorted(trained.tree.glob("test/*/*.png"))
    assert names == [path.relative_to(trained.tree).as_posix() for path in files]
    data = data_of(page_of(Path("it")))
    assert data["epochs"] == []
    assert set(data["names"]) <= set(names)


def test_names_of_images_that_are_no_text_are_escapes(command, tree):
    folder = tree / "test" / "bar"
    (folder / "000.png").rename(folder / "odd\n\udcff.png")
    flags = (*QUICK, *from_folder(tree), "--epochs", "1", "--report")
    assert command("main", *flags).code == 0
    assert "test/bar/odd\\n\\udcff.png" in [row["image"] for row in rows_of()]


def test_no_report_of_another_run_stays_beside_new_predictions(command):
    def evaluate(snapshot: Path, report: str) -> None:
        places = ("--snapshot", snapshot, "--plot_dir", PLOTS)
        assert command("evaluate", *places, "--no-plot_evaluation", report).code == 0

    once, last = (*QUICK, "--epochs", "1"), Path("snapshots_complete/last.pth")
    page = PLOTS / "report.html"
    assert command("main", *once, "--report").code == 0
    evaluate(last, "--no-report")
    assert page.exists()  # of the same network and images
    assert command("main", *once, "--seed", "1").code == 0
    assert not page.exists()

    evaluate(last, "--report")
    assert page.exists()
    former = figures()["sha256"]
    (first,) = Path("snapshots_complete").glob("before_*/last.pth")
    evaluate(first, "--no-report")
    assert not page.exists()
    _, moved = sorted(PLOTS.glob("before_*"))
    files = {"report.html", "predictions.csv", "predictions.npz", "metrics.json"}
    files |= {"classification_report.txt", "label_issues.csv"}
    assert {path.name for path in moved.iterdir()} == files
    assert figures(moved)["sha256"] == former != figures()["sha256"]


def colours_shown(browser) -> list[list[int]]:
    """The mean colour of each picture in the panel of the confusion matrix."""
    return browser.execute_script(
        "return [...document.querySelectorAll('#cell-pictures canvas')].map(canvas => {"
        "  const {data, width} = canvas.getContext('2d').getImageData(0, 0, 32, 32);"
        "  return [0, 1, 2].map(c => data.filter((_, i) => i % 4 === c)"
        "    .reduce((a, b) => a + b) / (32 * 32)); })"
    )


def test_the_page_in_a_browser(command, browser, tmp_path):
    classes = ("<b>bar", "disc", "מילה", "star")
    tree = draw_tree(tmp_path / "pictures", classes, train=8, test=12)
    flags = (*QUICK, *from_folder(tree, 8), "--augment_engine", "batched", "--report")
    assert command("main", *flags, "--limit_test", "0").code == 0
    open_page(browser, PLOTS / "report.html")
    assert browser.execute_async_script(
        "document.getElementById('sheet').decode().then(() => setTimeout(arguments[0], 50, true))"
    )
    assert (console(browser), fetched(browser)) == ([], [])

    # a click on a cell shows the images behind it: their numbers and their pixels
    rows, files = rows_of(), [tree / row["image"] for row in rows_of()]
    cells = browser.find_elements("css selector", "#matrix td button")
    assert sum(int(cell.get_attribute("value")) for cell in cells) == len(rows) == 48
    for cell in cells:
        label = cell.get_attribute("aria-label")
        true, predicted = re.fullmatch(r"true (.*), predicted (.*): \d+", label).groups()
        cell.click()
        behind = [
            i for i, row in enumerate(rows) if (row["true"], row["predicted"]) == (true, predicted)
        ]
        pictures = browser.find_elements("css selector", "#cell-pictures figure")
        shown = [int(figure.get_attribute("data-index")) for figure in pictures]
        assert sorted(shown) == behind[:24] if len(behind) <= 24 else len(shown) == 24
        sure = [float(rows[i]["probability_predicted"]) for i in shown]
        assert sure == sorted(sure, reverse=True)
        for index, colour in zip(shown, colours_shown(browser), strict=True):
            with Image.open(files[index]) as picture:
                expected = np.asarray(picture.convert("RGB")).mean(axis=(0, 1))
            assert colour == pytest.approx(expected.tolist(), abs=3)
        assert cell.get_attribute("aria-pressed") == "true"
        assert browser.find_element("id", "cell-title").text.startswith(true)

    # the keyboard: one stop for the matrix, arrow keys in it
    assert [cell.get_attribute("tabindex") for cell in cells].count("0") == 1
    for arrow in ("\ue013", "\ue015"):  # up and down
        browser.switch_to.active_element.send_keys(arrow)
        assert browser.switch_to.active_element in cells

    # tables are sorted by their headings
    table = browser.find_element("css selector", "#classes table")
    recall = table.find_elements("css selector", "th[aria-sort]")[2]
    for order in ("ascending", "descending"):
        recall.find_element("css selector", "button").click()
        assert recall.get_attribute("aria-sort") == order
        values = [float(c.text) for c in table.find_elements("css selector", "td:nth-child(3)")]
        assert values == sorted(values, reverse=order == "descending")

    # the curves tell the figures of an epoch
    chart = browser.find_element("css selector", ".chart")
    assert browser.find_element("id", "epoch").text.startswith("epoch 2 ")
    chart.send_keys("\ue012")  # the left arrow
    assert browser.find_element("id", "epoch").text.startswith("epoch 1 ")

    # each kind of pictures of no class shows one
    kinds = browser.find_elements("css selector", "#confidence tr:has(.sample) th")
    samples = browser.find_elements("css selector", ".sample canvas")
    labels = [canvas.get_attribute("aria-label") for canvas in samples]
    assert labels == [kind.text for kind in kinds] and "mixed patches" in labels

    # nothing is wider than a narrow window, nor cut off in it
    for width in (1600, 400):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert not browser.execute_script(
            "return [...document.querySelectorAll('#confidence .scroll')]"
            ".some(box => box.scrollWidth > box.clientWidth)"
        )
    assert (console(browser), fetched(browser)) == ([], [])
