import dataclasses

import pytest
import torch
from support.snapshots import make_row
from torch import Tensor, nn

from cifarnet.checkpoints.checks import has_type
from cifarnet.checkpoints.history import Row

ODD_TENSORS = {
    "text": "1.0",
    "sparse": torch.ones(3).to_sparse(),
    "expanded": torch.ones(1).expand(3),
    "huge": torch.ones(1).expand(2**40),
    "without values": torch.ones(3, device="meta"),
    "a parameter": nn.Parameter(torch.ones(3)),
    "nested": torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
}


@pytest.mark.parametrize("how", ODD_TENSORS)
def test_only_dense_tensors_that_own_their_numbers_are_tensors(how):
    assert not has_type({"weight": ODD_TENSORS[how]}, dict[str, Tensor])
    for tensor in (torch.ones(3), torch.ones(()), torch.ones(0), torch.ones(2, 3).T):
        assert has_type({"weight": tensor}, dict[str, Tensor])


@pytest.mark.parametrize("column", [field.name for field in dataclasses.fields(Row)])
def test_a_row_has_all_columns_in_their_types(column):
    row = dataclasses.asdict(make_row())
    assert has_type([row, row], list[Row])
    for odd in ("text", True, float("nan"), float("inf"), [], torch.ones(1)):
        assert not has_type([row, row | {column: odd}], list[Row])
    assert not has_type([row | {"another": 1}], list[Row])
    assert not has_type([{name: row[name] for name in row if name != column}], list[Row])
