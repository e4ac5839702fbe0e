import subprocess
import sys

import pytest
import torch
from support.small_runs import small_run

from cifarnet.core import device as device_module
from cifarnet.core.device import init_process
from cifarnet.core.errors import UserError
from cifarnet.core.launch import ALONE, Ranks
from cifarnet.settings.precision import PrecisionSettings


def test_the_seed_decides_the_initial_draws():
    draws = []
    for seed in (1, 1, 2):
        init_process(PrecisionSettings(device="cpu"), seed)
        draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


TINY_PRODUCTS = """
import torch
from cifarnet.core.device import init_process
from cifarnet.settings.precision import PrecisionSettings
assert (torch.full((10,), 1e-30) * 1e-10).all()  # without init_process they are not 0
init_process(PrecisionSettings(device="cpu"))
print((torch.full((2**22,), 1e-30) * 1e-10).count_nonzero().item())
"""


def test_numbers_below_1e_38_are_zero_in_all_threads():
    """They make Muon's step 80 times slower."""
    command = [sys.executable, "-c", TINY_PRODUCTS]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "0\n"


def test_deterministic_algorithms_are_those_of_the_flag():
    try:
        for deterministic in (True, False):
            init_process(PrecisionSettings(device="cpu", deterministic=deterministic))
            assert torch.are_deterministic_algorithms_enabled() == deterministic
            assert torch.backends.cudnn.benchmark != deterministic
    finally:
        init_process(PrecisionSettings(device="cpu"))


def test_precision_on_the_cpu():
    assert init_process(PrecisionSettings(device="cpu")).computed_on == "cpu in float32"
    for flags, message in (
        ({"amp": True, "amp_dtype": "fp16"}, "fp16 needs CUDA"),
        ({"sync_bn": True}, "--sync_bn needs CUDA"),
    ):
        with pytest.raises(UserError, match=message):
            init_process(PrecisionSettings(device="cpu", **flags))


@pytest.mark.parametrize(
    ("native", "amp", "name", "precision", "note"),
    [
        (True, True, "auto", "bfloat16", ""),
        (True, True, "bf16", "bfloat16", ""),
        (False, True, "auto", "float32", "float32 instead of --amp"),
        (False, True, "bf16", "bfloat16", "warning: bf16 takes many times longer"),
        (False, False, "bf16", "float32", ""),
    ],
)
def test_a_cpu_that_only_emulates_bf16_stays_in_float32_unless_told(
    monkeypatch, native, amp, name, precision, note
):
    monkeypatch.setattr(device_module, "has_bf16_instructions", lambda: native)
    runtime = init_process(PrecisionSettings(device="cpu", amp=amp, amp_dtype=name))
    assert runtime.computed_on == f"cpu in {precision}"
    assert runtime.note.startswith(note) == bool(note or not runtime.note)


@pytest.fixture
def two_cuda_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", str)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90a", "compute_120"])
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda name: None)


@pytest.mark.parametrize(("native", "auto"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_device_that_only_emulates_bf16_gets_fp16(monkeypatch, two_cuda_devices, native, auto):
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: native or including_emulation,
    )
    for name, dtype in (("auto", auto), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        assert init_process(PrecisionSettings(amp=True, amp_dtype=name)).amp_dtype is dtype


def test_old_gpus_have_no_tf32(monkeypatch, two_cuda_devices):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert init_process(PrecisionSettings()).precision == "float32"


def test_each_rank_has_a_cuda_device_of_its_own(two_cuda_devices):
    for ranks, device in ((Ranks(1, 2, 1, 2), "cuda:1"), (ALONE, "cuda")):
        runtime = init_process(PrecisionSettings(), ranks=ranks)
        assert (str(runtime.device), runtime.device_name) == (device, device)
        assert runtime.computed_on == "cuda in float32, products in TF32"
    with pytest.raises(UserError, match=r"3 processes on a machine with 2 CUDA devices: give .*=2"):
        init_process(PrecisionSettings(device="cuda"), ranks=Ranks(2, 3, 2, 3))


def test_a_cuda_device_that_torch_was_not_built_for_is_not_used(monkeypatch, two_cuda_devices):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    assert init_process(PrecisionSettings()).device.type != "cuda"
    with pytest.raises(UserError, match=r"--device cuda is not available here; use .*cpu"):
        init_process(PrecisionSettings(device="cuda"))


@pytest.mark.parametrize(
    ("limit", "ranks", "threads"),
    [
        ("1", ALONE, 1), ("3", ALONE, 3), ("64", ALONE, 8), ("2,4", ALONE, 2), ("", ALONE, 8),
        ("0", ALONE, 8), ("many", ALONE, 8),
        ("1", Ranks(0, 2, 0, 2), 4),  # torchrun's own default
        ("2", Ranks(0, 2, 0, 2), 2),
    ],
)  # fmt: skip
def test_no_more_threads_than_omp_num_threads(monkeypatch, limit, ranks, threads):
    monkeypatch.setattr(device_module, "available_cores", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setenv("OMP_NUM_THREADS", limit)
    assert init_process(PrecisionSettings(device="cpu"), ranks=ranks).threads == threads


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_autocast_covers_training_and_evaluation(dtype):
    run, seen = small_run(epochs=1, ema_decay=0.9, autocast_to=dtype), set()
    for name, network in run.learner.networks().items():
        network.c1.register_forward_hook(
            lambda block, _, output, name=name: seen.add((name, block.training, output.dtype))
        )
    run.fit()
    computed = dtype or torch.float32
    assert seen == {("raw", True, computed), ("raw", False, computed), ("ema", False, computed)}
