import re
from html.parser import HTMLParser

from support.runs import leave_run

from cifarnet.comparing.comparison import compare
from cifarnet.comparing.page import comparison_page
from cifarnet.comparing.past_runs import read_runs

BEGINS = "<!doctype html>"


class Elements(HTMLParser):
    """Collects the tags, addresses and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.addresses, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_one_file_and_names_are_text(tmp_path):
    names = ('<script>alert("x")<\u2044script>', "日本")  # no name of a file holds a /
    runs = [str(leave_run(tmp_path / name, lr=at + 1)) for at, name in enumerate(names)]
    page = comparison_page(compare(read_runs(runs)[0]), BEGINS, "<b>one</b> sentence")
    elements = Elements(page)
    assert page.startswith(BEGINS)
    assert not {"script", "b"} & set(elements.tags) and elements.addresses == []
    assert not re.search(r"https?:|url\(|@import", page)
    assert "default-src 'none'" in page
    assert {*names, "<b>one</b> sentence"} <= set(elements.text)
    assert elements.tags.count("svg") == 4  # accuracy and loss, by epoch and by time
    assert elements.tags.count("path") == 2 * 2 * 4  # runs, training and test, charts
    assert "one, test: 60 % at 3" not in page and "日本, test: 60 % at 3" in page


def test_runs_without_an_epoch_have_a_page_too(tmp_path):
    run = leave_run(tmp_path / "waiting", (), epochs=9)
    elements = Elements(comparison_page(compare(read_runs([str(run)])[0]), BEGINS))
    assert (elements.tags.count("svg"), elements.tags.count("path")) == (4, 0)
