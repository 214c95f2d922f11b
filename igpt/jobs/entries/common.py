"""What the entries share: the device of a rank, and the data set it was submitted with."""

import torch

from igpt.data import Dataset, open_dataset
from igpt.errors import UserError
from igpt.jobs.context import Context
from igpt.jobs.references import open_reference


def pick_device(wanted: str, local_rank: int) -> torch.device:
    """`cuda` where there is one and `auto` or it was asked for; raises UserError where it lacks."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise UserError("device cuda was asked for, and this machine shows none", expected="auto")
    if wanted == "cpu" or not available:
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def dataset_of(context: Context, reference: str, digest: str) -> Dataset:
    """The data set of a settled reference. Raises UserError where it is not the submitted one."""
    data = open_dataset(open_reference(context.root, reference))
    if data.digest != digest:
        raise UserError(
            f"{reference} is not what it was when the run was submitted",
            expected=f"index digest {digest[:12]}, found {data.digest[:12]}",
            mend="Submit again to use the data as it is now",
        )
    return data
