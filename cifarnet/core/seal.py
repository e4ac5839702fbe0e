"""A checksum inside a file: snapshots, weights and ONNX files carry it, each where it has room."""

import hashlib

MARK = b"cifarnet-sha256:"
BLANK = b"0" * 64
PLACEHOLDER = (MARK + BLANK).decode()  # what a writer leaves in the file for `seal`


def seal(content: bytes) -> bytes:
    """`content` with the last `PLACEHOLDER` in it replaced by the SHA-256 of `content`."""
    start = content.rindex(PLACEHOLDER.encode()) + len(MARK)
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[:start] + digest + content[start + len(BLANK) :]


def is_sealed(content: bytes) -> bool:
    """Whether `content` is what `seal` returned: false after any change, or without a checksum."""
    start = content.rfind(MARK) + len(MARK)
    digest = content[start : start + len(BLANK)]
    blank = content[:start] + BLANK + content[start + len(BLANK) :]
    return digest == hashlib.sha256(blank).hexdigest().encode()
