import re

from support.pages import Elements
from support.runs import leave_run, runs_of

from cifarnet.comparing.comparison import compare
from cifarnet.comparing.page import comparison_page

BEGINS = "<!doctype html>"


def test_the_page_is_one_file_and_names_are_text(tmp_path):
    names = ('<script>alert("x")<\u2044script>', "日本")  # no name of a file holds a /
    runs = [leave_run(tmp_path / name, lr=at + 1) for at, name in enumerate(names)]
    page = comparison_page(compare(runs_of(*runs)), BEGINS, "<b>one</b> sentence")
    elements = Elements(page)
    assert page.startswith(BEGINS)
    assert not {"script", "b"} & set(elements.names) and elements.addresses == []
    assert not re.search(r"https?:|url\(|@import", page)
    assert "default-src 'none'" in page
    assert {*names, "<b>one</b> sentence"} <= set(elements.texts)
    assert elements.names.count("svg") == 4  # accuracy and loss, by epoch and by time
    assert elements.names.count("path") == 2 * 2 * 4  # runs, training and test, charts
    assert "日本, test: 60 % at 3" in page


def test_only_curves_on_one_scale_share_an_axis(tmp_path):
    """A run under way without an epoch has no curve; a teacher's divergence has another scale."""
    for changes, paths in (
        ({"accuracies": (), "epochs": 9}, 0),
        ({"teacher": "last.pth", "label_smoothing": None}, 6),
    ):
        run = leave_run(tmp_path / f"{paths}", **changes)
        elements = Elements(comparison_page(compare(runs_of(run)), BEGINS))
        assert (elements.names.count("svg"), elements.names.count("path")) == (4, paths)
