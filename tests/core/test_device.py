import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cifarnet.core import device as device_module
from cifarnet.core.device import available_cores, init_process
from cifarnet.core.errors import UserError
from cifarnet.core.launch import ALONE, Ranks
from cifarnet.settings import Settings
from cifarnet.settings.precision import PrecisionSettings

ROOT = Path(__file__).parents[2]


def test_the_seed_decides_the_initial_draws():
    draws = []
    for seed in (1, 1, 2):
        init_process(PrecisionSettings(device="cpu", seed=seed))
        draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_precision():
    assert init_process(PrecisionSettings(device="cpu")).amp_dtype is None
    assert init_process(PrecisionSettings(device="cpu", amp=True)).amp_dtype is torch.bfloat16
    with pytest.raises(UserError, match="fp16 needs CUDA"):
        init_process(PrecisionSettings(device="cpu", amp=True, amp_dtype="fp16"))


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_device_that_only_emulates_bf16_gets_fp16(monkeypatch, native, dtype):
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: native or including_emulation,
    )
    cuda = torch.device("cuda")
    assert device_module._pick_amp_dtype(Settings.from_flags(amp=True), cuda) is dtype
    for name, wanted in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        settings = Settings.from_flags(amp=True, amp_dtype=name)
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
    here = init_process(PrecisionSettings(device="cpu"))
    there = dataclasses.replace(here, device=torch.device(device), amp_dtype=dtype)
    assert there.computed_on == words


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--device cuda is not available here; use .*cpu"):
        init_process(PrecisionSettings(device="cuda"))


def test_cores_respect_affinity_and_quota(monkeypatch, tmp_path):
    monkeypatch.setattr(
        device_module.os, "sched_getaffinity", lambda _: set(range(8)), raising=False
    )
    monkeypatch.setattr(device_module, "CGROUP", tmp_path)
    assert available_cores() == 8
    for quota, cores in (
        ("max 100000", 8),
        ("250000 100000", 2),
        ("10000 100000", 1),
        ("nonsense", 8),
    ):
        (tmp_path / "cpu.max").write_text(quota)
        assert available_cores() == cores
    (tmp_path / "cpu").mkdir()  # cgroups of version 1
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("50000\n")
    for quota, cores in (("-1", 8), ("150000", 3), ("100", 1)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert available_cores() == cores


@pytest.mark.parametrize(
    ("asked", "ranks", "threads"),
    [
        ("1", ALONE, 1), ("3", ALONE, 3), ("64", ALONE, 8), ("2,4", ALONE, 2), ("", ALONE, 8),
        ("0", ALONE, 8), ("many", ALONE, 8),
        ("1", Ranks(0, 2, 0, 2), 4),  # torchrun's own default
        ("2", Ranks(0, 2, 0, 2), 2),
    ],
)  # fmt: skip
def test_no_more_threads_than_omp_num_threads(monkeypatch, asked, ranks, threads):
    monkeypatch.setattr(device_module, "available_cores", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert init_process(PrecisionSettings(device="cpu"), ranks=ranks).threads == threads


def test_bf16_without_instructions_is_noticed(monkeypatch):
    def emulates(amp: bool = True) -> bool:
        return init_process(PrecisionSettings(device="cpu", amp=amp)).emulates_bf16

    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    monkeypatch.setattr(device_module.platform, "machine", lambda: "x86_64")
    for there in (True, False):
        for name in names:
            monkeypatch.setattr(torch.cpu, name, lambda there=there: there)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
        assert (emulates(), emulates(amp=False)) == (not there, False)
    monkeypatch.setattr(torch.cpu, names[0], lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert emulates()


def test_bf16_that_the_environment_forbids_is_noticed():
    code = "from cifarnet.core.device import has_bf16_instructions as has; print(has())"
    forbidden = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=forbidden, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
