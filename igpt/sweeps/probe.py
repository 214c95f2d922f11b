"""The sweep `probe`: which layer's features tell the classes apart, with how many labels.

Subjects: the trained network, the same network untrained, raw pixels. A trial of Ray Tune is one
layer of one subject, with every L2 strength, label budget and seed inside it.
"""

from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, field_validator

from igpt.config import Strict
from igpt.data import Dataset, Index, open_dataset
from igpt.errors import UserError
from igpt.jobs.base import EvaluationConfig, Job, Preparation, Prepared
from igpt.jobs.estimate import Need, counted
from igpt.jobs.features import SPLITS, features_need
from igpt.jobs.inputs import settle_evaluation
from igpt.jobs.references import open_reference
from igpt.model.config import ModelConfig

Subject = Literal["trained", "untrained", "raw pixels"]
Budget = int | Literal["all"]


#: Said of train where it is not as the paper's probe has it.
_RANDOM_CROPS = (
    "holds random crops; the paper's probe augments nothing (write it with augment=false)"
)


class RayOptions(Strict):
    """How Ray runs the trials."""

    cpus: int | None = Field(default=None, ge=1, description="trials at once; null: all cores")
    dashboard: bool = Field(default=False, description="serve the Ray dashboard during the sweep")


class ProbeConfig(EvaluationConfig):
    """Configuration of `probe`."""

    job: Literal["probe"] = "probe"
    data: str | None = Field(default=None, description="shards; null: those of the model's run")
    subjects: list[Subject] = Field(default=["trained", "untrained", "raw pixels"], min_length=1)
    layers: Literal["all"] | list[int] = Field(default="all", description="last = after ln_f")
    l2: list[float] = Field(default=[1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5], min_length=1)
    budgets: list[Budget] = Field(default=[40, 250, 4000, "all"], min_length=1)
    seeds: list[int] = Field(default=[1, 2, 3, 4, 5], min_length=1)
    batch: int = Field(default=128, ge=1, description="images at once for the features")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    ray: RayOptions = Field(default_factory=RayOptions)

    @field_validator("l2")
    @classmethod
    def _positive(cls, value: list[float]) -> list[float]:
        if any(strength <= 0 for strength in value):
            raise ValueError("L2 strengths are greater than 0")
        return sorted(set(value), reverse=True)

    @field_validator("layers", "seeds")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if isinstance(value, list) and (not value or min(value) < 0):
            raise ValueError("a list of numbers from 0 on, at least one")
        return value

    @field_validator("seeds")
    @classmethod
    def _of_32_bits(cls, value: list[int]) -> list[int]:
        if max(value) >= 2**32:  # numpy's RandomState takes no more
            raise ValueError("a seed is less than 4294967296")
        return value

    @field_validator("layers", "seeds", "budgets", "subjects")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        if isinstance(value, list) and len(set(value)) < len(value):
            raise ValueError("each may be named once")
        return value


def prepare(config: ProbeConfig, preparation: Preparation) -> Prepared:
    """Settles the model and checks that the data can answer the question."""
    settled = settle_evaluation(preparation.root, config.model, config.data, preparation.folder)
    data, index = settled.data, settled.index
    for split in SPLITS:
        if split not in index.splits or index.splits[split].samples == 0:
            raise UserError(
                f"{data} has no {split} split",
                expected="train, validation and test",
                mend="The probe chooses on validation and reports on test",
            )
    _check_labels(open_dataset(open_reference(preparation.root, data)), data)
    budgets = [size for size in config.budgets if size != "all"]
    if budgets and max(budgets) > index.splits["train"].samples:
        raise UserError(
            f"a budget of {max(budgets):,} labels is larger than the train split of {data}, "
            f"{index.splits['train'].samples:,}",
            mend="budgets=[40,250,all]",
        )
    if budgets and index.crops > 1:
        raise UserError(
            f"{data} holds {index.crops} crops of each training image, so its labels cannot be "
            f"counted",
            expected="one sample of each image, for budgets of labels",
            mend="Write the data with crops=1 and augment=false for probes; budgets=[all] needs no "
            "count",
        )
    if budgets and min(budgets) < len(index.classes):
        raise UserError(
            f"a budget of {min(budgets)} labels cannot hold {len(index.classes)} classes"
        )
    if config.layers != "all":
        highest = settled.shape.layers  # one for each block's input, and ln_f
        if max(config.layers) > highest:
            raise UserError(
                f"there is no layer {max(config.layers)} in {settled.model}",
                expected=f"0 to {highest}",
            )
    facts = settled.facts | {
        "data": data,
        **({"train": _RANDOM_CROPS} if _has_random_crops(index) else {}),
        "fits": f"{len(config.l2)} L2 x {_budgets(config)} x "
        f"{counted(len(config.seeds), 'seed')} a layer",
    }
    return Prepared(
        config.model_copy(update={"model": settled.model, "data": data}),
        settled.inputs,
        facts,
        _need(config, settled.shape, index),
    )


