"""Which rows the flags choose."""

import bench
from commands.bench_rows import MEASUREMENTS, NETWORKS, chosen_rows


def chosen(*flags):
    return chosen_rows(bench._parse(flags))


def test_the_flags_choose_rows():
    rows = chosen()
    assert not any("compiled" in name or name.startswith("network") for name in rows)
    assert chosen("--networks") == [f"network, {name}" for name in NETWORKS]
    assert chosen("--only", "compiled") == ["step, fp32, compiled", "step, bf16, compiled"]
    assert set(chosen("--compiled")) == {n for n in MEASUREMENTS if not n.startswith("network")}
