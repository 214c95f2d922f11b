"""Image data as tokens: palette, image sources, shard writer, data order, loader. Needs no torch.

source = open_source("folder:/data/cats")
palette = palette_for(source, "s3://bucket/cats-32", resolution=32)
index = write_shards(source, "s3://bucket/cats-32", resolution=32, palette=palette)
data = open_dataset("s3://bucket/cats-32")
step, tokens, labels = next(iter(Loader(data, split="train", global_batch=128)))
"""

from igpt.data.claims import check_claim, shard_options
from igpt.data.dataset import Dataset, open_dataset
from igpt.data.images import BadImage
from igpt.data.index import Index, ShardOptions
from igpt.data.loader import Loader, row_digest
from igpt.data.opening import check_source, open_source
from igpt.data.order import Order
from igpt.data.palette import Palette
from igpt.data.palette_fit import made_by_fit, palette_for
from igpt.data.shards import write_shards
from igpt.data.sources import ArraySource, Record, Source

__all__ = [
    "ArraySource",
    "BadImage",
    "Dataset",
    "Index",
    "Loader",
    "Order",
    "Palette",
    "Record",
    "ShardOptions",
    "Source",
    "check_claim",
    "check_source",
    "made_by_fit",
    "open_dataset",
    "open_source",
    "palette_for",
    "row_digest",
    "shard_options",
    "write_shards",
]
