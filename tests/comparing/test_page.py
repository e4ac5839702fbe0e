import re

import pytest
from support.browser import open_page
from support.pages import Elements
from support.runs import leave_run, runs_of

from cifarnet.comparing.comparison import PAGE_BEGINS, compare
from cifarnet.comparing.page import comparison_page


def test_the_page_is_one_file_and_names_are_text(tmp_path):
    names = ('<script>alert("x")<\u2044script>', "日本")  # no name of a file holds a /
    runs = [leave_run(tmp_path / name, lr=at + 1) for at, name in enumerate(names)]
    page = comparison_page(compare(runs_of(*runs)), ["<b>one</b> sentence"])
    elements = Elements(page)
    assert page.startswith(PAGE_BEGINS)
    assert not {"script", "b"} & set(elements.names) and elements.addresses == []
    assert not re.search(r"https?:|url\(|@import", page)
    assert "default-src 'none'" in page
    assert {*names, "<b>one</b> sentence"} <= set(elements.texts)
    assert elements.names.count("svg") == 4  # accuracy and loss, by epoch and by time
    assert elements.names.count("path") == 2 * 2 * 4  # runs, training and test, charts
    assert "日本, test: 60 % at 3" in page
    assert "<h1>Comparison of 2 runs</h1>" in page
    runs = [leave_run(tmp_path / str(seed), lr=1, seed=seed) for seed in range(3)]  # one line
    assert "<h1>Comparison of 3 runs</h1>" in comparison_page(compare(runs_of(*runs)))


def test_only_curves_on_one_scale_share_an_axis(tmp_path):
    """A run under way without an epoch has no curve; a teacher's divergence has another scale."""
    waiting = leave_run(tmp_path / "waiting", (), epochs=9)
    taught = leave_run(tmp_path / "taught", teacher="last.pth", label_smoothing=None)
    for runs, charts, curves in (
        ([waiting], 4, 0),
        ([taught], 6, 2 * (2 + 1 + 1)),
        ([taught, leave_run(tmp_path / "labels")], 6, 2 * (4 + 3 + 1)),
    ):
        elements = Elements(comparison_page(compare(runs_of(*runs))))
        assert (elements.names.count("svg"), elements.names.count("path")) == (charts, curves)


@pytest.mark.parametrize("machines", [("cpu", "cpu"), ("cpu", "cuda")])
def test_times_name_their_devices(tmp_path, machines):
    for name, kind in zip(("one", "other"), machines, strict=True):
        leave_run(tmp_path / name, record={"device": {"type": kind, "name": "X1"}}, lr=len(name))
    texts = Elements(comparison_page(compare(runs_of(*tmp_path.iterdir())))).texts
    same = len(set(machines)) == 1
    assert texts.count("on cpu (X1)") == 2 * same
    assert any("other on cuda (X1)" in text for text in texts) == (not same)


@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_of_four_runs_fits_into_the_window(tmp_path, browser, width):
    long = {"name": "a processor with a long name, 2.4 GHz, 64 cores"}
    for at in range(4):
        record = {"device": {"type": "cpu", **long, "name": f"{long['name']}, {at}"}}
        leave_run(
            tmp_path / f"run_{at}", record=record, teacher=f"somewhere/far/{at}.pth", lr=at + 1
        )
    path = tmp_path / "page.html"
    path.write_text(comparison_page(compare(runs_of(*tmp_path.glob("run_*")))))
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    open_page(browser, path)
    width_of = "return document.querySelector('{}').scrollWidth"
    assert browser.execute_script(width_of.format("html")) <= width
    if width == 1200:
        assert browser.execute_script(width_of.format(".wide")) <= width
    first_column = browser.find_elements("css selector", "tbody th")
    assert [cell.text for cell in first_column[:2]] == ["top-1", "best"]
    assert all(cell.size["width"] < width / 2 for cell in first_column)
