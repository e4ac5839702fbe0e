from dataclasses import fields
from pathlib import Path

import pytest

from cifarnet.checkpoints.paths import split_names
from cifarnet.core.errors import UserError
from cifarnet.settings import GROUPS, Settings, changed_settings, settings_from_dict, without_effect
from cifarnet.settings.parser import read_recipe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("flag", "name"),
    [("log_dir", "log"), ("snapshot_dir", "snapshots_complete"), ("plot_dir", "plots_complete")],
)
def test_folders_lie_in_the_run_unless_named(flag, name):
    assert Settings().output.folder(flag) == Path(name)
    assert Settings.from_flags(run_dir="runs/a").output.folder(flag) == Path("runs/a", name)
    assert Settings.from_flags(run_dir="runs/a", **{flag: "b"}).output.folder(flag) == Path("b")


def test_the_recipes_in_the_repository_are_valid_and_published_is_the_default():
    recipes = {
        path.stem: Settings.from_flags(**read_recipe(path))
        for path in (ROOT / "recipes").glob("[!s]*.toml")  # not of sweeps
    }
    spelled_out = recipes["published"]
    unset = {"affine_p": None, "hole_p": None, "jitter_p": None, "label_smoothing": None}
    assert spelled_out.replace(**unset) == Settings.from_flags(amp=True, batch_size=512)
    default = Settings()
    assert spelled_out.augmentation.probabilities == default.augmentation.probabilities
    assert spelled_out.training.smoothing == default.training.smoothing
    assert spelled_out.training.eval_batch_size == default.training.eval_batch_size
    for recipe in recipes.values():
        # The folder of the network that a recipe needs names the recipe that trains it.
        needs = filter(None, (recipe.training.init, recipe.training.teacher))
        for needed in (name for names in needs for name in split_names(names)):
            if (ROOT / "results" / needed / "weights.safetensors").exists():
                continue
            trains_it = recipes[Path(needed).parent.name.removeprefix("snapshots_")]
            assert Path(trains_it.output.snapshot_dir) / "last.pth" == Path(needed)


NONE = {"augment": "none"}
AUTO = {"auto_augment": "randaugment"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"augment_p": 0.2, "hole_p": 0.0, "plot_freq": 1}, ""),
        ({"muon_lr": 0.2, "optimizer": "muon", "mix_p": 0.5, "cutmix": 1.0}, ""),
        ({"attention_at": "2", "attention": "se", "amp_dtype": "bf16", "amp": True}, ""),
        ({**NONE, **AUTO, "border": "black"}, ""),
        ({**AUTO, "shift": 0.1, "affine_p": 0.1}, ""),
        ({**AUTO, "shift": 0.1, "jitter": "0,0,0,0"}, "shift jitter"),
        ({**AUTO, "degrees": 5.0, "augment": "light"}, "degrees"),
        ({**NONE, "pad": 2, "border": "black"}, "pad border"),
        ({"augment": "light", "augment_p": 0.2, "hole_p": 0.0}, "augment_p hole_p"),
        ({"mix_p": 0.5, "muon_lr": 0.2, "muon_momentum": 0.9}, "mix_p muon_lr muon_momentum"),
        ({"attention_at": "2", "amp_dtype": "bf16"}, "attention_at amp_dtype"),
        ({"affine_p": 0.0, "shift": 0.2, "hole_p": 0.0, "hole": 8}, "shift hole"),
        ({"augment_p": 0.0, "degrees": 30.0, "jitter": "0,0,0,0"}, "degrees jitter"),
        ({"dataset": "digits", "data_dir": "pictures"}, "data_dir"),
        ({"teacher": "lite", "teacher_epochs": 9, "epochs": 9}, "teacher_epochs"),
        ({"teacher": "lite", "teacher_epochs": 8, "epochs": 9}, ""),
        ({"num_workers": 2, "augment_engine": "batched"}, "num_workers"),
        ({"skip_bad_images": True}, "skip_bad_images"),
        ({"dataset": "folder", "skip_bad_images": True, "data_url": "http://x"}, "data_url"),
        ({"snapshot_freq": 0, "keep_snapshots": 2}, "keep_snapshots"),
        ({"plot_training": False, "plot_freq": 1}, "plot_freq"),
        ({"resume_override": True}, "resume_override"),
        ({"teacher_epochs": 2, "teacher_tta": "flip"}, "teacher_epochs teacher_tta"),
        ({"resume": "auto", "resume_override": True, "weight_decay": 0.0}, ""),
        ({"decay_norms": False, "weight_decay": 0.0}, "decay_norms"),
    ],
)
def test_flags_that_do_nothing_are_named(flags, expected):
    named = [sentence.split()[0] for sentence in without_effect(Settings.from_flags(**flags))]
    assert named == [f"--{name}" for name in expected.split()]


