"""The probe's protocol: what is fitted on what, what chooses, what is reported."""

import functools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpt.data import ArraySource, Dataset, Palette, open_dataset, write_shards
from igpt.errors import DataCorrupt, UserError
from igpt.evaluation import (
    ProbeRow,
    Subset,
    label_subset,
    logistic_path,
    open_features,
    probe_layer,
    raw_pixels,
    rows_from_json,
    rows_to_json,
    select,
    split_subset,
    write_features,
)
from igpt.model.transformer import ImageGPT
from igpt.storage import Store

STRENGTHS = [1.0, 0.1, 0.01]


def subset(samples: int, seed: int, classes: int = 3) -> Subset:
    generator = np.random.default_rng(seed)
    y = np.arange(samples) % classes
    x = generator.normal(size=(samples, 5)) + 0.8 * np.eye(5)[y]
    return Subset(x.astype(np.float32), y)


TRAIN, VALIDATION, TEST = subset(60, 0), subset(30, 1), subset(45, 2)


@functools.cache
def study() -> list[ProbeRow]:
    """Two layers, of which the second is hardly of use, two budgets, two seeds."""
    return probe()


def probe(**changes: object) -> list[ProbeRow]:
    options = {"budgets": [12, "all"], "seeds": [1, 2], "test": TEST, **changes}
    test = options.pop("test")
    rows = []
    for layer, noise in enumerate([0.0, 4.0]):
        parts = [
            Subset(p.x + noise * np.random.default_rng(9).normal(size=p.x.shape), p.y)
            for p in (TRAIN, VALIDATION, test)
        ]
        rows += probe_layer(*parts, subject="trained", layer=layer, l2=STRENGTHS, **options)
    return rows


def row(**changes: object) -> ProbeRow:
    values = {
        "subject": "trained",
        "layer": 0,
        "l2": 0.1,
        "budget": 40,
        "seed": 1,
        "validation_labels": 100,
        "validation_accuracy": 0.5,
        "test_accuracy": 0.5,
        "converged": True,
        "gradient_norm": 1e-7,
        "seconds": 0.1,
    }
    return ProbeRow(**{**values, **changes})


def test_there_is_a_row_for_each_layer_strength_budget_and_seed() -> None:
    rows = study()
    cells = [(r.layer, r.l2, r.budget, r.seed) for r in rows]
    assert len(set(cells)) == len(cells) == 2 * 3 * (2 + 1)
    assert {r.seed for r in rows if r.budget == "all"} == {None}
    assert all(r.converged and r.gradient_norm <= 1e-6 and r.seconds > 0 for r in rows)
    assert {r.validation_labels for r in rows} == {30}


def test_validation_accuracy_is_that_of_a_fit_to_train_alone() -> None:
    path = logistic_path(TRAIN.x, TRAIN.y, STRENGTHS)
    wanted = path.accuracy(VALIDATION.x, VALIDATION.y)
    rows = [r for r in study() if r.layer == 0 and r.budget == "all"]
    assert [r.validation_accuracy for r in rows] == pytest.approx(wanted)


def test_all_labels_are_tested_after_a_refit_on_train_and_validation() -> None:
    (best,) = (r for r in study() if r.layer == 0 and r.budget == "all" and r.test_accuracy)
    x, y = np.concatenate([TRAIN.x, VALIDATION.x]), np.concatenate([TRAIN.y, VALIDATION.y])
    assert best.test_accuracy == pytest.approx(
        logistic_path(x, y, [best.l2]).accuracy(TEST.x, TEST.y)[0]
    )


def test_budget_fits_a_subset_of_train_and_is_not_refitted() -> None:
    places = label_subset(TRAIN.y, 12, 2)
    path = logistic_path(TRAIN.x[places], TRAIN.y[places], STRENGTHS)
    rows = [r for r in study() if (r.layer, r.budget, r.seed) == (0, 12, 2)]
    assert [r.validation_accuracy for r in rows] == pytest.approx(
        path.accuracy(VALIDATION.x, VALIDATION.y)
    )
    for place, r in enumerate(rows):
        if r.test_accuracy is not None:
            assert r.test_accuracy == pytest.approx(path.accuracy(TEST.x, TEST.y)[place])


def test_budget_is_drawn_in_the_order_of_the_source() -> None:
    order = np.random.default_rng(3).permutation(60)
    shuffled = Subset(TRAIN.x[order], TRAIN.y[order])
    plain = probe_layer(
        TRAIN, VALIDATION, TEST, subject="s", layer=0, l2=STRENGTHS, budgets=[12], seeds=[1, 2]
    )
    moved = probe_layer(
        shuffled,
        VALIDATION,
        TEST,
        subject="s",
        layer=0,
        l2=STRENGTHS,
        budgets=[12],
        seeds=[1, 2],
        source_order=1000 + 2 * order,  # places in a source of which train is a part
    )
    for one, other in zip(plain, moved, strict=True):
        assert one.validation_accuracy == other.validation_accuracy
        assert one.test_accuracy == other.test_accuracy


@pytest.mark.parametrize("seed", [0, 1])
def test_labels_of_the_test_split_change_no_choice(seed: int) -> None:
    shuffled = Subset(TEST.x, np.random.default_rng(seed).permutation(TEST.y))
    chosen = [(s.budget, s.layer, s.l2, s.validation_accuracy) for s in select(study())]
    again = [(s.budget, s.layer, s.l2, s.validation_accuracy) for s in select(probe(test=shuffled))]
    assert chosen == again


def test_test_accuracy_is_there_only_for_the_strength_that_validation_prefers() -> None:
    rows = study()
    for layer in (0, 1):
        for budget in (12, "all"):
            cell = [r for r in rows if (r.layer, r.budget) == (layer, budget)]
            means = {
                l2: np.mean([r.validation_accuracy for r in cell if r.l2 == l2]) for l2 in STRENGTHS
            }
            preferred = max(means, key=lambda l2: (means[l2], l2))
            assert {r.l2 for r in cell if r.test_accuracy is not None} == {preferred}


