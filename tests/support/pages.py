"""HTML pages as a browser reads them."""

import html
import json
import re
from html.parser import HTMLParser
from typing import Any


class Elements(HTMLParser):
    """The names of a page's elements, their attributes as pairs, and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def addresses(self) -> list[str | None]:
        """What the page links to, loads or sends to."""
        return [v for name, v in self.attributes if name in ("src", "href", "srcset", "action")]


def words(page: str) -> str:
    """The text of a page as a reader sees it, with single spaces."""
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", body)).split())


def data_of(page: str) -> dict[str, Any]:
    """The data of report.html's script."""
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page)[1])
