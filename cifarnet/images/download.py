"""Downloads an archive from a server that may be slow or broken, and unpacks it."""

import functools
import hashlib
import http.client
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from cifarnet.core.errors import UserError
from cifarnet.images.finding import Say

PATIENCE = 45.0  # seconds without progress before the download fails
TIMEOUT = 10.0  # seconds without a byte before an attempt fails
PROGRESS = 1 << 16  # bytes that an attempt must add to count as progress
LARGEST = 1 << 30  # bytes; a larger file is not CIFAR (170 MB)


class _TemporaryError(Exception):
    """The server failed; the next attempt may succeed."""


def fetch(url: str, target: Path, md5: str, say: Say) -> None:
    """Downloads `url` (http, https or file) to `target`, unless its checksum is `md5` already.

    Bytes arrive in `target`.part, and a later attempt or run continues from there. Raises
    `UserError` for another kind of address, and `OSError` if the download fails.
    """
    if not url.lower().startswith(("http://", "https://", "file://")):
        raise UserError(f"--data_url {url} must start with http://, https:// or file://")
    if target.is_file():
        if _md5_of(target) == md5:
            return
        say(f"{target} is damaged (its md5 checksum is not {md5}): downloading it again")
    part = target.with_name(f"{target.name}.part")
    with part.open("ab") as file:
        _complete(file, part, url, md5, say)
    part.replace(target)


def _complete(file: BinaryIO, part: Path, url: str, md5: str, say: Say) -> None:
    """Appends to `file` until it is the whole archive, in one or more attempts."""
    pause, deadline = 1.0, time.monotonic() + PATIENCE
    may_restart = True  # once, if the bytes of an earlier attempt may be wrong
    while True:
        start = file.tell()
        try:
            _attempt(url, file, max(0.1, min(TIMEOUT, deadline - time.monotonic())))
        except _TemporaryError as problem:
            if file.tell() - start >= PROGRESS:
                pause, deadline = 1.0, time.monotonic() + PATIENCE
            if time.monotonic() + pause >= deadline:
                raise OSError(f"{problem}; the first {file.tell()} bytes are in {part}") from None
            say(f"download: {problem}; next attempt in {pause:.0f} s")
            time.sleep(pause)
            pause *= 2
            continue
        digest = _md5_of(part)
        if digest == md5:
            return
        _empty(file)
        if start == 0 or not may_restart:
            raise OSError(f"{url} sends another file: its md5 checksum is {digest}, not {md5}")
        say("download: the parts do not belong together; starting again")
        may_restart = False


def _attempt(url: str, file: BinaryIO, timeout: float) -> None:
    """Requests the missing bytes of `file` once, and appends them.
    Raises `_TemporaryError` if another attempt may help, `OSError` otherwise."""
    response = _request(url, file.tell(), timeout)
    if response is None:
        return
    with response:
        total = _total_size(response, file)
        looks = {"desc": "download", "unit": "B", "unit_scale": True, "leave": False}
        with tqdm(total=total, initial=file.tell(), disable=None, **looks) as bar:
            while content := _read(response):
                file.write(content)
                file.flush()
                bar.update(len(content))
                if file.tell() > LARGEST:
                    _empty(file)
                    raise OSError(f"{url} sends another file: it is larger than {LARGEST} bytes")
    if total is not None and file.tell() < total:
        raise _TemporaryError(f"the connection broke after {file.tell()} of {total} bytes")


def _request(url: str, start: int, timeout: float) -> http.client.HTTPResponse | None:
    """The response to a request for the bytes from `start`; None if the file ends there."""
    try:
        headers = {"Range": f"bytes={start}-"} if start else {}
        request = urllib.request.Request(url, headers=headers)
        return urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as problem:
        problem.close()
        if problem.code == 416 and start:
            return None
        temporary = problem.code >= 500 or problem.code in (408, 429)  # time-out, many requests
        error = _TemporaryError if temporary else OSError
        raise error(f"the server answers {problem.code} {problem.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as problem:
        reason = problem.reason if isinstance(problem, urllib.error.URLError) else problem
        malformed = isinstance(reason, str | ValueError | http.client.InvalidURL)
        error = OSError if malformed or url.lower().startswith("file:") else _TemporaryError
        raise error(f"no answer ({reason})") from None


def _total_size(response: http.client.HTTPResponse, file: BinaryIO) -> int | None:
    """The size of the whole archive in bytes, or None if the server does not send it.
    Empties `file` unless the response continues it."""
    length = response.headers.get("Content-Length", "")
    length = int(length) if length.isdecimal() else None
    if response.status == 206:
        if response.headers.get("Content-Range", "").startswith(f"bytes {file.tell()}-"):
            return None if length is None else file.tell() + length
        _empty(file)
        raise _TemporaryError("the server sends another part of the file")
    _empty(file)  # the server sends all of it
    return length


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(1 << 16)
    except (OSError, http.client.HTTPException) as problem:
        raise _TemporaryError(f"the connection broke ({problem})") from None


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _md5_of(path: Path) -> str:
    md5 = functools.partial(hashlib.md5, usedforsecurity=False)  # the official checksum
    with path.open("rb") as file:
        return hashlib.file_digest(file, md5).hexdigest()


def unpack(archive: Path, root: Path, folder: str) -> None:
    """Unpacks `folder` of a tar archive to `root`/`folder`, after the whole archive has been read.

    Raises `OSError` for a damaged archive, and for a member that would land outside or is not a
    file, a folder or a link inside.
    """
    for leftover in root.glob(".unpacking-*"):  # of a killed process
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpacking-") as staging:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(staging, filter="data")
        except tarfile.FilterError as problem:
            raise OSError(f"{archive} is refused: {problem}") from None
        except (tarfile.TarError, EOFError, ValueError) as problem:
            raise OSError(f"{archive} cannot be unpacked ({problem})") from None
        (root / folder).mkdir(exist_ok=True)
        for path in (Path(staging) / folder).iterdir():
            path.replace(root / folder / path.name)
