import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifarnet.core.seal import MARK, PLACEHOLDER, is_sealed, seal

BYTES = st.binary(max_size=80).filter(lambda content: MARK not in content)


def sealed(before: bytes, after: bytes) -> bytes:
    return seal(before + PLACEHOLDER.encode() + after)


@given(BYTES, BYTES)
def test_a_seal_keeps_the_length_and_all_that_is_around_it(before, after):
    content = sealed(before, after)
    assert is_sealed(content)
    assert content.startswith(before + MARK)
    assert content.endswith(after)
    assert len(content) == len(before + PLACEHOLDER.encode() + after)
    assert len({content, sealed(before + b"x", after), sealed(before, after + b"x")}) == 3


@given(BYTES, BYTES, st.data())
def test_any_changed_cut_or_added_byte_is_noticed(before, after, data):
    content = sealed(before, after)
    at = data.draw(st.integers(0, len(content) - 1))
    byte = bytes([content[at] ^ data.draw(st.integers(1, 255))])
    for damaged in (
        content[:at] + byte + content[at + 1 :],
        content[:at],
        content[:at] + content[at + 1 :],
        content[:at] + byte + content[at:],
        content + byte,
    ):
        assert not is_sealed(damaged)


@given(BYTES)
def test_a_file_without_a_seal_is_not_sealed(content):
    assert not is_sealed(content)
    assert not is_sealed(content + PLACEHOLDER.encode())
    with pytest.raises(ValueError, match="not found"):
        seal(content)
