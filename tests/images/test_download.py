import hashlib
import http.server
import io
import os
import tarfile
import threading
import time
from pathlib import Path

import pytest

from cifarnet.core.errors import UserError
from cifarnet.images import download
from cifarnet.images.download import fetch, unpack

CONTENT = os.urandom(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT. Each request gets the next of `moods`; after the last, honest answers."""

    block_on_close = False

    def __init__(self, *moods: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.moods, self.starts, self.over = list(moods), [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/archive"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        mood = self.server.moods.pop(0) if self.server.moods else "honest"
        asked = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-")
        start = 0 if mood == "knows no ranges" else int(asked)
        self.server.starts.append(int(asked))
        if mood == "mute":
            self.server.over.wait(20)
            return
        if mood.isdecimal():
            self.send_error(int(mood))
            return
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        if mood == "lies":
            body = bytes(len(body))
        if mood == "sends more":
            body *= 2
        self.send_response(206 if start else 200)
        if start:
            first = start + (1 if mood == "sends another part" else 0)
            self.send_header("Content-Range", f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if mood != "truncates":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if mood in ("drops", "stalls", "truncates"):
            body = body[:100_000]
        self.wfile.write(body)
        if mood == "stalls":
            self.wfile.flush()
            self.server.over.wait(20)
        self.close_connection = True


@pytest.fixture
def serve(monkeypatch):
    """`serve(*moods)` -> `Server`; pauses take no time, and a silence ends after 0.3 s."""
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    running = []

    def run(*moods: str) -> Server:
        server = Server(*moods)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return server

    yield run
    for server, thread in running:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "archive.tar.gz"


@pytest.mark.parametrize(
    ("moods", "starts"),
    [
        (["honest"], [0]),
        (["503", "429", "honest"], [0, 0, 0]),
        (["drops"], [0, 100_000]),
        (["drops", "drops"], [0, 100_000, 200_000]),
        (["stalls"], [0, 100_000]),
        (["mute"], [0, 0]),
        (["drops", "knows no ranges"], [0, 100_000]),
        (["drops", "sends another part"], [0, 100_000, 0]),
        (["drops", "lies"], [0, 100_000, 0]),
    ],
)
def test_a_bad_server_that_recovers_is_enough(serve, target, moods, starts):
    server, messages = serve(*moods), []
    fetch(server.url, target, MD5, messages.append)
    assert target.read_bytes() == CONTENT
    assert server.starts == starts
    assert len(messages) == len(starts) - 1 or moods[-1] == "knows no ranges"
    assert [p.name for p in target.parent.iterdir()] == [target.name]
    fetch(server.url, target, MD5, messages.append)
    assert server.starts == starts  # it is there


@pytest.mark.parametrize(
    ("moods", "why"),
    [
        (["lies"], "another file: its md5 checksum is"),
        (["truncates"], "another file: its md5 checksum is"),
        (["sends more"], "another file: its md5 checksum is"),
        (["drops", "lies", "lies"], "another file: its md5 checksum is"),
        (["404"], "404"),
    ],
)
def test_a_server_of_another_file_is_given_up_at_once(serve, target, moods, why):
    server = serve(*moods)
    with pytest.raises(OSError, match=why):
        fetch(server.url, target, MD5, lambda line: None)
    assert len(server.starts) == len(moods)
    assert not target.exists()
    assert sum(path.stat().st_size for path in target.parent.iterdir()) == 0


def test_endless_content_is_cut_off(serve, target, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 200_000)
    with pytest.raises(OSError, match="another file: it is larger than 200000 bytes"):
        fetch(serve().url, target, MD5, lambda line: None)
    assert sum(path.stat().st_size for path in target.parent.iterdir()) == 0


def test_a_later_run_continues_where_an_earlier_one_ended(serve, target, monkeypatch):
    monkeypatch.setattr(download, "PATIENCE", 0)
    server = serve("drops")
    monkeypatch.setattr(download, "PROGRESS", 1 << 30)
    with pytest.raises(
        OSError,
        match=f"broke after 100000 of 300000 bytes; the first 100000 bytes are in {target}.part",
    ):
        fetch(server.url, target, MD5, lambda line: None)
    fetch(server.url, target, MD5, lambda line: None)
    assert server.starts == [0, 100_000]
    assert target.read_bytes() == CONTENT


def test_a_partial_file_that_is_whole_needs_one_request(serve, target):
    target.with_name(f"{target.name}.part").write_bytes(CONTENT)
    server = serve()
    fetch(server.url, target, MD5, lambda line: None)
    assert server.starts == [len(CONTENT)]
    assert target.read_bytes() == CONTENT


def test_a_damaged_archive_is_replaced(serve, target):
    target.write_bytes(CONTENT[:1000])
    messages = []
    fetch(serve().url, target, MD5, messages.append)
    assert target.read_bytes() == CONTENT
    assert messages == [
        f"{target} is damaged (its md5 checksum is not {MD5}): downloading it again"
    ]


@pytest.mark.parametrize("silent", [True, False])
def test_where_nothing_answers_the_pauses_grow_and_end_within_a_minute(target, monkeypatch, silent):
    """With a clock of the test: attempts take as long as they may, pauses their time."""
    clock, pauses = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(
        time, "sleep", lambda s: pauses.append(s) or clock.__setitem__(0, clock[0] + s)
    )

    def no_answer(request, timeout):
        clock[0] += timeout if silent else 0
        raise TimeoutError("timed out") if silent else ConnectionRefusedError("refused")

    monkeypatch.setattr(download.urllib.request, "urlopen", no_answer)
    messages = []
    with pytest.raises(OSError, match="timed out" if silent else "refused"):
        fetch("http://127.0.0.1/", target, MD5, messages.append)
    assert pauses == [2.0**i for i in range(len(pauses))]
    assert len(pauses) == len(messages) >= 3
    assert 20 < clock[0] < 60


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "archive.tar.gz", "javascript:1", "data:,a"])
def test_addresses_of_another_kind(target, url):
    with pytest.raises(UserError, match="--data_url"):
        fetch(url, target, MD5, lambda line: None)


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http://[::1",
        "http://127.0.0.1:x/",
        "http://a b/",
        "file:///no",
        "file://where/x",
    ],
)
def test_malformed_addresses_are_not_tried_twice(target, url, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("tried again"))
    with pytest.raises(OSError, match="no answer"):
        fetch(url, target, MD5, lambda line: None)


# --- unpacking ---


def make_archive(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        good = tarfile.TarInfo("inside/good")
        good.size = 4
        tar.addfile(good, io.BytesIO(b"good"))
        for member in members:
            tar.addfile(member, io.BytesIO(b"bad!"))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, 4 if kind == tarfile.REGTYPE else 0
    return info


def test_an_archive_is_unpacked_over_what_was_there(tmp_path):
    archive = make_archive(tmp_path / "a.tar.gz")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "good").write_text("damaged")
    (tmp_path / "inside" / "mine").write_text("mine")
    (tmp_path / ".unpacking-half").mkdir()  # of a killed process
    unpack(archive, tmp_path, "inside")
    assert (tmp_path / "inside" / "good").read_text() == "good"
    assert (tmp_path / "inside" / "mine").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz", "inside"]


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside"),
        member("inside/../../outside"),
        member("inside/link", tarfile.SYMTYPE, "../../outside"),
        member("inside/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("inside/link", tarfile.LNKTYPE, "../outside"),
        member("inside/pipe", tarfile.FIFOTYPE),
        member("inside/device", tarfile.CHRTYPE),
    ],
    ids=lambda info: f"{info.name} {info.linkname}",
)
def test_members_that_leave_the_folder_are_refused_and_nothing_is_unpacked(tmp_path, bad):
    root = tmp_path / "root"
    root.mkdir()
    archive = make_archive(tmp_path / "a.tar.gz", bad)
    with pytest.raises(OSError, match="is refused"):
        unpack(archive, root, "inside")
    assert list(root.iterdir()) == []
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.tar.gz", "root"]


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\x1f\x8b\x08 cut off"])
def test_a_file_that_is_not_an_archive_is_refused(tmp_path, content):
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(OSError, match="cannot be unpacked"):
        unpack(tmp_path / "a.tar.gz", tmp_path, "inside")
