"""Tensors into a local safetensors file, with a full disk said for what it is."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from igpt.storage.files import explained


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes the file. Raises Unreachable where its disk is full, UserError for another mistake.

    safetensors tells what the system refused in the text of an error of its own alone.
    """
    with explained("written", path):
        try:
            save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
