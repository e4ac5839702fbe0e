import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cifarnet.augment.loading import EpochOrder


@given(images=st.integers(1, 200), share=st.integers(1, 12), world_size=st.integers(1, 9))
def test_shares_of_an_epoch_are_disjoint_complete_and_even(images, share, world_size):
    batch_size = share * world_size
    whole = list(EpochOrder(images, batch_size, 7))
    shares = [
        list(EpochOrder(images, batch_size, 7, rank, world_size)) for rank in range(world_size)
    ]
    for step, (epoch, first, indices) in enumerate(whole):
        parts = [shares[rank][step] for rank in range(world_size)]
        assert (np.concatenate([part for _, _, part in parts]) == indices).all()
        sizes = [len(part) for _, _, part in parts]
        assert max(sizes) - min(sizes) <= (len(indices) < batch_size)
        assert [place for _, place, _ in parts] == [
            first + sum(sizes[:rank]) for rank in range(world_size)
        ]
        assert {e for e, _, _ in parts} == {epoch}
