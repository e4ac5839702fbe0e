"""The table in docs/flags.md: `python -m tests.support.flags_table` prints it."""

from dataclasses import fields

from cifarnet.settings import GROUPS
from cifarnet.settings.parser import shown_default


def flags_table() -> str:
    """Returns all flags as a Markdown table, for docs/flags.md."""
    rows = ["| flag | default | range | meaning |", "|---|---|---|---|"]
    for title, group in GROUPS.items():
        rows.append(f"| **{title}** | | | |")
        for spec in fields(group):
            meta, name = spec.metadata, spec.name
            within = meta["within"] or " ".join(meta["choices"])
            flag = f"--{name}` / `--no-{name}" if spec.type is bool else f"--{name}"
            rows.append(f"| `{flag}` | {shown_default(spec)} | {within} | {meta['help']} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(flags_table())
