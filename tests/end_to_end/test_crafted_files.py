"""Snapshots and weights that somebody made: one line from every command, and nothing forged."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import commands
from support.commands import QUIET, assert_one_line, from_folder
from torch import Tensor

from cifarnet.checkpoints.snapshots import Snapshot, load_trained, pack, read_snapshot
from cifarnet.checkpoints.trained import fingerprint, write_weights

SHORT = (*commands.SHORT, "--network", "cifarnet")
FIRST = "c1.conv.weight"
WHY = {  # by how the weights are wrong: what each error says
    "not finite": "its weights are not finite",
    "sparse": "'weights' is not of type",
    "of other shape": "fit this CIFARNet",
    "of DataParallel": "fit this CIFARNet",
}


def spoil(weights: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    """`weights` as no run writes them."""
    value = weights[FIRST]
    if how == "of DataParallel":
        return {f"module.{name}": value for name, value in weights.items()}
    changed = {
        "not finite": value * float("nan"),
        "sparse": value.to_sparse(),
        "of other shape": value[:1],
    }
    return weights | {FIRST: changed[how]}


def change_weights(snapshot: Snapshot, weights: dict[str, Tensor], sha256: str) -> Snapshot:
    return replace(snapshot, model=replace(snapshot.model, weights=weights, sha256=sha256))


def uses_of(path: Path, tree: Path) -> dict[str, tuple]:
    """The command lines that take the weights or the snapshot `path`, by what it is for them."""
    images = from_folder(tree)
    uses = {
        "predict": ("predict", "--pretrained", path, next(tree.glob("test/*/*.png"))),
        "evaluate": ("evaluate", "--pretrained", path, *images, *QUIET),
        "export": ("export", "--pretrained", path),
        "teacher": ("main", *SHORT, *images, "--teacher", path),
        "init": ("main", *SHORT, *images, "--init", path),
    }
    if path.suffix == ".pth":
        uses["export --snapshot"] = ("export", "--snapshot", path)
        uses["resume"] = ("main", "--resume", path, "--resume_override", "--epochs", "9")
    return uses


def assert_each_use_is_one_line(command, path: Path, tree: Path, how: str) -> None:
    for use, line in uses_of(path, tree).items():
        done = command(*line)
        if use == "init" and how == "of other shape":  # the rest of it fits
            assert done.code == 0
            unmatched = [x for x in done.out.splitlines() if "no matching weights" in x]
            assert any(FIRST in x for x in unmatched)
        else:
            assert_one_line(done, 2, WHY[how])
    assert not list(Path().glob("*.safetensors"))


@pytest.mark.parametrize("how", ["not finite", "sparse", "of other shape"])
def test_wrong_weights_in_a_snapshot(command, trained, tmp_path, how):
    snapshot, path = read_snapshot(trained.snapshot), tmp_path / "crafted.pth"
    weights = spoil(snapshot.model.weights, how)
    sha256 = snapshot.model.sha256 if how == "sparse" else fingerprint(weights)
    path.write_bytes(pack(change_weights(snapshot, weights, sha256)))
    assert_each_use_is_one_line(command, path, trained.tree, how)


@pytest.mark.parametrize("how", ["not finite", "of DataParallel"])
def test_wrong_weights_in_a_file(command, trained, tmp_path, how):
    model = load_trained(str(trained.weights))
    (tmp_path / "folder").mkdir()
    weights, path = spoil(model.weights, how), tmp_path / "folder" / "crafted.safetensors"
    write_weights(replace(model, weights=weights, sha256=fingerprint(weights)), path)
    assert_each_use_is_one_line(command, path, trained.tree, how)


ODD_OPTIMIZERS = {
    "text": {"state": "text", "param_groups": "text"},
    "nothing": {},
    "odd groups": {"state": {}, "param_groups": [7]},
    "an odd momentum": "text",
    "a sparse momentum": torch.ones(3).to_sparse(),
    "another's momentum": torch.ones(3),
}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_odd_optimizer_or_random_state_is_one_line(command, optimizer):
    assert command("main", *SHORT, "--optimizer", optimizer).code == 0
    snapshot = read_snapshot(Path("snapshots_complete/last.pth"))
    momenta = snapshot.state.optimizer["state"]
    for name, odd in ODD_OPTIMIZERS.items():
        changed = odd
        if not isinstance(odd, dict):
            first = dict.fromkeys(momenta[0], odd)
            changed = snapshot.state.optimizer | {"state": momenta | {0: first}}
        state = replace(snapshot.state, optimizer=changed)
        Path("crafted.pth").write_bytes(pack(replace(snapshot, state=state)))
        done = command("main", "--resume", "crafted.pth", "--epochs", "2", "--snapshot_dir", name)
        assert_one_line(done, 2, "optimizer")
    for odd in ({}, {"cpu": torch.ones(3)}, {"cpu": [], "cuda": []}):
        state = replace(snapshot.state, random_state=odd)
        Path("crafted.pth").write_bytes(pack(replace(snapshot, state=state)))
        assert_one_line(command("main", "--resume", "crafted.pth", "--epochs", "2"), 2)


def test_names_in_a_snapshot_forge_no_line(command, trained, tmp_path):
    forged = "x\n12:00:00 error: forged \x1b[2J"
    snapshot, path = read_snapshot(trained.snapshot), tmp_path / "crafted.pth"
    origin = snapshot.model.origin
    settings = origin.settings | {"teacher": forged, "dataset_name": forged}
    words = dict.fromkeys(("dataset", "selected_by", "accuracy_from", "computed_on"), forged)
    origin = replace(origin, settings=settings, **words)
    path.write_bytes(pack(replace(snapshot, model=replace(snapshot.model, origin=origin))))
    shown = []
    as_before = ("evaluate", "--snapshot", path, *QUIET)
    for line in (*uses_of(path, trained.tree).values(), as_before):
        done = command(*line)
        shown.append(done.out + done.err)
    files = [*Path().rglob("*.log"), *Path().rglob("*.txt")]
    shown += [file.read_text(encoding="utf-8") for file in files]
    assert any("forged" in text for text in shown)
    for text in shown:
        assert all(line.isprintable() for line in text.splitlines())
        assert "\n12:00:00 error" not in text
