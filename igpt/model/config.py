"""What a network is, without torch: its shape, the published presets and exact parameter counts.

Sizes are those of Chen et al., "Generative Pretraining from Pixels" (ICML 2020), section 3.3, with
the head counts of the released checkpoints: iGPT-M has 8 heads of 128, not 16 of 64.
"""

from typing import Self

from pydantic import Field, model_validator

from igpt.config import Strict, nearest

#: layers, width, heads. XL's head count was never published; 48 of 64 is this project's choice.
PRESETS: dict[str, tuple[int, int, int]] = {
    "igpt-s": (24, 512, 8),
    "igpt-m": (36, 1024, 8),
    "igpt-l": (48, 1536, 16),
    "igpt-xl": (60, 3072, 48),
}


class ModelConfig(Strict):
    """The shape of one Image GPT."""

    layers: int = Field(gt=0, description="transformer blocks")
    width: int = Field(gt=0, description="size of the residual stream")
    heads: int = Field(gt=0, description="attention heads; must divide the width")
    resolution: int = Field(
        gt=0, description="side of the image in pixels; positions = side squared"
    )
    colors: int = Field(default=512, gt=1, le=65536, description="palette colours = vocabulary")

    @classmethod
    def preset(cls, name: str, *, resolution: int, colors: int = 512) -> Self:
        """The published shape `name` ("igpt-s", "igpt-m", "igpt-l", "igpt-xl") at a resolution.

        Raises ValueError, with the nearest right name, for a name that is not a preset.
        """
        if name not in PRESETS:
            raise ValueError(
                f"{name!r} is not a preset{nearest(name, PRESETS)}; one of {', '.join(PRESETS)}"
            )
        layers, width, heads = PRESETS[name]
        return cls(layers=layers, width=width, heads=heads, resolution=resolution, colors=colors)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    @property
    def positions(self) -> int:
        """Tokens of one image: resolution squared."""
        return self.resolution**2

    def parameters(self) -> int:
        """Trainable numbers of the network: L(12d^2 + 2d) + d + nd + 2Vd + d."""
        layers, d = self.layers, self.width
        blocks = layers * (12 * d * d + 2 * d)
        return blocks + d + self.positions * d + 2 * self.colors * d + d

    def feature_bytes(self, samples: int) -> int:
        """Bytes of all layers' float16 features of `samples` images: 2 (L+1) N d."""
        return 2 * (self.layers + 1) * samples * self.width

    def training_flops_per_token(self) -> int:
        """Floating point operations to train on one token: 6N + 12 L d T.

        The count of nanoGPT and of the PaLM paper (appendix B): N without the position embeddings,
        attention not halved for causality.
        """
        counted = self.parameters() - self.positions * self.width
        return 6 * counted + 12 * self.layers * self.width * self.positions
