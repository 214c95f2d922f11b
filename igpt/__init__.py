"""igpt-jobs: the whole Image GPT study (Chen et al., ICML 2020) on a cluster.

    palette = igpt.Palette.fit(pixels)
    model = igpt.ImageGPT(igpt.ModelConfig.preset("igpt-s", resolution=32))

`import igpt` alone loads neither torch nor Ray: every name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from igpt import data as data
    from igpt import evaluation as evaluation
    from igpt.data import Palette as Palette
    from igpt.model.config import ModelConfig as ModelConfig
    from igpt.model.generation import generate as generate
    from igpt.model.interchange import export_huggingface as export_huggingface
    from igpt.model.interchange import load_model as load_model
    from igpt.model.transformer import ImageGPT as ImageGPT

_HOMES = {
    "ImageGPT": "igpt.model.transformer",
    "ModelConfig": "igpt.model.config",
    "Palette": "igpt.data",
    "export_huggingface": "igpt.model.interchange",
    "generate": "igpt.model.generation",
    "load_model": "igpt.model.interchange",
}
_ROOMS = ("data", "evaluation")

__all__ = [*_HOMES, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"igpt.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'igpt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
