"""Carries out `shard`: fits or loads the palette, then writes this rank's shards."""

from functools import partial
from typing import Any

from igpt.data import Palette, open_source, palette_for, write_shards
from igpt.errors import UserError
from igpt.jobs.context import Context
from igpt.jobs.references import open_reference
from igpt.jobs.shard import ShardConfig


def run(config: ShardConfig, context: Context) -> dict[str, Any]:
    """Writes the data set; the result names it and what is in it."""
    source = open_source(config.source)
    if source.digest != context.run.spec().inputs["source"]:
        raise UserError(
            f"{config.source} is not what it was when the run was submitted",
            mend="Submit again to use the images as they are now",
        )
    output = open_reference(context.root, config.output)
    context.keeps_pieces(output)

    def progress(done: int, total: int, unit: str = "images") -> None:
        context.check_stop()
        if context.rank == 0:
            context.sink.progress(done=done, total=total, unit=unit)

    if config.palette == "fit":
        palette = palette_for(
            source,
            output,
            resolution=config.resolution,
            colors=config.colors,
            seed=config.seed,
            images=config.palette_images,
            resampling=config.resampling,
            rank=context.rank,
            progress=partial(progress, unit="images for the palette"),
        )
    else:
        palette = Palette.load(config.palette)
        if palette.digest != context.run.spec().inputs.get("palette", palette.digest):
            raise UserError(
                f"{config.palette} is not what it was when the run was submitted",
                mend="Submit again to use the palette as it is now",
            )

    index = write_shards(
        source,
        output,
        palette=palette,
        **config.options(),
        bad_images=config.bad_images,
        rank=context.rank,
        world_size=context.world_size,
        progress=progress,
    )
    return {
        "data": config.output,
        "uri": output.uri,
        "palette": index.palette_digest,
        "colors": index.colors,
        "samples": {name: split.samples for name, split in index.splits.items()},
        "bad_images": [image.name for image in index.bad_images],
    }
