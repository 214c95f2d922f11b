"""Hugging Face's Image GPT with our weights, as a user gets it: through an exported folder."""

from importlib import import_module
from pathlib import Path
from typing import Any

import igpt
from igpt.model.transformer import ImageGPT


def huggingface(model: ImageGPT, palette: igpt.Palette, folder: Path) -> Any:
    """`transformers`' ImageGPTForCausalImageModeling that computes what `model` does."""
    transformers: Any = import_module("transformers")

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    igpt.export_huggingface(model, palette, folder)
    return transformers.ImageGPTForCausalImageModeling.from_pretrained(folder)
