"""CIFAR, downloaded or put there by hand, from small archives of the official forms."""

import hashlib
import http.server
import json
import pickle
import shutil
import socket
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from cifarnet.core.errors import UserError
from cifarnet.images import download
from cifarnet.images.cifar import CIFAR, CIFAR10_MEAN, CIFAR10_STD, read_cifar
from cifarnet.images.imageset import ImageSet, channel_statistics
from cifarnet.settings.data import DataSettings


def read(root, url=None, messages=None, which="cifar10") -> tuple[ImageSet, ImageSet]:
    settings = DataSettings(dataset=which, data_dir=str(root), data_url=url)
    dataset = read_cifar(settings, (messages if messages is not None else []).append)
    assert dataset.val is None
    return dataset.train, dataset.test


def packed(pixels: np.ndarray, labels: dict[str, list[int]]) -> bytes:
    content = pickle.dumps({"data": pixels} | labels, protocol=2)
    # The real files are of 2009, when numpy wrote 0 for false.
    assert content.count(b"\x89\x88\x87q") == 1
    return content.replace(b"\x89\x88\x87q", b"K\x00\x88\x87q")


def official_files(which: str) -> dict[str, bytes]:
    """The files of a small archive, by name."""
    random = np.random.default_rng(0)
    pixels = lambda: random.integers(0, 256, (20, 3072), dtype=np.uint8)  # noqa: E731
    if which == "cifar10":
        labels = {"labels": [i % 10 for i in range(20)]}
        names = {"label_names": [f"class {i}" for i in range(10)]}
        files = {
            f: packed(pixels(), labels) for f in ("data_batch_1", "data_batch_2", "test_batch")
        }
        return files | {"batches.meta": pickle.dumps(names)}
    labels = {"fine_labels": [5 * i for i in range(20)], "coarse_labels": list(range(20))}
    fine, coarse = (
        [f"{kind} {i}" for i in range(n)] for kind, n in (("fine", 100), ("coarse", 20))
    )
    names = {"fine_label_names": fine, "coarse_label_names": coarse}
    files = {name: packed(pixels(), labels) for name in ("train", "test")}
    return files | {"meta": pickle.dumps(names)}


