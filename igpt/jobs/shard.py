"""The job `shard`: images in, quantized WebDataset shards out."""

from collections import Counter
from typing import Any, Literal

from pydantic import Field

from igpt.data import (
    Palette,
    Source,
    check_claim,
    check_source,
    made_by_fit,
    open_source,
    shard_options,
)
from igpt.data.preprocessing import Filter
from igpt.data.shard_format import geometry
from igpt.data.sources import SPLITS
from igpt.errors import UserError
from igpt.jobs.base import Job, JobConfig, Preparation, Prepared
from igpt.jobs.estimate import Need, readable_bytes
from igpt.jobs.references import open_reference, settle, settle_path
from igpt.storage import check_writable


class ShardConfig(JobConfig):
    """Configuration of `shard`."""

    job: Literal["shard"] = "shard"
    source: str = Field(description="folder:PATH, or tar:PATH or zip:PATH of an image folder")
    output: str = Field(description="where the shards go; data/NAME is inside the store")
    resolution: int = Field(default=32, ge=1, le=1024, description="side in pixels")
    palette: str = Field(default="fit", description="fit, or a .npy or preprocessor_config.json")
    colors: int = Field(default=512, ge=2, le=65536, description="colours to fit")
    palette_images: int = Field(default=2000, ge=1, description="images the palette is fitted on")
    samples_per_shard: int = Field(default=10_000, ge=1)
    crops: int = Field(default=1, ge=1, description="random crops of each training image")
    augment: bool = Field(default=True, description="random crops for train; false: the centre")
    resampling: Filter = Field(default="bicubic", description="Pillow's filter, antialiased")
    validation: float = Field(default=0.1, ge=0, lt=1, description="held out of train if none is")
    test: float = Field(default=0.0, ge=0, lt=1, description="held out of train if none is")
    bad_images: int = Field(default=0, ge=0, description="unreadable images to bear before failing")
    seed: int = Field(default=0, ge=0, lt=2**32)

    def options(self) -> dict[str, Any]:
        """What decides the bytes of the data set, under the names of igpt.data."""
        return {
            "resolution": self.resolution,
            "samples_per_shard": self.samples_per_shard,
            "crops": self.crops,
            "seed": self.seed,
            "validation_fraction": self.validation,
            "test_fraction": self.test,
            "augment": self.augment,
            "resampling": self.resampling,
        }


def prepare(config: ShardConfig, preparation: Preparation) -> Prepared:
    """Opens the source and decodes an even sample of it; checks that the output can be written."""
    scheme, colon, path = config.source.partition(":")
    if not colon:
        raise UserError(
            f"source {config.source!r} names no kind",
            expected="folder:PATH, tar:PATH or zip:PATH",
            mend=f"Try source=folder:{config.source}",
        )
    folder = preparation.folder
    source_uri = f"{scheme}:{path if '://' in path else settle_path(path, folder)}"
    source = open_source(source_uri)
    if config.bad_images == 0:
        check_source(source)
    inputs, facts = {"source": source.digest}, _facts(source, config)
    palette, made = config.palette, made_by_fit(config.colors, config.palette_images)
    if palette != "fit":
        named = palette.startswith((".", "/", "~")) or "://" in palette
        palette = settle(palette if named else f"./{palette}", folder)
        given = Palette.load(palette)
        inputs["palette"], made = given.digest, given.made
        facts["palette"] = f"{given.colors} colours, {given.digest[:12]}"
    output = settle(config.output, folder)
    if output.split("/")[0] in ("runs", "index", "features"):
        raise UserError(f"output {output} is where runs are kept", expected="data/NAME")
    place = open_reference(preparation.root, output)
    options = shard_options(**config.options())
    check_claim(place, options, source.digest, made=made, palette=inputs.get("palette"))
    if not preparation.dry_run:
        check_writable(place)
    # How many of the images are for training shows when they are shared out; all is the most.
    samples = len(source) * config.crops
    size = samples * geometry(config.resolution**2)[0]
    return Prepared(
        config.model_copy(update={"source": source_uri, "output": output, "palette": palette}),
        inputs=inputs,
        facts=facts | {"output": f"{output}, {config.resolution}x{config.resolution}"},
        need=Need(
            facts={"shards": f"at most {readable_bytes(size)}: {samples:,} samples"},
            numbers={"images": len(source), "samples": samples, "shard_bytes": size},
            output_bytes=size,
            output=output,
        ),
    )


def _facts(source: Source, config: ShardConfig) -> dict[str, str]:
    """How many images, and in which splits: a layout that was meant otherwise shows here."""
    found = Counter(source.record(number).split for number in range(len(source)))
    splits = [f"{name} {found[name]:,}" for name in SPLITS if found[name]]
    held_out = {"validation": config.validation, "test": config.test}
    splits += [
        f"{fraction:.3g} of train held out for {name}"
        for name, fraction in held_out.items()
        if fraction and found["train"] and not found[name]
    ]
    return {
        "images": f"{len(source):,} in {len(source.classes)} classes",
        "splits": ", ".join(splits),
    }


JOB = Job(
    "shard", "images into quantized shards", ShardConfig, prepare, "igpt.jobs.entries.shard:run"
)