def test_selection_takes_the_better_layer_and_averages_over_seeds() -> None:
    rows = study()
    selections = select(rows)
    assert [s.budget for s in selections] == [12, "all"]
    few, everything = selections
    assert (few.layer, everything.layer) == (0, 0)
    tested = [r.test_accuracy for r in rows if (r.layer, r.l2, r.budget) == (few.layer, few.l2, 12)]
    assert few.seeds == 2
    assert few.test_accuracy == pytest.approx(np.mean(tested))
    assert few.test_std == pytest.approx(np.std(tested, ddof=1))
    assert (everything.seeds, everything.test_std) == (1, None)


def test_selection_says_how_it_was_chosen() -> None:
    few, everything = select(study())
    assert few.chosen == (
        "layer and l2 by mean accuracy over 2 seeds on the full validation split (30 labels), "
        "which has more labels than the budget; no refit"
    )
    assert everything.chosen == (
        "layer and l2 by accuracy on the full validation split (30 labels); "
        "then refit on train and validation"
    )
    (pixels,) = select([row(subject="raw pixels", budget=250)])
    assert pixels.chosen == (
        "l2 by mean accuracy over one seed on the full validation split (100 labels); no refit"
    )


def test_of_equals_the_larger_strength_and_then_the_lower_layer_is_chosen() -> None:
    rows = [row(layer=layer, l2=l2) for layer in (2, 1, 3) for l2 in (0.01, 1.0, 0.1)]
    (selection,) = select(rows)
    assert (selection.l2, selection.layer) == (1.0, 1)


@given(order=st.permutations(range(10)))
def test_selection_does_not_depend_on_the_order_of_the_rows(order: list[int]) -> None:
    # The same three accuracies in another order add up to another sum in plain floating point.
    accuracies = [0.1, 0.7, 0.2, 0.3, 0.6]
    rows = [row(seed=s, l2=1.0, validation_accuracy=a) for s, a in enumerate(accuracies)]
    rows += [row(seed=s, l2=0.1, validation_accuracy=a) for s, a in enumerate(accuracies[::-1])]
    (selection,) = select([rows[place] for place in order])
    assert selection.l2 == 1.0


def test_subjects_are_chosen_for_apart() -> None:
    rows = [row(subject="trained", layer=2), row(subject="untrained", layer=1, converged=False)]
    trained, untrained = select(rows)
    assert (trained.subject, trained.layer, trained.converged) == ("trained", 2, True)
    assert (untrained.subject, untrained.layer, untrained.converged) == ("untrained", 1, False)


def test_unfinished_study_is_not_chosen_from() -> None:
    with pytest.raises(UserError, match="not all made with the same seeds"):
        select([row(seed=1), row(seed=2), row(layer=1, seed=1)])
    with pytest.raises(UserError, match=r"layer 0 was not tested with l2=0\.1"):
        select([row(test_accuracy=None)])


def test_rows_survive_json() -> None:
    rows = study()
    assert rows_from_json(rows_to_json(rows)) == rows
    with pytest.raises(DataCorrupt, match="not the rows of a probe"):
        rows_from_json('[{"subject": "trained"}]')


def test_unlabelled_samples_are_refused() -> None:
    with pytest.raises(UserError, match="1 of 3 samples have no label"):
        Subset(np.zeros((3, 2)), np.array([0, 1, -1]))
    with pytest.raises(UserError, match="do not fit"):
        Subset(np.zeros((3, 2)), np.array([0, 1]))


def test_budget_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(UserError, match="a budget of 61 labels"):
        probe(budgets=[61])
    with pytest.raises(UserError, match="needs seeds"):
        probe(seeds=[])


def test_crops_of_one_image_are_not_counted_as_labels() -> None:
    with pytest.raises(UserError, match="several crops"):
        probe(source_order=np.arange(60) // 2)
    assert probe(source_order=np.arange(60) // 2, budgets=["all"])


def test_data_without_a_test_split_is_refused(images: np.ndarray, tmp_path: Path) -> None:
    source = ArraySource(images, np.arange(60) % 3)
    palette = Palette.fit(images.reshape(-1, 3), 8)
    write_shards(source, tmp_path / "d", resolution=4, palette=palette)
    with pytest.raises(UserError, match=r"no split 'test'.*hold them out"):
        split_subset(open_dataset(tmp_path / "d"), "test", np.zeros((60, 2)))


def test_a_network_and_its_pixels_are_probed_end_to_end(
    model: ImageGPT, data: Dataset, store: Store
) -> None:
    splits = ("train", "validation", "test")
    for split in splits:
        write_features(model, data, split, store)
    features = open_features(store)
    options = {
        "l2": STRENGTHS,
        "budgets": [9, "all"],
        "seeds": [1, 2],
        "source_order": data.source_order("train"),
    }
    rows = []
    for layer in range(features.layers):
        parts = [split_subset(data, split, features.layer(split, layer)) for split in splits]
        rows += probe_layer(*parts, subject="untrained", layer=layer, **options)
    parts = [split_subset(data, split, raw_pixels(data, split)) for split in splits]
    rows += probe_layer(*parts, subject="raw pixels", layer=0, **options)
    found = {(s.subject, s.budget): s.test_accuracy for s in select(rows)}
    assert set(found) == {(s, b) for s in ("untrained", "raw pixels") for b in (9, "all")}
    # Half of an image's pixels have its class's colour, which linear features show.
    assert found["untrained", "all"] > 0.6
    assert found["raw pixels", "all"] > 0.6
