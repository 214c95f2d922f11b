"""What a report is made of: plain, frozen data.

Accuracies are fractions in [0, 1], losses nats per token, steps counted from 1, times aware of
their zone, images uint8 RGB. A value that was not measured is None; NaN means the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Subject = Literal["trained", "untrained", "raw pixels"]
Budget = int | Literal["all"]  # labels in all, not per class
Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Headline:
    """One of the few numbers that the report is about, as it shall be read."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class TrainingCurve:
    """Loss by step. `palette_entropy` is what a model that knows only how common each colour is
    would lose; ln(colors) is what one that knows nothing would."""

    training: tuple[tuple[int, float], ...]
    validation: tuple[tuple[int, float], ...] = ()
    colors: int = 512
    palette_entropy: float | None = None


@dataclass(frozen=True)
class ProbeRow:
    """One fit of a linear probe. Raw pixels have no layer; the last layer is ln_f."""

    subject: Subject
    layer: int | None
    l2: float
    budget: Budget
    seed: int
    validation_accuracy: float | None
    test_accuracy: float | None


@dataclass(frozen=True)
class ProbeSelection:
    """The layer and L2 chosen for a subject and label budget, and what they are worth."""

    subject: Subject
    budget: Budget
    layer: int | None
    l2: float
    test_accuracy_mean: float | None
    test_accuracy_std: float | None  # over the seeds, None for a single one
    seeds: int
    chosen: str  # how layer and L2 were chosen, as a sentence


@dataclass(frozen=True)
class ProbeTable:
    """All fits, and the choices made among them.

    `classes` of the probe's data draws the line of chance, None none. `data` names that data where
    it is not what was pretrained on.
    """

    rows: tuple[ProbeRow, ...]
    selections: tuple[ProbeSelection, ...] = ()
    classes: int | None = None
    data: str = ""


@dataclass(frozen=True, eq=False)
class ImageGrid:
    """Images uint8 [N, H, W, 3] with a name each (or none), and a sentence about them all."""

    images: Images
    names: tuple[str, ...] = ()
    caption: str = ""

    def __post_init__(self) -> None:
        _check_images(self.images, dimensions=4)
        if self.names and len(self.names) != len(self.images):
            raise ValueError(f"{len(self.names)} names for {len(self.images)} images")


@dataclass(frozen=True, eq=False)
class Completion:
    """An image uint8 [H, W, 3], the part that the model did not see, bool [H, W], and the images
    uint8 [k, H, W, 3] that it made of the rest."""

    original: Images
    hidden: NDArray[np.bool_]
    completions: Images
    name: str = ""

    def __post_init__(self) -> None:
        _check_images(self.original, dimensions=3)
        _check_images(self.completions, dimensions=4)
        if self.hidden.dtype != np.bool_ or self.hidden.shape != self.original.shape[:2]:
            raise ValueError(
                f"hidden is {self.hidden.dtype} {self.hidden.shape}; expected bool "
                f"{self.original.shape[:2]}"
            )


@dataclass(frozen=True)
class PublishedRow:
    """A published number and the one of ours that it may be held against."""

    what: str
    published: str
    ours: str
    source: str


@dataclass(frozen=True)
class Protocol:
    """How a number is made. Paragraphs are separated by empty lines."""

    title: str
    text: str


@dataclass(frozen=True)
class Attempt:
    """One attempt at the run, from its first step to its last."""

    number: int
    cluster: str
    outcome: str
    started: datetime | None = None
    ended: datetime | None = None
    first_step: int | None = None
    last_step: int | None = None
    detail: str = ""

    def __post_init__(self) -> None:
        for time in (self.started, self.ended):
            _check_time(time)


@dataclass(frozen=True)
class Report:
    """All that the page shows. `provenance` holds plain data: text, numbers, lists, mappings."""

    title: str
    made: datetime
    runs: tuple[str, ...] = ()
    summary: str = ""
    headlines: tuple[Headline, ...] = ()
    probes: ProbeTable | None = None
    training: TrainingCurve | None = None
    samples: ImageGrid | None = None
    completions: tuple[Completion, ...] = ()
    examples: ImageGrid | None = None
    published: tuple[PublishedRow, ...] = ()
    protocol: tuple[Protocol, ...] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()

    def __post_init__(self) -> None:
        _check_time(self.made)


def _check_images(images: Images, *, dimensions: int) -> None:
    if images.dtype != np.uint8 or images.ndim != dimensions or images.shape[-1] != 3:
        shape = "[N, H, W, 3]" if dimensions == 4 else "[H, W, 3]"
        raise ValueError(f"images are {images.dtype} {images.shape}; expected uint8 {shape}")


def _check_time(time: datetime | None) -> None:
    if time is not None and time.tzinfo is None:
        raise ValueError(f"the time {time} has no zone")