def _check_labels(dataset: Dataset, data: str) -> None:
    """Raises UserError where the labels of the splits are none to learn from.

    They are read from the table of samples: one object, however many shards there are.
    """
    classes = dataset.index.classes
    if len(classes) < 2:
        raise UserError(
            f"{data} has {'one class' if classes else 'no classes'}",
            expected="a labelled data set of at least two classes",
            mend="Name another: data=data/NAME",
        )
    for split in SPLITS:
        labels = dataset.labels(split)
        if unlabelled := int((labels < 0).sum()):
            raise UserError(
                f"{unlabelled:,} of the {len(labels):,} {split} images of {data} have no label",
                expected="a label for each image of train, validation and test",
                mend="Write the data again without them, for probes",
            )
    there = set(dataset.labels("train").tolist())
    missing = [name for label, name in enumerate(classes) if label not in there]
    if missing:
        more = f" (nor of {len(missing) - 1} more)" if missing[1:] else ""
        raise UserError(
            f"the train split of {data} has no image of class {missing[0]!r}{more}",
            expected=f"images of each of its {len(classes)} classes",
            mend="Write the data again with some of that class in train, or without the class",
        )


def _need(config: ProbeConfig, shape: ModelConfig, index: Index) -> Need:
    """The features of the networks, and the fits of every layer of every subject."""
    networks = sum(subject != "raw pixels" for subject in config.subjects)
    layers = shape.layers + 1 if config.layers == "all" else len(config.layers)
    trials = networks * layers + (len(config.subjects) - networks)
    subsets = sum(1 if size == "all" else len(config.seeds) for size in config.budgets)
    # All labels are fitted once more with those of the validation split, at the chosen strength.
    fits = trials * (subsets * len(config.l2) + ("all" in config.budgets))
    parts = [f"{counted(layers, 'layer')} of {counted(networks, 'network')}"] if networks else []
    parts += ["raw pixels"] if networks < len(config.subjects) else []
    facts = {"trials": f"{trials}, {' and '.join(parts)}: {fits:,} fits"}
    numbers = {"trials": trials, "layers": layers, "budgets": list(config.budgets), "fits": fits}
    if not networks:
        return Need(facts, numbers)
    samples = sum(index.splits[split].samples for split in SPLITS)
    features = features_need(shape, samples, config.batch, networks=networks)
    return replace(features, facts=facts | features.facts, numbers=features.numbers | numbers)


def _has_random_crops(index: Index) -> bool:
    """Whether some image was large enough for a random crop: the others are only resized."""
    samples = sum(split.samples for split in index.splits.values())
    return index.options.augment and index.preprocessing.only_resized < samples


def _budgets(config: ProbeConfig) -> str:
    return "/".join(str(size) for size in config.budgets) + " labels"


JOB = Job(
    "probe",
    "linear probes: layers x L2 x label budgets",
    ProbeConfig,
    prepare,
    "igpt.sweeps.probe_trials:run",
    ray=True,
)
