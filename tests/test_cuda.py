"""What only a CUDA device can show: `make test-cuda`. Skipped where there is none."""

import copy
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.augmentation import policy_of
from support.commands import QUICK
from support.small_runs import small_run

from cifarnet.augment.batched import BatchedEngine
from cifarnet.augment.mixing import Mixing
from cifarnet.checkpoints.snapshots import read_snapshot
from cifarnet.networks.attention import ATTENTION
from cifarnet.networks.build import build_model
from cifarnet.settings.augmentation import AugmentationSettings
from cifarnet.settings.network import NetworkSettings
from model import load_pretrained

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
CUDA = "cuda"
NETWORKS = ("cifarnet", "residual")
CHANGES = [
    *({"network": name} for name in (*NETWORKS, "lite")),
    *({"attention": name, "compound_scale": 1.0} for name in ATTENTION),
]


@pytest.fixture(autouse=True)
def without_tf32():
    """Products in full float32, as on the CPU, unless a run sets them; what was set comes back."""
    former = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(former[0])
    torch.backends.cudnn.allow_tf32 = former[1]


def loss_and_gradients(model, images, labels) -> tuple[float, dict[str, torch.Tensor]]:
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    return loss.item(), {name: p.grad.cpu() for name, p in model.named_parameters()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_forward_and_backward_equal_the_cpus(changes, training):
    torch.manual_seed(0)
    here = build_model(NetworkSettings(dropout=0, **changes), 10).train(training)
    there = copy.deepcopy(here).to(CUDA)
    images, labels = torch.randn(32, 3, 32, 32), torch.arange(32) % 10
    loss, gradients = loss_and_gradients(here, images, labels)
    other_loss, others = loss_and_gradients(there, images.to(CUDA), labels.to(CUDA))
    assert other_loss == pytest.approx(loss, rel=1e-4)
    for name, gradient in gradients.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=2e-3 * scale, msg=name)
    for (name, ours), theirs in zip(here.named_buffers(), there.buffers(), strict=True):
        torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("network", NETWORKS)
def test_mixed_precision_follows_float32(network, dtype):
    settings = {"device": CUDA, "network": network, "dropout": 0, "epochs": 2, "lr": 0.02}
    full = small_run(**settings).fit()
    mixed = small_run(amp=True, amp_dtype=dtype, **settings).fit()
    for ours, expected in zip(mixed, full, strict=True):
        assert ours.train_loss == pytest.approx(expected.train_loss, rel=0.1)
        assert ours.skipped_steps <= 3  # the fp16 scaler finds its scale in the first steps


def test_an_overflow_of_fp16_is_left_out_and_counted():
    run = small_run(device=CUDA, amp=True, amp_dtype="fp16", epochs=1)
    run.learner.scaler = torch.amp.GradScaler(CUDA, init_scale=2.0**60)
    (row,) = run.fit()
    assert row.skipped_steps > 0
    assert all(p.isfinite().all() for p in run.learner.network.parameters())


@pytest.mark.parametrize(("amp", "accumulate"), [(False, 1), (True, 1), (False, 2)])
def test_a_compiled_step_equals_the_plain_one(amp, accumulate):
    """With CUDA graphs where a step has one part. The last batch is smaller: it runs uncompiled."""
    settings = {"device": CUDA, "dropout": 0, "epochs": 2, "lr": 0.02}
    settings |= {"amp": amp, "accumulate": accumulate}
    plain, compiled = (small_run(compile=how, **settings) for how in (False, True))
    for ours, expected in zip(compiled.fit(), plain.fit(), strict=True):
        assert ours.train_loss == pytest.approx(expected.train_loss, rel=0.05 if amp else 1e-3)
    if not amp:
        weights = compiled.learner.network.state_dict()
        for name, expected in plain.learner.network.state_dict().items():
            torch.testing.assert_close(weights[name], expected, rtol=1e-2, atol=1e-3, msg=name)


