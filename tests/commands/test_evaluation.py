import dataclasses
import errno

import pytest
import torch
from sklearn.metrics import accuracy_score
from support.classifiers import COLOURS, MeanColour
from support.pictures import draw_tree
from support.random_models import random_model
from support.snapshots import make_trained

from cifarnet.checkpoints.trained import write_weights
from cifarnet.core.device import init_process
from cifarnet.core.errors import RunError
from cifarnet.images.imageset import ImageSet, Splits
from cifarnet.settings import Settings
from cifarnet.settings.data import DataSettings
from commands.evaluation import evaluate_classifier, evaluation_settings, write_evaluation
from commands.report_content import report_data
from data import load_splits

IMAGES = torch.randint(0, 256, (20, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
SETTINGS = Settings.from_flags(device="cpu", batch_size=6, augment="none")


TESTED = ImageSet(IMAGES, torch.arange(20) % 3, COLOURS)
SPLITS = Splits("pictures", TESTED, None, TESTED, (0.1, 0.2, 0.3), (0.3, 0.2, 0.1))


def test_a_report_is_on_all_test_images_whatever_the_batches():
    runtime = init_process(SETTINGS.precision)
    report = evaluate_classifier(MeanColour(), SPLITS, SETTINGS, runtime, {"id": "first"})
    predicted = IMAGES.double().mean((2, 3)).argmax(1)
    assert report.images == 20
    assert report.top1 == pytest.approx(accuracy_score(TESTED.labels, predicted))
    assert (report.snapshot, report.epoch, report.run) == ("one.pth", 3, {"id": "first"})
    assert report.parameters == 174_762 - 7 * 385
    at_once = SETTINGS.replace(batch_size=20)
    assert evaluate_classifier(MeanColour(), SPLITS, at_once, runtime).loss == report.loss


def test_a_full_disk_is_an_error_of_the_run(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    runtime = init_process(SETTINGS.precision)
    report = evaluate_classifier(MeanColour(), SPLITS, SETTINGS, runtime)
    data = report_data(MeanColour().infos, SPLITS, SETTINGS, runtime)
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(RunError, match=r"could not be written to .* \(No space left"):
        write_evaluation(report, SETTINGS, tmp_path, data)


# --- settings of evaluate.py ---

OF_FOLDER = {"dataset": "folder", "data_dir": "pictures", "labels": "labels.csv"}
OF_FOLDER |= {"dataset_name": "mine", "limit_test": 10, "limit_train": 20, "val_fraction": 0.1}
OTHERS = {"batch_size": 5, "image_size": 48, "amp": True, "skip_bad_images": True}


def settings_after(flags, *trainings) -> dict:
    infos = [make_trained(settings=training) for training in trainings]
    return evaluation_settings(infos, flags).flags


def test_data_and_precision_are_those_of_the_training():
    flags = settings_after({}, {**OF_FOLDER, **OTHERS, "lr": 0.3, "plot_dir": "elsewhere"})
    assert {**OF_FOLDER, **OTHERS}.items() <= flags.items()
    defaults = Settings().flags
    assert (flags["lr"], flags["plot_dir"]) == (defaults["lr"], defaults["plot_dir"])


@pytest.mark.parametrize(
    ("flags", "inherited"),
    [
        ({"batch_size": 7}, OF_FOLDER.keys() - {"dataset"}),
        ({"dataset": "folder"}, {"data_dir", "labels"}),
        ({"data_dir": "others"}, set()),
        ({"dataset": "digits"}, set()),
        ({"labels": "others.csv"}, {"data_dir"}),
    ],
    ids=["nothing", "another kind", "another folder", "another data set", "other labels"],
)
def test_other_images_have_another_place_name_and_number(flags, inherited):
    settings, defaults = settings_after(flags, {**OF_FOLDER, **OTHERS}), Settings().flags
    names = OF_FOLDER.keys() - {"dataset"}
    of_training = {name for name in names if settings[name] == OF_FOLDER[name]}
    assert of_training == inherited
    assert flags.items() <= settings.items()
    for name in names - inherited - flags.keys():
        assert settings[name] == defaults[name]


def test_the_first_of_several_gives_the_settings_and_any_gives_amp():
    assert settings_after({}, {"amp": False, "batch_size": 3}, {"amp": True})["batch_size"] == 3
    assert settings_after({}, {"amp": False}, {"amp": True})["amp"]
    assert not settings_after({}, {"amp": False}, {"amp": False})["amp"]
    assert not settings_after({"amp": False}, {"amp": True})["amp"]


# --- evaluate.py ---


def test_unicode_forms_of_the_classes_are_the_same_classes(command, tmp_path):
    model = random_model(width=0.1, classes=("cafe\u0301", "tea"), amp=False)
    write_weights(model, tmp_path / "w.safetensors")
    tree = draw_tree(tmp_path / "tree", classes=("caf\u00e9", "tea"))
    flags = ("--data_dir", tree, "--dataset", "folder", "--no-plot_evaluation", "--no-report")
    done = command("evaluate", "--pretrained", "w.safetensors", *flags)
    assert (done.code, done.err) == (0, "")
    assert "6 test images" in done.out


def test_test_images_drawn_from_a_folder_may_have_been_trained_on(command, tmp_path):
    tree = draw_tree(tmp_path / "tree", train=20, test=0) / "train"  # not divided into parts
    images = DataSettings(dataset="folder", data_dir=str(tree))
    splits = load_splits(images, lambda line: None)
    model = random_model(width=0.1, classes=("bar", "disc"), amp=False)
    for mean, warned in (((0.5, 0.5, 0.5), True), (splits.mean, False)):
        trained = dataclasses.replace(model, mean=mean, std=splits.std)
        write_weights(trained, tmp_path / "w.safetensors")
        flags = ("--data_dir", tree, "--dataset", "folder", "--no-plot_evaluation", "--no-report")
        done = command("evaluate", "--pretrained", "w.safetensors", *flags)
        assert (done.code, done.err) == (0, "")
        assert ("some test images may have been training images" in done.out) == warned
        assert f"{len(splits.test)} test images, w.safetensors (epoch 3)" in done.out
