import dataclasses

import pytest
import torch

from cifarnet.core import device as device_module
from cifarnet.core.device import available_cores, start
from cifarnet.core.errors import UserError
from cifarnet.core.settings import Settings


def test_the_seed_decides_the_initial_draws():
    draws = []
    for seed in (1, 1, 2):
        start(Settings(device="cpu", seed=seed))
        draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_precision():
    assert start(Settings(device="cpu")).amp_dtype is None
    assert start(Settings(device="cpu", amp=True)).amp_dtype is torch.bfloat16
    with pytest.raises(UserError, match="fp16 needs CUDA"):
        start(Settings(device="cpu", amp=True, amp_dtype="fp16"))


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_device_that_only_emulates_bf16_gets_fp16(monkeypatch, native, dtype):
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: native or including_emulation,
    )
    cuda = torch.device("cuda")
    assert device_module._pick_amp_dtype(Settings(amp=True), cuda) is dtype
    for name, wanted in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        settings = Settings(amp=True, amp_dtype=name)
        assert device_module._pick_amp_dtype(settings, cuda) is wanted


@pytest.mark.parametrize(
    ("device", "dtype", "words"),
    [
        ("cpu", None, "cpu in float32"),
        ("cuda:1", None, "cuda in float32, products in TF32"),
        ("cuda:0", torch.bfloat16, "cuda in bfloat16"),
    ],
)
def test_device_and_precision_in_words(device, dtype, words):
    here = start(Settings(device="cpu"))
    there = dataclasses.replace(here, device=torch.device(device), amp_dtype=dtype)
    assert there.computed_on == words


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--device cuda is not available here; use .*cpu"):
        start(Settings(device="cuda"))


def test_cores_respect_affinity_and_quota(monkeypatch, tmp_path):
    monkeypatch.setattr(
        device_module.os, "sched_getaffinity", lambda _: set(range(8)), raising=False
    )
    monkeypatch.setattr(device_module, "CPU_QUOTA", tmp_path / "cpu.max")
    assert available_cores() == 8
    for quota, cores in (
        ("max 100000", 8),
        ("250000 100000", 2),
        ("10000 100000", 1),
        ("nonsense", 8),
    ):
        (tmp_path / "cpu.max").write_text(quota)
        assert available_cores() == cores
