import torch

from cifarnet.core.seeds import derived_seed, random_state, set_random_state


def test_seeds_depend_on_every_part_and_on_their_number():
    parts = [(1,), (1, 0), (1, 0, 0), (0, 1), (1, 1), (42, 1, 2), (42, 2, 1)]
    seeds = [derived_seed(*each) for each in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeds_stay_the_same_so_that_runs_can_be_repeated():
    assert derived_seed(1) == 38901565946305238
    assert derived_seed(42, 1, 2) == 2260873956054178303


def test_a_restored_state_repeats_the_draws():
    state = random_state()
    draws = torch.rand(3)
    set_random_state(state)
    assert torch.equal(torch.rand(3), draws)
