"""Attention and scaling through every command, and what is refused."""

from pathlib import Path

import pytest
import torch
from support.commands import QUICK, QUIET, run
from support.outputs import figures, log_text

import hubconf
from cifarnet.checkpoints.snapshots import load_trained
from commands import log_header
from model import load_pretrained

GROWN = ("--network", "cifarnet", "--attention", "cbam", "--attention_at", "2,4")
GROWN += ("--compound_scale", "1")


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Path:
    """The last snapshot of a run of two epochs."""
    folder = tmp_path_factory.mktemp("grown")
    assert run("main", *QUICK, *GROWN, "--run_dir", folder) == 0
    return folder / "snapshots_complete" / "last.pth"


def test_a_grown_network_is_rebuilt_by_every_command(command, grown):
    done = command("export", "--snapshot", grown, "--out", "w.safetensors")
    assert (done.code, done.err) == (0, "")
    weights = Path("w.safetensors").absolute()
    classifier = load_pretrained(weights)
    images, expected = torch.randn(2, 3, 32, 32), load_trained(str(grown)).build()
    for network in (classifier.network, hubconf.cifarnet(str(weights))):
        assert network.c2.attention
        assert not network.c3.attention
        assert network.c4.repeats[0].attention
        assert torch.equal(network(images), expected(images))

    top1 = figures(grown.parents[1] / "plots_complete")["top1"]
    for flags in (("--snapshot", grown), ("--pretrained", "w.safetensors")):
        assert command("evaluate", *flags, "--plot_dir", "again", *QUIET).code == 0
        assert figures(Path("again"))["top1"] == top1

    flags = ("--teacher", "w.safetensors", "--run_dir", "taught", "--epochs", "1")
    assert command("main", *QUICK, *flags).code == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--attention eca", "attention cbam -> eca would alter the result"),
        ("--attention eca --resume_override", "the weights do not fit this CIFARNet"),
    ],
)
def test_a_run_goes_on_with_its_own_network_only(command, grown, flags, words):
    done = command("main", "--resume", grown, "--run_dir", ".", "--epochs", "3", *flags.split())
    assert (done.code, done.err.count("\n"), words in done.err) == (2, 1, True)


def test_the_log_tells_what_the_network_costs(grown):
    text = log_text(grown.parents[1] / "log")
    parameters = 2 * 144 * 9 + 98 + 2 * (2 * 424 * 26 + 98)  # C4 has one repeat
    assert f"attention: cbam in blocks 2, 4; {parameters:,} parameters\n" in text
    assert (
        "scaling: 1.2 times the depth, 1.1 times the width, images of 32 pixels enlarged to 36\n"
        in text
    )
    assert "cost: 217.2 million multiply-adds an image\n" in text
    assert "warning: a step" not in text


def test_a_wider_lite_is_trained_and_evaluated(command):
    flags = (*QUICK, "--width", "0.25", "--attention", "eca", "--epochs", "1", "--run_dir", "run")
    assert command("main", *flags).code == 0
    assert "scaling: 0.25 times the width\n" in log_text(Path("run/log"))
    weights = ("--snapshot", "run/snapshots_complete/last.pth")
    assert command("evaluate", *weights, "--plot_dir", "again", *QUIET).code == 0
    assert figures(Path("again"))["top1"] == figures(Path("run/plots_complete"))["top1"]


def test_a_step_that_may_not_fit_is_warned_of(command, monkeypatch):
    monkeypatch.setattr(log_header, "free_memory", lambda device: 2**20)
    assert command("main", *QUICK, "--epochs", "1").code == 0
    words = "GiB of memory, and 0.0 GiB are free; if it fails, raise --accumulate, or lower"
    assert words in log_text()