@pytest.fixture
def archive(tmp_path, monkeypatch, request):
    """Serves a small archive, of CIFAR-10 by default; torchvision is given its checksums."""
    which = getattr(request, "param", "cifar10")
    official = CIFAR[which].official
    served = tmp_path / "served"
    batches = served / official.base_folder
    batches.mkdir(parents=True)
    files = official_files(which)
    for name, content in files.items():
        (batches / name).write_bytes(content)
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    archive = served / official.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(batches, batches.name)

    handler = lambda *args: Quiet(*args, directory=str(served))  # noqa: E731
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(official, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
    monkeypatch.setattr(official, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    for part in ("train_list", "test_list"):
        entries = [[name, sums[name]] for name, _ in getattr(official, part) if name in sums]
        monkeypatch.setattr(official, part, entries)
    meta = official.meta | {"md5": sums[official.meta["filename"]]}
    monkeypatch.setattr(official, "meta", meta)
    yield archive
    server.shutdown()
    server.server_close()
    thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_cifar10_is_downloaded_once(archive, tmp_path):
    root, messages = tmp_path / "data", []
    train, test = read(root, messages=messages)
    assert (len(train), len(test)) == (40, 20)
    assert messages == [f"downloading CIFAR-10 (170 MB) to {root}"]
    shutil.rmtree(root / "cifar-10-batches-py")
    read(root, messages=messages)  # from the archive that is kept
    archive.unlink()
    again, _ = read(root, messages=messages)
    assert len(messages) == 1
    assert torch.equal(again.images, train.images)


@pytest.mark.filterwarnings("ignore:dtype")  # raised here, where the test reads the pickle
def test_images_and_labels_are_those_of_the_archive(archive, tmp_path):
    train, test = read(tmp_path / "data")
    assert train.classes == test.classes == tuple(f"class {i}" for i in range(10))
    assert (train.images.dtype, train.labels.dtype) == (torch.uint8, torch.int64)
    content = pickle.loads((archive.parent / "cifar-10-batches-py" / "data_batch_2").read_bytes())
    assert (train.images[20:].numpy() == content["data"].reshape(20, 3, 32, 32)).all()
    assert train.labels[20:].tolist() == content["labels"]


@pytest.mark.parametrize("archive", ["cifar100"], indirect=True)
def test_cifar100_has_the_fine_labels_and_lies_beside_cifar10(archive, tmp_path):
    root, messages = tmp_path / "data", []
    (root / "cifar-10-batches-py").mkdir(parents=True)
    train, test = read(root, messages=messages, which="cifar100")
    assert messages == [f"downloading CIFAR-100 (169 MB) to {root}"]
    assert train.classes == test.classes == tuple(f"fine {i}" for i in range(100))
    assert train.labels.tolist() == test.labels.tolist() == [5 * i for i in range(20)]
    assert train.images.shape == (20, 3, 32, 32)
    archive.unlink()
    assert torch.equal(read(root, which="cifar100")[1].images, test.images)
    with pytest.raises(UserError, match=r"cannot get CIFAR-100 .*cifar-100-python.tar.gz"):
        read(tmp_path / "b", archive.as_uri(), which="cifar100")


@pytest.mark.parametrize("archive", ["cifar100"], indirect=True)
def test_a_run_on_cifar100_from_training_to_export(archive, command):
    recipe = ("--epochs", "1", "--batch_size", "10", "--image_sizes", "8", "--augment", "none")
    quick = (*recipe, "--num_workers", "0", "--no-plot_training", "--no-plot_evaluation")
    done = command("main", "--dataset", "cifar100", "--data_url", archive.as_uri(), *quick)
    assert (done.code, done.err) == (0, "")
    report = json.loads(Path("plots_complete/metrics.json").read_text())
    assert (report["dataset"], report["images"]) == ("CIFAR-100", 20)
    assert list(report["per_class"]) == [f"fine {i}" for i in range(100)]
    options = ["--snapshot=snapshots_complete/last.pth", "--metrics=plots_complete/metrics.json"]
    done = command("export", *options, "--format", "safetensors,hub,page")
    assert (done.code, done.err) == (0, "")
    assert done.out.count("on 20 test images") == 3
    assert "| fine 99 |" in Path("hub/README.md").read_text()
    assert command("evaluate", "--pretrained", "hub", "--no-plot_evaluation").code == 0
    again = json.loads(Path("plots_complete/metrics.json").read_text())
    assert again["sha256"] == report["sha256"]


def test_another_address_of_the_archive(archive, tmp_path):
    elsewhere = tmp_path / "elsewhere.tar.gz"
    archive.rename(elsewhere)
    assert len(read(tmp_path / "a", elsewhere.as_uri())[0]) == 40
    assert [p.name for p in sorted((tmp_path / "a").iterdir())] == [
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
    ]
    with pytest.raises(UserError, match=r"cannot get CIFAR-10 .*No such file.*--data_url"):
        read(tmp_path / "b", archive.as_uri())
    with pytest.raises(UserError, match="--data_url"):
        read(tmp_path / "b", "ftp://127.0.0.1/a.tar.gz")


def test_an_archive_put_there_by_hand_is_used_and_damaged_files_are_renewed(archive, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    archive.rename(root / archive.name)  # the server has nothing more to give
    assert len(read(root)[0]) == 40
    (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(
        pickle.dumps(Bomb(tmp_path / "exploded"))
    )
    assert len(read(root)[0]) == 40
    assert not (tmp_path / "exploded").exists()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.mkdir, (self.path,))


def test_a_download_with_the_wrong_checksum_is_refused(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(UserError, match="cannot get CIFAR-10") as caught:
        read(tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data" / "cifar-10-batches-py").exists()


def test_without_network_and_data_the_answer_says_what_to_do(tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{port}/cifar-10-python.tar.gz")
    monkeypatch.setattr(download, "PATIENCE", 0)
    with pytest.raises(UserError, match=r"by hand, or use --dataset digits"):
        read(tmp_path / "data")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        read(tmp_path / "file")


def test_the_official_images(cifar10_dir):
    train, test = read(cifar10_dir)
    assert (len(train), len(test), len(train.classes)) == (50_000, 10_000, 10)
    mean, std = channel_statistics(train.images)
    np.testing.assert_allclose(mean, CIFAR10_MEAN, atol=1e-4)
    np.testing.assert_allclose(std, CIFAR10_STD, atol=1e-4)


# The published statistics. With other values, the training of saved networks could not be repeated.
PUBLISHED_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@pytest.mark.parametrize("archive", CIFAR, indirect=True)
def test_images_come_at_the_size_of_the_settings_with_published_statistics(archive, tmp_path):
    which = "cifar100" if "100" in archive.name else "cifar10"
    settings = DataSettings(dataset=which, data_dir=str(tmp_path / "data"), image_size=48)
    dataset = read_cifar(settings, print)
    assert dataset.statistics == PUBLISHED_STATISTICS[which]
    assert dataset.train.images.shape[1:] == dataset.test.images.shape[1:] == (3, 48, 48)
