"""Fetching an archive from a server that may be slow, wrong or away, and unpacking it."""

import hashlib
import http.client
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from cifarnet.core.errors import UserError

PATIENCE = 45.0  # seconds without progress after which no further attempt is made
TIMEOUT = 10.0  # seconds without a byte after which an attempt is given up
PROGRESS = 1 << 16  # bytes that an attempt must bring to count as progress
LARGEST = 1 << 30  # bytes: a server that sends more is not sending CIFAR-10 (170 MB)


class _PassingError(Exception):
    """The server's fault, and perhaps gone at the next attempt."""


def fetch(url: str, target: Path, md5: str, say: Callable[[str], None]) -> None:
    """Downloads `url` (http, https or file) to `target`, unless that is there and whole already.

    What arrives is kept in `target`.part, from where a later attempt, or a later run, goes on; under its own name
    there is only a file with the checksum `md5`. `say` is told of every failed attempt. Raises `UserError` for an
    address of another kind, `OSError` where the file cannot be had.
    """
    if not url.lower().startswith(("http://", "https://", "file://")):
        raise UserError(f"--data_url {url} is no address of the kind http://, https:// or file://")
    if target.is_file():
        if _md5_of(target) == md5:
            return
        say(f"{target} does not have the md5 checksum {md5}: it is replaced by a new download")
    part = target.with_name(f"{target.name}.part")
    with part.open("ab") as file:
        _fill(file, part, url, md5, say)
    part.replace(target)


def _fill(file: BinaryIO, part: Path, url: str, md5: str, say: Callable[[str], None]) -> None:
    """Makes `file`, open for appending, the whole archive, in as many attempts as it takes."""
    pause, deadline = 1.0, time.monotonic() + PATIENCE
    trusted = True  # what arrived in earlier attempts
    while True:
        had = file.tell()
        try:
            _transfer(url, file, max(0.1, min(TIMEOUT, deadline - time.monotonic())))
        except _PassingError as problem:
            if file.tell() - had >= PROGRESS:
                pause, deadline = 1.0, time.monotonic() + PATIENCE
            if time.monotonic() + pause >= deadline:
                raise OSError(
                    f"{problem}; what has come, {file.tell()} bytes, is kept in {part}"
                ) from None
            say(f"download: {problem}; trying again in {pause:.0f} s")
            time.sleep(pause)
            pause *= 2
            continue
        digest = _md5_of(part)
        if digest == md5:
            return
        _empty(file)
        if had == 0 or not trusted:
            raise OSError(
                f"what {url} sends has the md5 checksum {digest} instead of {md5}: damaged, or another file"
            )
        say("download: what had arrived earlier does not fit the rest; starting anew")
        trusted = False


def _transfer(url: str, file: BinaryIO, timeout: float) -> None:
    """One attempt at appending what `file` lacks. Raises `_PassingError`, or `OSError` where that is of no use."""
    had = file.tell()
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={had}-"} if had else {})
        answer = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as problem:
        problem.close()
        if problem.code == 416 and had:  # there is nothing beyond what is here
            return
        why = f"the server answers {problem.code} {problem.reason}"
        raise (_PassingError if problem.code >= 500 or problem.code in (408, 429) else OSError)(
            why
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as problem:
        reason = getattr(problem, "reason", problem)
        no_address = isinstance(problem, ValueError | http.client.InvalidURL) or isinstance(
            reason, str
        )
        hopeless = no_address or url.lower().startswith("file:")
        raise (OSError if hopeless else _PassingError)(
            f"no answer ({reason or type(problem).__name__})"
        ) from None
    with answer:
        total = _expected_size(answer, file)
        with tqdm(
            total=total,
            initial=file.tell(),
            unit="B",
            unit_scale=True,
            desc="download",
            leave=False,
            disable=None,
        ) as bar:
            while content := _read(answer):
                file.write(content)
                file.flush()
                bar.update(len(content))
                if file.tell() > LARGEST:
                    _empty(file)
                    raise OSError(f"{url} sends more than {LARGEST} bytes: it is another file")
    if total is not None and file.tell() < total:
        raise _PassingError(f"the connection broke off after {file.tell()} of {total} bytes")


def _expected_size(answer: http.client.HTTPResponse, file: BinaryIO) -> int | None:
    """The size of the whole archive by what the server says; `file` is emptied unless the answer continues it."""
    length = answer.headers.get("Content-Length", "")
    length = int(length) if length.isdecimal() else None
    if answer.status == 206:
        if answer.headers.get("Content-Range", "").startswith(f"bytes {file.tell()}-"):
            return None if length is None else file.tell() + length
        _empty(file)
        raise _PassingError("the server sends another part than the one asked for")
    _empty(file)  # it sends all of it, again
    return length


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read1(1 << 16)
    except (OSError, http.client.HTTPException) as problem:
        raise _PassingError(
            f"the connection broke off ({problem or type(problem).__name__})"
        ) from None


def _md5_of(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)  # the official checksum
    with path.open("rb") as file:
        while content := file.read(1 << 20):
            digest.update(content)
    return digest.hexdigest()


def unpack(archive: Path, root: Path, folder: str) -> None:
    """Unpacks `folder` of a tar archive to `root`/`folder`: nothing of it before all of it has been read.

    Only for one process at a time.

    Raises `OSError`; also for a member that would land outside, or is more than a file, a folder or a link inside.
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