def test_unknown_flags_of_a_file_are_ignored():
    settings = settings_from_dict({"epochs": 3, "a_flag_of_tomorrow": 1})
    assert settings == Settings.from_flags(epochs=3)


WRONG = {  # what a command line, a recipe or a file may hold
    "epochs": ("3",),
    "amp": (1,),
    "lr": (None,),
    "seed": (True,),
    "data_dir": (3,),
    "image_size": (16, 40, 144),
    "image_sizes": ("", "7", "33", "16,", "a", "-16", "16;24", "9" * 5000),
    "dropout": ("", "0.1,0.2", "0.1,0.2,0.3,1", "a", "nan", -0.1, True, "0.1,,0,0"),
    "attention_at": ("", "1", "5", "2,2", "2.5", "2,3,4,4", "all", "2;3", True),
}


@pytest.mark.parametrize(
    ("flag", "value"), [(flag, value) for flag, values in WRONG.items() for value in values]
)
def test_wrong_values_are_refused(flag, value):
    with pytest.raises(UserError, match=rf"^--{flag} .*(is|does) (not|empty|out of range)"):
        settings_from_dict({flag: value})


def test_what_a_resumed_run_may_change():
    before = Settings.from_flags(epochs=10)
    assert changed_settings(before, before) == ([], [])
    now = before.replace(num_workers=2, plot_dir="p", keep_snapshots=3, epochs=12, lr=0.2, amp=True)
    allowed, forbidden = changed_settings(before, now)
    assert allowed == [
        "num_workers None -> 2",
        "epochs 10 -> 12",
        "keep_snapshots 0 -> 3",
        "plot_dir None -> p",
    ]
    assert forbidden == ["lr 0.1 -> 0.2", "amp False -> True"]
    assert changed_settings(now, before)[1][0] == "epochs 12 -> 10"


def test_flags_that_determine_the_result_cannot_change_on_resume():
    rules = {
        name: {spec.name: spec.metadata["on_resume"] for spec in fields(group)}
        for name, group in GROUPS.items()
    }
    determining = rules["augmentation"] | rules["network"] | rules["training"] | rules["precision"]
    assert {name: rule for name, rule in determining.items() if rule != "same"} == {
        "epochs": "larger", "recipe": "any", "preview_augment": "any", "keep_memory": "any",
    }  # fmt: skip
    assert set(rules["output"].values()) == {"any"}


def test_one_image_a_batch_is_fine_where_none_is_mixed():
    Settings.from_flags(batch_size=1, mixup=0.2, mix_p=0.0)


def test_image_sizes():
    assert Settings.from_flags(image_size=128).image_sizes == (128,)
    sizes = Settings.from_flags(epochs=7, image_size=128, image_sizes="16, 96,128").image_sizes
    assert sizes == (16, 96, 128)


