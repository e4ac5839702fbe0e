from commands.bench_tables import ranks_table, table


def test_ratios_to_the_plain_loop_and_shares_of_the_ceiling():
    rates = {
        "matrix product, bf16": 4e12,
        "plain loop, fp32": 100.0,
        "step, bf16, fast forms": 1000.0,
        "evaluation, bf16, fast forms": 3000.0,
    }
    figures = {name: {"rate": rate, "memory": 2**30} for name, rate in rates.items()}
    assert table(figures, 1e9).splitlines()[2:] == [
        "| matrix product, bf16 | 4,000 GFLOP/s |  |  | 1.0 GiB |",
        "| plain loop, fp32 | 100 img/s | 1.0 |  | 1.0 GiB |",
        "| step, bf16, fast forms | 1,000 img/s | 10.0 | 25% | 1.0 GiB |",
        "| evaluation, bf16, fast forms | 3,000 img/s |  |  | 1.0 GiB |",
    ]


def test_on_gpus_the_efficiency_is_that_of_each_rank():
    one = {"in all": 100.0, "each": 100.0, "exchange": 0.0}
    two = {"in all": 150.0, "each": 190.0, "exchange": 0.0005}
    row = "| 2 | 0.50 ms | 150 img/s | 75% | 190 img/s | 95% |"
    assert ranks_table({1: one, 2: two}, "cuda").splitlines()[-1] == row
    assert ranks_table({2: two}, "cuda").endswith("| 150 img/s |  | 190 img/s |  |")
