"""Settings of precision and speed: how and where the run computes."""

from dataclasses import dataclass

from cifarnet.settings.flags import Group, flag


@dataclass(frozen=True)
class PrecisionSettings(Group):
    """Device, precision and memory."""

    # fmt: off
    amp: bool = flag(False,
        "Mixed precision: autocast to --amp_dtype.")
    amp_dtype: str = flag("auto", choices=("auto", "bf16", "fp16"), help=
        "auto: bf16 if the device has instructions for it, else fp16 on CUDA and float32 on the "
        "CPU. bf16: always, even where it is many times slower. fp16: scales the loss; needs CUDA.")
    sync_bn: bool = flag(False,
        "Under torchrun: compute batch normalisation statistics over all devices together. "
        "Needs CUDA.")
    compile: bool = flag(False,
        "Use torch.compile for the training step. It takes up to a minute at the start. On CUDA it "
        "uses CUDA graphs, and needs compute capability 7.0 or above and gcc or clang; on the CPU "
        "it needs g++ and is slower. Both need the header files of Python.")
    device: str = flag("auto", choices=("auto", "cpu", "cuda", "mps"), help=
        "auto: CUDA if there is one, else MPS, else the CPU.")
    keep_memory: bool = flag(True, on_resume="any", help=
        "Keep freed activations in the process (on the CPU, with glibc). This is several times "
        "faster, but the process holds more memory.")
    deterministic: bool = flag(False,
        "Use only deterministic algorithms: the same results every time on one machine, but "
        "slower on CUDA.")
    # fmt: on
