"""What several jobs check of their inputs at submission: the data set, and whether it fits."""

from igpt.data import Index
from igpt.data.index import load_index
from igpt.errors import UserError
from igpt.jobs.references import open_reference
from igpt.storage import Store


def data_index(root: Store, reference: str) -> tuple[Index, str]:
    """The index of a settled data reference, and its digest."""
    return load_index(open_reference(root, reference))


def check_resolution(wanted: int | None, index: Index, data: str) -> None:
    """Raises UserError where the shards have another resolution than is asked for."""
    if wanted is not None and wanted != index.resolution:
        raise UserError(
            f"the model takes {wanted}x{wanted} images; {data} holds "
            f"{index.resolution}x{index.resolution}",
            expected=f"resolution {index.resolution}",
            mend="Choose other shards, or write these again with: igpt-jobs submit shard "
            f"resolution={wanted}",
        )


def check_palette(wanted: str | None, index: Index, data: str, by: str) -> None:
    """Raises UserError where the shards were quantized with another palette."""
    if wanted is not None and not index.palette_digest.startswith(wanted):
        raise UserError(
            f"{data} was quantized with palette {index.palette_digest[:12]}, "
            f"and {by} has {wanted[:12]}",
            expected="the same palette: tokens of another one are other colours",
            mend=f"Write the shards again with the palette of {by}",
        )


def check_rows(rows: int, workers: int, what: str) -> None:
    """Raises UserError where some worker would have no row of a batch."""
    if workers > rows:
        raise UserError(
            f"{workers} workers cannot share {what} of {rows} rows",
            expected=f"at most {rows} workers",
            mend="Lower `workers` in the cluster file, or raise batch.global",
        )
