import re

from support.pages import Elements
from support.runs import leave_run

from cifarnet.comparing.comparison import compare
from cifarnet.comparing.page import comparison_page
from cifarnet.comparing.past_runs import read_runs

BEGINS = "<!doctype html>"


def test_the_page_is_one_file_and_names_are_text(tmp_path):
    names = ('<script>alert("x")<\u2044script>', "日本")  # no name of a file holds a /
    runs = [str(leave_run(tmp_path / name, lr=at + 1)) for at, name in enumerate(names)]
    page = comparison_page(compare(read_runs(runs)[0]), BEGINS, "<b>one</b> sentence")
    elements = Elements(page)
    assert page.startswith(BEGINS)
    assert not {"script", "b"} & set(elements.names) and elements.addresses == []
    assert not re.search(r"https?:|url\(|@import", page)
    assert "default-src 'none'" in page
    assert {*names, "<b>one</b> sentence"} <= set(elements.texts)
    assert elements.names.count("svg") == 4  # accuracy and loss, by epoch and by time
    assert elements.names.count("path") == 2 * 2 * 4  # runs, training and test, charts
    assert "one, test: 60 % at 3" not in page and "日本, test: 60 % at 3" in page


def test_runs_without_an_epoch_have_a_page_too(tmp_path):
    run = leave_run(tmp_path / "waiting", (), epochs=9)
    elements = Elements(comparison_page(compare(read_runs([str(run)])[0]), BEGINS))
    assert (elements.names.count("svg"), elements.names.count("path")) == (4, 0)