@pytest.mark.parametrize(
    ("flags", "fix"),
    [
        ({"min_lr": 0.2}, "--min_lr 0.2 is above --lr 0.1; .* raise --lr"),
        ({"warmup_epochs": 3, "epochs": 3}, "--warmup_epochs 3 .* --epochs 3 .* raise --epochs"),
        (
            {"warmup_epochs": 1, "schedule_per": "epoch"},
            "--warmup_epochs needs --schedule_per",
        ),
        ({"teacher": "long", "label_smoothing": 0.1}, "--teacher .* --label_smoothing .* leave"),
        ({"teacher": "long", "class_weights": "balanced"}, "--teacher .* --class_weights .* leave"),
        (
            {"auto_augment": "randaugment", "augment_engine": "batched"},
            "needs --augment_engine alb",
        ),
        ({"mixup": 0.2, "batch_size": 1}, "--batch_size 1 has one image, .* --batch_size 2"),
        ({"cutmix": 1.0, "batch_size": 4, "accumulate": 4}, "one image in each of 4 parts, .* 8"),
        ({"batch_size": 10, "accumulate": 4}, "size 10 cannot .* by --accumulate 4; .* such as 8$"),
        ({"batch_size": 3, "accumulate": 4}, "size 3 cannot .* by --accumulate 4; .* such as 4$"),
        ({"jitter": "0.2,0.2,0.2,0.6"}, r"hue moves by 0\.5 turns at most"),
        ({"image_sizes": "16,24,32", "epochs": 2}, "has 3 sizes but --epochs is only 2; leave"),
        ({"evaluate": "ema"}, "--evaluate ema .* add --ema_decay"),
        ({"network": "residual", "image_sizes": "15"}, "--image_sizes 15 .* start from 16"),
        (
            {"network": "residual", "attention": "se"},
            "--attention has no effect on --network residual; remove",
        ),
        ({"network": "lite", "depth": 2}, "--depth .* on --network lite; remove one"),
        ({"network": "lite", "attention": "se", "attention_at": "2"}, "--attention_at has no"),
        ({"network": "residual", "width": 2}, "--width has no effect on --network residual;"),
        (
            {"network": "residual", "compound_scale": 1},
            "--compound_scale has no effect on",
        ),
        ({"compound_scale": 1, "depth": 2}, "--compound_scale sets width and depth itself; remove"),
        ({"compound_scale": 9.95}, "images of 32 pixels to 129; 128 is the limit: lower it"),
        ({"compound_scale": 1, "image_size": 112}, "images of 112 pixels to 129; .* --image_size"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags, fix):
    with pytest.raises(UserError, match=fix):
        Settings.from_flags(**flags)


def test_the_best_model_is_kept_where_it_is_asked_for_or_reported():
    assert not Settings().keeps_best
    assert Settings.from_flags(save_best=True).keeps_best
    assert Settings.from_flags(select="best").keeps_best


@pytest.mark.parametrize(
    ("value", "rates"),
    [(0, (0,) * 4), (0.1, (0.1,) * 4), ("0.2", (0.2,) * 4), ("0.1,0,.3,0.40", (0.1, 0, 0.3, 0.4))],
)
def test_dropout_is_one_rate_or_one_a_block(value, rates):
    assert Settings.from_flags(dropout=value).network.dropouts == rates


def test_equal_lists_of_numbers_are_equal_settings():
    texts = ("0.050,.1, 1e-1,0.0", "0.05,0.1,0.1,0")
    assert len({Settings.from_flags(dropout=text) for text in texts}) == 1


@pytest.mark.parametrize(
    ("settings", "smoothing"),
    [({}, 0.1), ({"teacher": "t.pth"}, 0.0), ({"label_smoothing": 0.0}, 0.0)],
)
def test_labels_are_smoothed_unless_a_teacher_replaces_them(settings, smoothing):
    assert Settings.from_flags(**settings).training.smoothing == smoothing


@pytest.mark.parametrize(("value", "blocks"), [("2,3,4", (2, 3, 4)), ("4, 2", (4, 2)), (3, (3,))])
def test_blocks_with_attention(value, blocks):
    assert Settings.from_flags(attention="se", attention_at=value).network.attended == blocks
    assert Settings.from_flags(attention_at=value).network.attended == ()


def test_a_batch_is_divided_among_processes_and_parts():
    settings = Settings.from_flags(batch_size=24, accumulate=4)
    settings.check_parts(3)
    assert settings.training.eval_batch_size == 6
    with pytest.raises(UserError, match=r"by 5 processes and --accumulate 4; .* of 20, such as 20"):
        settings.check_parts(5)
    with pytest.raises(UserError, match=r"size 32 cannot .* by 3 processes; .* of 3, such as 30"):
        Settings.from_flags(batch_size=32).check_parts(3)


def test_a_process_evaluates_at_most_512_images_at_once():
    large, small = (Settings.from_flags(batch_size=size).training for size in (8192, 96))
    assert (large.eval_batch_size, small.eval_batch_size) == (512, 96)
