"""CIFAR-10, downloaded or put there by hand, from a small archive of the official form."""

import hashlib
import http.server
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
from cifarnet.images.cifar import read_cifar10


def read(root, url=None, said=None):
    return read_cifar10(root, url, (said if said is not None else []).append)


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """Serves a small archive; torchvision is given its checksums."""
    served = tmp_path / "served"
    batches = served / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    random = np.random.default_rng(0)
    sums = {}
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        pixels = random.integers(0, 256, (20, 3072), dtype=np.uint8)
        content = pickle.dumps({"data": pixels, "labels": [i % 10 for i in range(20)]}, protocol=2)
        # The real files are of 2009, when numpy wrote 0 for false.
        assert content.count(b"\x89\x88\x87q") == 1
        (batches / name).write_bytes(content.replace(b"\x89\x88\x87q", b"K\x00\x88\x87q"))
    names = [f"class {i}" for i in range(10)]
    (batches / "data.meta").write_bytes(pickle.dumps({"label_names": names}))
    for path in batches.iterdir():
        sums[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    with tarfile.open(served / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(batches, batches.name)
    archive = served / "cifar-10-python.tar.gz"

    handler = lambda *args: Quiet(*args, directory=str(served))  # noqa: E731
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(
        datasets.CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}"
    )
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(
        datasets.CIFAR10, "train_list", [[n, sums[n]] for n in ("data_batch_1", "data_batch_2")]
    )
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "data.meta", "key": "label_names", "md5": sums["data.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    yield archive
    server.shutdown()
    server.server_close()
    thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_cifar10_is_downloaded_once(archive, tmp_path):
    root, said = tmp_path / "data", []
    train, test = read(root, said=said)
    assert (len(train), len(test)) == (40, 20)
    assert said == [f"downloading CIFAR-10 (170 MB) to {root}"]
    shutil.rmtree(root / "cifar-10-batches-py")
    read(root, said=said)  # from the archive that is kept
    archive.unlink()
    again, _ = read(root, said=said)
    assert len(said) == 1
    assert torch.equal(again.images, train.images)


@pytest.mark.filterwarnings("ignore:dtype")  # raised here, where the test reads the pickle
def test_images_and_labels_are_those_of_the_archive(archive, tmp_path):
    train, test = read(tmp_path / "data")
    assert train.classes == test.classes == tuple(f"class {i}" for i in range(10))
    assert (train.images.dtype, train.labels.dtype) == (torch.uint8, torch.int64)
    content = pickle.loads((archive.parent / "cifar-10-batches-py" / "data_batch_2").read_bytes())
    assert (train.images[20:].numpy() == content["data"].reshape(20, 3, 32, 32)).all()
    assert train.labels[20:].tolist() == content["labels"]


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
