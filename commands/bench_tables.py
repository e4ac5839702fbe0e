"""The figures of bench.py as Markdown tables."""

from collections.abc import Iterable, Mapping, Sequence

from commands.bench_rows import NETWORKS_BATCH


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in (heads, *rows))
    return "\n".join([head, "|---" * len(heads) + "|", *lines])


def networks_table(figures: dict[str, dict]) -> str:
    """The figures of --networks as a Markdown table: costs, rate in training, peak memory."""
    heads = (
        *(f"fp32, {NETWORKS_BATCH} images a step", "parameters", "multiply-adds", "training"),
        *("of the published", "peak memory"),
    )
    published = figures.get("network, published", {}).get("rate")
    rows = (
        (
            name.removeprefix("network, "),
            f"{figure['parameters']:,}",
            f"{figure['multiply_adds'] / 1e6:,.1f} million",
            f"{figure['rate']:,.0f} img/s",
            f"{figure['rate'] / published:.0%}" if published else "",
            f"{figure['memory'] / 2**30:.1f} GiB",
        )
        for name, figure in figures.items()
    )
    return markdown(heads, rows)


def table(figures: dict[str, dict], flops: float) -> str:
    """The figures as a Markdown table; `flops` are those of a training step per image. Each rate,
    its ratio to the plain loop, its share of the ceiling, and the peak memory."""
    rows = []
    plain = figures.get("plain loop, fp32", {}).get("rate")
    for name, figure in figures.items():
        rate, trains = figure["rate"], name.startswith(("plain", "main", "step"))
        text = f"{rate / 1e9:,.0f} GFLOP/s" if name.startswith("matrix") else f"{rate:,.0f} img/s"
        ratio = f"{rate / plain:.1f}" if plain and trains else ""
        product = f"matrix product, {'bf16' if 'bf16' in name else 'fp32'}"
        ceiling = figures.get(product, {}).get("rate")
        share = f"{rate * flops / ceiling:.0%}" if ceiling and trains else ""
        rows.append((name, text, ratio, share, f"{figure['memory'] / 2**30:.1f} GiB"))
    heads = ("measured", "rate", "times the plain loop", "share of ceiling", "peak memory")
    return markdown(heads, rows)


def ranks_table(rates: Mapping[int, Mapping[str, float]], device: str) -> str:
    """The rates for each number of ranks on this machine. The efficiency is the rate divided by the
    rate of one rank; on GPUs, where each rank adds one, divided by their number too."""
    rows = []
    for count, each in rates.items():
        cells = [str(count), f"{each['exchange'] * 1e3:.2f} ms"]
        for name in ("in all", "each"):
            share = ""
            if 1 in rates:
                share = f"{each[name] / rates[1][name] / (count if device == 'cuda' else 1):.0%}"
            cells += [f"{each[name]:,.0f} img/s", share]
        rows.append(cells)
    sizes = ("512 images in all", "efficiency", "512 images each", "efficiency")
    return markdown(("ranks", "exchange", *sizes), rows)
