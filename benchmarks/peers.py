"""Hugging Face's Image GPT with our weights, as a user gets it: through an exported folder."""

from pathlib import Path
from typing import Any

import igpt
from igpt.model.transformer import ImageGPT


def huggingface(model: ImageGPT, palette: igpt.Palette, folder: Path) -> Any:
    """`transformers`' ImageGPTForCausalImageModeling that computes what `model` does."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    igpt.export_huggingface(model, palette, folder)
    return transformers.ImageGPTForCausalImageModeling.from_pretrained(folder)
