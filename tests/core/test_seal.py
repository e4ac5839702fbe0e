import pytest
import safetensors.torch
from hypothesis import given
from hypothesis import strategies as st
from support.snapshots import make_snapshot

from cifarnet.checkpoints.snapshots import pack
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


def content_of(kind: str) -> bytes:
    """A sealed file: each kind has its room for the checksum in another place."""
    if kind == "snapshot":
        return pack(make_snapshot())
    if kind == "safetensors":
        return seal(safetensors.torch.save({}, {"checksum": PLACEHOLDER, "classes": "[]"}))
    onnx = pytest.importorskip("onnx")
    model = onnx.helper.make_model(onnx.helper.make_graph([], "graph", [], []))
    for name, text in {"checksum": PLACEHOLDER, "classes": "[]"}.items():
        model.metadata_props.add(key=name, value=text)
    return seal(model.SerializeToString(deterministic=True))


@pytest.mark.parametrize("kind", ["snapshot", "safetensors", "onnx"])
def test_no_byte_of_a_file_is_without_its_seal(kind):
    content = content_of(kind)
    assert is_sealed(content)
    for at in range(len(content)):
        assert not is_sealed(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


@given(BYTES)
def test_a_file_without_a_seal_is_not_sealed(content):
    assert not is_sealed(content)
    assert not is_sealed(content + PLACEHOLDER.encode())
    with pytest.raises(ValueError, match="not found"):
        seal(content)