def test_the_batched_engine_gives_the_pixels_of_the_cpu():
    policy = policy_of("full", augment_p=1.0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (600, 3, 32, 32), dtype=torch.uint8, generator=generator)
    draws = policy.draw(len(images), 1)
    mean = (0.5, 0.4, 0.3)
    here = BatchedEngine(policy, mean, torch.device("cpu")).apply(images, draws)
    there = BatchedEngine(policy, mean, torch.device(CUDA)).apply(images.to(CUDA), draws)
    difference = (there.cpu().int() - here.int()).abs()
    assert (difference == 0).float().mean() > 0.99
    assert (difference <= 1).float().mean() > 0.999  # a grey level on an edge turns hues


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_gives_the_images_of_the_cpu_and_never_waits_for_the_device(kind):
    mix = Mixing(AugmentationSettings(**{kind: 1.0}), 42, 10)
    images, labels = torch.randn(64, 3, 32, 32), torch.arange(64) % 10
    here = mix(images, labels, (1, 0, 0))
    images, labels = images.to(CUDA), labels.to(CUDA)
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = mix(images, labels, (1, 0, 0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, expected in zip(there, here, strict=True):
        torch.testing.assert_close(ours.cpu(), expected)


@pytest.mark.parametrize("engine", ["batched", "albumentations"])
def test_a_resumed_run_equals_an_uninterrupted_one(engine):
    settings = {"device": CUDA, "deterministic": True, "epochs": 3, "amp": True}
    settings |= {"augment": "full", "augment_engine": engine, "ema_decay": 0.9}
    try:
        whole, first = small_run(**settings), small_run(**settings)
        whole.fit()
        first.fit_one_epoch()
        second = small_run(**settings)
        second.learner.load(first.snapshot())
        second.fit()
    finally:
        torch.use_deterministic_algorithms(False)
    ends = [run.snapshot() for run in (second, whole)]
    for part in ([end.model.weights for end in ends], [end.state.averaged for end in ends]):
        ours, expected = part
        assert all(torch.equal(ours[name], value) for name, value in expected.items())


def test_out_of_memory_is_told_in_one_line(command):
    free = torch.cuda.mem_get_info()[0]
    torch.cuda.set_per_process_memory_fraction(0.2 * 2**30 / free)
    try:
        done = command("main", *QUICK, "--device", CUDA, "--limit_train", "0", "--batch_size", 1400)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert (done.code, done.err.count("\n")) == (1, 1), done.err
    assert done.err.startswith("error: out of memory; lower --batch_size")


@pytest.mark.parametrize(("trained_on", "used_on"), [(CUDA, "cpu"), ("cpu", CUDA)])
def test_a_snapshot_is_evaluated_on_the_other_kind_of_device(command, trained_on, used_on):
    run = command("main", *QUICK, "--device", trained_on, "--epochs", "3", "--lr", "0.02")
    assert run.code == 0, run.err
    last = "snapshots_complete/last.pth"
    again = command("evaluate", "--snapshot", last, "--device", used_on, "--plot_dir", "again")
    assert again.code == 0, again.err
    ours, expected = (
        float(re.search(r"loss (\d\.\d+)(?:;|$)", text, re.M)[1]) for text in (again.out, run.out)
    )
    assert ours == pytest.approx(expected, rel=0.02)
    flags = ("--device", used_on, "--epochs", "4", "--resume", "auto", "--resume_override")
    resumed = command("main", *QUICK, "--lr", "0.02", *flags)
    assert resumed.code == 0, resumed.err
    assert read_snapshot(Path(last)).epoch == 4


def test_an_ensemble_with_views_equals_the_cpus(trained):
    classifier = load_pretrained(f"{trained.weights},{trained.weights}", tta="shift")
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        here = classifier(pixels)
        there = classifier.to(CUDA)(pixels.to(CUDA))
    assert there.device.type == CUDA
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-3)
