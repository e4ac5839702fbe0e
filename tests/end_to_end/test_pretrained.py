"""A trained network in use: export, predict, evaluate, the start of another run, and Python."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cifarnet.checkpoints.weights import fingerprint
from PIL import Image
from safetensors import safe_open
from support.commands import QUICK
from support.outputs import figures, log_text, metadata, snapshot
from support.pictures import draw_tree, seen_by_others
from test_model import reference_forward

from cifarnet.checkpoints import places

ROOT = Path(__file__).parent.parent.parent
CLASSES = ("bar", "disc", "star")  # in the fixture `trained`


# --- export ---


def test_export_keeps_what_using_the_weights_needs(command, trained):
    done = command("export", "--snapshot", trained.snapshot, "--out", "new/w.safetensors")
    assert (done.code, done.err) == (0, "")
    state, report = torch.load(trained.snapshot), json.loads(trained.metrics.read_text())
    accuracy = f"top-1 {report['top1']:.2%} (the run's history, epoch 4)"
    about, read_back = done.out.splitlines()
    assert about == (
        f"{trained.snapshot}: epoch 4 on pictures, {accuracy}; 0.70 MB of weights in float32"
    )
    assert read_back == (
        "new/w.safetensors: 0.70 MB; on 9 test images: largest difference of a logit 0, "
        f"equal top-1 100.00%, top-1 {report['top1']:.2%} "
        f"(network {report['top1']:.2%}, in float32)"
    )
    said = metadata(Path("new/w.safetensors"))
    assert [said[name] for name in ("classes", "mean", "std", "epoch", "dataset")] == [
        list(CLASSES), state["mean"], state["std"], 4, "pictures"
    ]  # fmt: skip
    assert said["accuracy"] == report["top1"] == state["history"][-1]["test_accuracy"]
    assert said["selected_by"] == report["selected_by"]
    with safe_open("new/w.safetensors", "pt") as file:
        assert {name: file.get_slice(name).get_shape() for name in file.keys()} == {  # noqa: SIM118
            name: list(value.shape) for name, value in state["model"].items()
        }
        assert all(
            torch.equal(file.get_tensor(name), value) for name, value in state["model"].items()
        )
    assert Path("new/w.safetensors").stat().st_size < 750_000


def test_the_settings_in_the_weights_name_no_place(command, trained):
    settings = metadata(trained.weights)["config"]
    state = torch.load(trained.snapshot)["config"]
    assert settings.items() <= state.items()
    assert settings["batch_size"] == 6
    places = {name for name in state if name.endswith("_dir")}
    assert len(places) == 5
    assert not settings.keys() & (places | {"resume", "data_url", "preview_augment"})
    assert str(trained.tree.parent) not in json.dumps(metadata(trained.weights))


def test_the_accuracy_may_come_from_a_report(command, trained):
    report = json.loads(trained.metrics.read_text())
    Path("metrics.json").write_text(json.dumps(report | {"top1": 0.625}))
    done = command("export", "--snapshot", trained.snapshot, "--metrics", "metrics.json")
    assert (done.code, done.err) == (0, "")
    said = metadata(Path("weights.safetensors"))
    assert (said["accuracy"], said["accuracy_from"]) == (0.625, "metrics.json, 9 images")
    assert report["sha256"] == fingerprint(torch.load(trained.snapshot)["model"])
    without = {name: value for name, value in report.items() if name != "sha256"}
    another_run = report | {"sha256": "0" * 64}
    for wrong in (
        another_run,
        without,
        report | {"epoch": 3},
        report | {"dataset": "others"},
        report | {"top1": None},
        {},
        [],
    ):
        Path("metrics.json").write_text(json.dumps(wrong))
        done = command("export", "--snapshot", trained.snapshot, "--metrics", "metrics.json")
        assert done.code == 2
        assert "--metrics metrics.json" in done.err


def test_averaged_weights_are_exported_where_the_run_evaluates_them(command, trained):
    quick = (
        *QUICK,
        "--dataset",
        "folder",
        "--data_dir",
        trained.tree,
        "--batch_size",
        "6",
        "--epochs",
        "1",
    )
    assert command("main", *quick, "--ema_decay", "0.5", "--evaluate", "ema").code == 0
    report, kept = figures(), snapshot("last.pth")
    for which, flags in (("ema", ()), ("raw", ("--evaluate", "raw"))):
        assert command("export", "--snapshot", "snapshots_complete/last.pth", *flags).code == 0
        expected = (
            kept["averaged"]["module.head.bias"] if which == "ema" else kept["model"]["head.bias"]
        )
        with safe_open("weights.safetensors", "pt") as file:
            assert torch.equal(file.get_tensor("head.bias"), expected)
        assert metadata(Path("weights.safetensors"))["accuracy"] == (
            report["top1"] if which == "ema" else None
        )
        done = command(
            "evaluate",
            "--pretrained",
            "weights.safetensors",
            "--data_dir",
            trained.tree,
            "--plot_dir",
            which,
        )
        assert done.code == 0
        text = Path(which, "classification_report.txt").read_text()
        assert ("averaged weights; last epoch" in text) == (which == "ema")
    wrong = command(
        "export",
        "--snapshot",
        "snapshots_complete/last.pth",
        "--evaluate",
        "raw",
        "--metrics",
        "ema/metrics.json",
    )
    assert wrong.code == 2
    assert "weights ema; the weights to export are" in wrong.err
    assert figures(Path("ema"))["loss"] == report["loss"] != figures(Path("raw"))["loss"]
    done = command("evaluate", "--pretrained", "weights.safetensors", "--evaluate", "ema")
    assert (done.code, done.out) == (2, "")


@pytest.mark.parametrize(
    "flags",
    [
        (), ("--snapshot", "missing.pth"), ("--snapshot", "."),
        ("--snapshot", f"{'long' * 75}.pth"),
        ("--snapshot", "SNAPSHOT", "--evaluate", "ema"),
        ("--snapshot", "SNAPSHOT", "--out", "weights.bin"),
        ("--snapshot", "SNAPSHOT", "--out", "a_file/w.safetensors"),
        ("--snapshot", "SNAPSHOT", "--metrics", "missing"),
        ("--snapshot", "SNAPSHOT", "--out", "a_folder.safetensors"),
        ("--snapshot", "SNAPSHOT", "--pretrained", "SNAPSHOT"),
        ("--pretrained", "SNAPSHOT", "--evaluate", "raw"), ("--pretrained", "nobody"),
        ("--snapshot", "SNAPSHOT", "--format", "safetensor"),
        ("--snapshot", "SNAPSHOT", "--format", ""),
        ("--snapshot", "SNAPSHOT", "--dataset", "digits"),
        ("--snapshot", "SNAPSHOT", "--data_dir", "missing"),
        ("--snapshot", "SNAPSHOT", "--no-such-flag"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_wrong_export_is_one_line(command, trained, flags):
    Path("a_file").touch()
    Path("a_folder.safetensors").mkdir()
    done = command(
        "export", *(str(trained.snapshot) if flag == "SNAPSHOT" else flag for flag in flags)
    )
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == ["a_file", "a_folder.safetensors"]


def test_a_full_disk_ends_the_export_with_1(command, trained, monkeypatch):
    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    done = command("export", "--snapshot", trained.snapshot)
    assert (done.code, done.err) == (
        1,
        "error: --out .: cannot write there (No space left on device); choose another folder\n",
    )
    assert not list(Path().iterdir())


# --- predict ---


def lines(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("given", ["weights", "snapshot"])
def test_predictions_are_those_of_the_published_forward_pass(command, trained, given):
    """OpenCV decodes, torch resizes, and a second writing of the network runs in 64 bits."""
    paths = sorted(trained.tree.glob("test/*/*.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(paths[0]) as picture:
        turned = picture.resize((50, 20))
        turned.paste("white", (0, 0, 25, 20))
        turned.save("turned.jpg", exif=exif)
        picture.convert("L").save("grey.bmp")
    paths += [Path("turned.jpg"), Path("grey.bmp")]
    done = command("predict", "--pretrained", getattr(trained, given), "--json", *paths)
    assert (done.code, done.err) == (0, "")
    told = lines(done.out)
    assert [line["path"] for line in told] == [str(path) for path in paths]

    kept = torch.load(trained.snapshot)
    mean, std = (torch.tensor(kept[name]).double().view(1, 3, 1, 1) for name in ("mean", "std"))
    images = torch.from_numpy(np.stack([seen_by_others(path) for path in paths]))
    state = {name: value.double() for name, value in kept["model"].items()}
    expected = reference_forward(state, (images / 255 - mean) / std).softmax(dim=1)
    for line, row in zip(told, expected, strict=True):
        shares = {guess["class"]: guess["probability"] for guess in line["predictions"]}
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        ours = [shares[name] for name in CLASSES]
        assert ours == pytest.approx(row.tolist(), abs=1e-4)
        assert sum(ours) == pytest.approx(1)
    assert [line["predictions"][0]["class"] for line in told[:9]] == [
        path.parent.name for path in paths[:9]
    ]


def test_the_table_is_aligned_and_the_size_of_the_batches_does_not_matter(command, trained):
    Path("sub").mkdir()
    for i, path in enumerate(sorted(trained.tree.glob("test/*/*.png"))):
        (Path("sub") / f"{'long' * i}\n{i}.png").write_bytes(path.read_bytes())
    done = command("predict", "--pretrained", trained.weights, "sub", "--top_k", "2")
    assert (done.code, done.err) == (0, "")
    head, *rows = done.out.splitlines()
    assert len(rows) == 9
    at = [head.index(place) for place in ("1.", "2.")]
    assert "3." not in head
    for row in rows:
        assert len(row) == len(rows[0])
        for place in at:
            assert row[place - 2 : place] == "  "
            assert re.match(r"(bar|disc|star) +\d{1,3}\.\d\d%", row[place:])
    assert rows[0].startswith(r"sub/\n0.png ")
    assert (
        command(
            "predict", "--pretrained", trained.weights, "sub", "--top_k", "2", "--batch_size", "2"
        ).out
        == done.out
    )
    many = command("predict", "--pretrained", trained.weights, "sub", "--top_k", "1000000")
    assert many.out.splitlines()[0].split() == ["picture", "1.", "2.", "3."]


INSIDE = ("000.jpg", "001.jpg", "d.bmp")


def test_folders_are_searched_in_order(command, trained):
    draw_tree(Path("album"), classes=("a",), train=2, test=0, suffix="jpg")
    for name in (
        "album/z.WEBP",
        "album/B.png",
        "album/.hidden.png",
        "album/.hidden/c.png",
        "album/train/a/d.bmp",
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 50)).save(name)
    Path("album/notes.txt").write_text("no picture")
    Path("album/again").symlink_to(Path("album").resolve())
    done = command(
        "predict",
        "--pretrained",
        trained.weights,
        "--json",
        "album/notes.txt",
        "album",
        "album/B.png",
    )
    assert done.code == 1
    assert "ignored 2 files in no image format, such as album/again" in done.err
    below = [f"album/{name}" for name in ("B.png", "z.WEBP", *(f"train/a/{n}" for n in INSIDE))]
    assert [line["path"] for line in lines(done.out)] == ["album/notes.txt", *below, "album/B.png"]


def test_unreadable_pictures_are_named_and_the_others_go_on(command, trained):
    good = next(trained.tree.glob("test/disc/*.png"))
    Path("b\nad.png").write_bytes(good.read_bytes()[:300])
    Path("empty").mkdir()
    for flags in ((), ("--json",)):
        done = command(
            "predict",
            "--pretrained",
            trained.weights,
            "empty",
            "b\nad.png",
            good,
            "none.png",
            *flags,
        )
        assert done.code == 1
        said = done.err.splitlines()
        assert len(said) == 4
        assert [
            name in line
            for name, line in zip(("empty", r"b\nad.png", "none.png"), said, strict=False)
        ] == [True] * 3
        assert said[3] == "error: 3 of 4 could not be read; the lines above name them"
        if flags:
            told = lines(done.out)
            assert [line["path"] for line in told] == ["empty", "b\nad.png", str(good), "none.png"]
            assert ["error" in line for line in told] == [True, True, False, True]
        else:
            assert [line.split()[0] for line in done.out.splitlines()] == ["picture", str(good)]
    assert (
        command("predict", "--pretrained", trained.weights, good, "none.png", "--top_k", "1").code
        == 1
    )


@pytest.mark.parametrize(
    ("flags", "count"),
    [
        (("none.png",), 1), (("empty",), 1), (("none.png", "empty"), 3), ((), 1),
        (("PICTURE", "--top_k", "0"), 1), (("PICTURE", "--top_k", "x"), 1),
        (("PICTURE", "--batch_size", "0"), 1), (("PICTURE", "--device", "tpu"), 1),
        (("PICTURE", "--pretrained", "nobody"), 1), (("PICTURE", "--pretrained", "missing.pth"), 1),
        (("PICTURE", "--pretrained", "PICTURE"), 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_nothing_readable_or_a_wrong_request_is_2(command, trained, flags, count):
    Path("empty").mkdir()
    picture = next(trained.tree.glob("test/disc/*.png"))
    flags = [picture if flag == "PICTURE" else flag for flag in flags]
    done = command("predict", "--pretrained", trained.weights, *flags)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == done.err.count("error: ") == count


def test_names_that_are_no_text_come_back_from_json(command, trained):
    name = os.fsdecode(b"latin\xe9 \xc3\xa9.png")
    try:
        Path(name).write_bytes(next(trained.tree.glob("test/disc/*.png")).read_bytes())
    except OSError:
        pytest.skip("this file system takes no such names")
    done = command("predict", "--pretrained", trained.weights, "--json", ".")
    assert done.out.isascii()
    assert lines(done.out)[0]["path"] == name


def process(*words: str, **settings) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, words)], **(pipes | settings))


def test_who_reads_along_may_stop(trained):
    with process(
        ROOT / "predict.py",
        "--pretrained",
        trained.weights,
        "--batch_size",
        "27",
        *[trained.tree] * 20,
    ) as run:
        assert run.stdout.readline().startswith("picture ")
        run.stdout.close()
        assert run.stderr.read() == ""
    assert run.returncode == 1


def test_a_full_disk_behind_the_output_is_one_line(trained):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        with process(
            ROOT / "predict.py", "--pretrained", trained.weights, trained.tree, stdout=full
        ) as run:
            err = run.stderr.read()
    assert (run.returncode, err) == (
        1,
        "error: the output could not be written (No space left on device)\n",
    )


def test_ctrl_c_ends_predicting_with_130(trained):
    with process(
        ROOT / "predict.py",
        "--pretrained",
        trained.weights,
        "--batch_size",
        "27",
        *[trained.tree] * 2000,
    ) as run:
        assert run.stdout.readline().startswith("picture ")
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=120)
    assert (run.returncode, err) == (130, "")


# --- evaluate ---


def test_evaluate_repeats_the_accuracy_of_the_weights(command, trained):
    of_the_run = json.loads(trained.metrics.read_text())
    done = command("evaluate", "--pretrained", trained.weights, "--data_dir", trained.tree)
    assert (done.code, done.err) == (0, "")
    again = figures()
    differing = {name for name in again if again[name] != of_the_run[name]}
    assert differing <= {"last", "best", "snapshot", "run"}
    assert again["snapshot"] == str(trained.weights)
    text = Path("plots_complete/classification_report.txt").read_text()
    assert f"snapshot: {trained.weights} (epoch 4; last epoch" in text
    assert str(trained.weights) in done.out


def test_evaluate_takes_either_a_snapshot_or_weights(command, trained):
    both = ("--pretrained", trained.weights, "--snapshot", trained.snapshot)
    for flags, words in ((both, "not allowed with"), ((), "name a network: --snapshot PATH, ")):
        done = command("evaluate", *flags)
        assert done.code == 2
        assert words in done.err
    done = command("evaluate", "--pretrained", trained.weights)
    assert (done.code, done.out) == (2, "")
    assert (
        "learnt from a folder of images, pictures, and does not say where; add --dataset folder"
        in done.err
    )
    other = draw_tree(Path("other"), classes=("bar", "tree"))
    done = command("evaluate", "--pretrained", trained.weights, "--data_dir", other)
    assert (done.code, done.out) == (2, "")
    assert "the network knows 3 (bar, disc, star); the data set has 2" in done.err


# --- starting from weights ---


def run_from(command, weights, tree, *flags):
    quick = (
        *QUICK,
        "--dataset",
        "folder",
        "--data_dir",
        tree,
        "--batch_size",
        "6",
        "--epochs",
        "1",
        "--lr",
        "1e-7",
    )
    return command("main", *quick, "--min_lr", "0", "--init", weights, *flags)


@pytest.mark.parametrize("given", ["weights", "snapshot"])
def test_a_run_starts_from_the_weights_it_is_given(command, trained, given):
    """With a learning rate near 0 the final weights are still those of the start."""
    done = run_from(command, getattr(trained, given), trained.tree)
    assert (done.code, done.err) == (0, "")
    assert command("export", "--snapshot", "snapshots_complete/last.pth").code == 0
    assert (
        metadata(Path("weights.safetensors"))["config"]["init"]
        == Path(getattr(trained, given)).name
    )  # and no place
    assert (
        f"starting from the weights {getattr(trained, given)}: epoch 4 of 4 on pictures\n"
        in done.out
    )
    assert "starting from the weights" in log_text()
    before, after = torch.load(trained.snapshot)["model"], snapshot("last.pth")["model"]
    for name, value in before.items():
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(after[name], value, atol=1e-5, rtol=0, msg=name)
    count = "c1.bn.num_batches_tracked"
    assert after[count] == before[count] + 3 == 15
    assert command("main", *QUICK, "--epochs", "1").code == 0
    assert snapshot("last.pth")["model"][count] == 3


def test_other_classes_get_a_fresh_head(command, trained):
    tree = draw_tree(Path("tree"), classes=("bar", "disc", "tree"))
    done = run_from(command, trained.weights, tree)
    assert (done.code, done.err) == (0, "")
    assert "; its head knows 2 of the 3 classes, by their names\n" in done.out
    before, after = torch.load(trained.snapshot)["model"], snapshot("last.pth")["model"]
    assert (after["head.weight"] - before["head.weight"]).abs().max() > 1e-3
    torch.testing.assert_close(
        after["c4.conv.1.weight"], before["c4.conv.1.weight"], atol=1e-5, rtol=0
    )
    assert run_from(command, trained.weights, draw_tree(Path("two"))).code == 0  # of another number


@pytest.mark.parametrize(("fraction", "warned"), [("0", False), ("0.5", True)])
def test_weights_that_have_seen_the_validation_images_are_warned_of(
    command, trained, fraction, warned
):
    done = run_from(command, trained.weights, trained.tree, "--val_fraction", fraction)
    assert done.code == 0
    assert (
        "warning: the network that --init names may have trained on the validation images"
        in done.out
    ) == warned


def test_a_resumed_run_does_not_start_from_the_weights_again(command, trained):
    flags = ("--lr", "0.05", "--epochs", "2")
    assert run_from(command, "w.safetensors", trained.tree).code == 2
    Path("w.safetensors").write_bytes(trained.weights.read_bytes())
    assert (
        run_from(command, "w.safetensors", trained.tree, *flags, "--snapshot_dir", "whole").code
        == 0
    )
    Path("w.safetensors").unlink()
    first = "whole/snapshot_epoch_0001.pth"
    resumed = ("--resume", first, "--snapshot_dir", "parts")
    done = run_from(command, "w.safetensors", trained.tree, *flags, *resumed)
    assert done.code == 0, done.err
    assert "starting from the weights" not in done.out
    whole, parts = (snapshot("last.pth", run)["model"] for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    done = run_from(command, trained.weights, trained.tree, *flags, *resumed)
    assert done.code == 2
    assert "init w.safetensors -> " in done.err


@pytest.mark.parametrize("content", [None, b"no weights"], ids=["missing", "damaged"])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_wrong_weights_to_start_from_are_one_line(command, trained, content, suffix):
    if content:
        Path(f"w.{suffix}").write_bytes(content)
    Path("no_images").mkdir()  # they are read or downloaded later
    done = run_from(command, f"w.{suffix}", "no_images")
    assert done.code == 2
    assert done.err.startswith("error: --init: ")
    assert done.err.count("\n") == 1
    assert not list(Path().glob("log/*.log"))


def test_weights_that_the_run_would_replace_are_refused(command, trained):
    Path("snapshots_complete").mkdir()
    Path("snapshots_complete/last.pth").write_bytes(trained.snapshot.read_bytes())
    done = run_from(command, "snapshots_complete/last.pth", trained.tree)
    assert done.code == 2
    assert done.err.startswith(
        "error: --init snapshots_complete/last.pth is in this run's --snapshot_dir, where it would"
    )
    assert Path("snapshots_complete/last.pth").read_bytes() == trained.snapshot.read_bytes()


# --- from Python ---


def test_the_lines_of_the_guide(trained, tmp_path, monkeypatch, capsys):
    guide = (ROOT / "docs" / "using-a-model.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (block,) = (code for code in blocks if "load_pretrained" in code)
    name = re.search(r'load_pretrained\("(\w+)"\)', block)[1]
    assert (places.RESULTS / name / places.WEIGHTS_FILE).exists()
    # A network for the fixture's pictures stands in for it.
    (tmp_path / name).mkdir()
    (tmp_path / name / places.WEIGHTS_FILE).write_bytes(trained.weights.read_bytes())
    monkeypatch.setattr(places, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for path in sorted(trained.tree.glob("test/*/*.png")):
        with Image.open(path) as picture:
            picture.resize((300, 200)).save("photo.jpg")
        exec(block, {})
        assert capsys.readouterr().out == f"{path.parent.name}\n"
