"""Settings of the network: with the number of classes, all that is needed to build it."""

from dataclasses import dataclass

from cifarnet.core.errors import UserError
from cifarnet.settings.flags import Group, flag, numbers_in

# How depth, width and image side grow with each step of --compound_scale, so that the work about
# doubles: the alpha, beta and gamma of EfficientNet (Tan & Le 2019, arXiv 1905.11946).
COMPOUND = (1.2, 1.1, 1.15)
CHANGES = {  # the flags that change a network, by --network
    "cifarnet": ("attention", "attention_at", "width", "depth", "compound_scale"),
    "lite": ("attention", "width"),
    "residual": (),
}


@dataclass(frozen=True)
class NetworkSettings(Group):
    """The architecture."""

    # fmt: off
    network: str = flag("cifarnet", choices=tuple(CHANGES), help=
        "lite is more accurate than cifarnet, trains faster, and is no larger. residual is a "
        "larger network, meant as a --teacher.")
    attention: str = flag("none", choices=("none", "eca", "se", "simam", "cbam", "spatial"), help=
        "Add attention to the separable blocks of cifarnet, or to all residual blocks of lite. "
        "eca and se weight channels, spatial weights positions, cbam both. simam weights each "
        "value and has no parameters.")
    attention_at: str = flag("2,3,4", within="[2, 4]", numbers=(1, 2, 3), metavar="N,N,N", help=
        "Blocks of cifarnet that get the attention, with their repeats.")
    width: float = flag(1.0, within="[0.1, 8]", help=
        "Multiply the channels of cifarnet or lite, rounded to multiples of 8.")
    depth: float = flag(1.0, within="[1, 8]", help=
        "Multiply the number of separable blocks of cifarnet (three), rounded up: 1.2 repeats the "
        "last block, 2 repeats each. A repeat adds its input to its output.")
    compound_scale: float = flag(0.0, within="[0, 10]", help=
        "Grow cifarnet by X steps of EfficientNet's rule. Each multiplies the depth by 1.2, the "
        "width by 1.1 and the side of the images by 1.15, and about doubles the work. The images "
        "are enlarged on the device, in evaluation too.")
    dropout: str = flag("0.05,0.1,0.1,0.02",
        "Share of the channels that dropout sets to zero: one rate, or one for each of the four "
        "blocks. Other networks use the last one, before their head.",
        within="[0, 1)", numbers=(1, 4), metavar="P|P,P,P,P")
    # fmt: on

    def check(self) -> None:
        blocks = numbers_in(self.attention_at)
        if any(block % 1 for block in blocks) or len(set(blocks)) < len(blocks):
            raise UserError(
                f"--attention_at {self.attention_at} does not name blocks 2, 3 and 4, each once; "
                f"write it like 2,4"
            )
        for name in CHANGES["cifarnet"]:
            changed = getattr(self, name) != getattr(NetworkSettings, name)
            if changed and name not in CHANGES[self.network]:
                raise UserError(
                    f"--{name} has no effect on --network {self.network}; remove one of them"
                )
        if self.compound_scale and (self.width, self.depth) != (1, 1):
            raise UserError(
                "--compound_scale sets width and depth itself; remove it, or --width and --depth"
            )

    @property
    def attended(self) -> tuple[int, ...]:
        """The numbers of the blocks of cifarnet with attention."""
        if self.attention == "none":
            return ()
        return tuple(map(int, numbers_in(self.attention_at)))

    @property
    def scaling(self) -> tuple[float, float, float]:
        """How many times the published depth, width and image side the network has."""
        if self.compound_scale:
            depth, width, side = (factor**self.compound_scale for factor in COMPOUND)
            return depth, width, side
        return self.depth, self.width, 1.0

    @property
    def dropouts(self) -> tuple[float, float, float, float]:
        """The dropout rates of the four blocks."""
        rates = numbers_in(self.dropout)
        return rates * 4 if len(rates) == 1 else rates
