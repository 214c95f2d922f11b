"""Features, the logistic path, label budgets and baselines: how good a network's features are.

    write_features(model, data, "train", store)          # one pass for all layers
    features = open_features(store)
    rows = probe_layer(train, validation, test, subject="trained", layer=3, l2=[1, 1e-2], ...)
    select(rows)                                          # layer and L2 by the validation split

Needs torch only where a network is run.
"""

from igpt.evaluation.baselines import raw_pixels
from igpt.evaluation.budgets import label_subset
from igpt.evaluation.feature_pass import model_digest, write_features
from igpt.evaluation.features import Features, features_key, open_features
from igpt.evaluation.logistic import LogisticPath, logistic_path
from igpt.evaluation.probe import (
    ProbeRow,
    Selection,
    Subset,
    probe_layer,
    rows_from_json,
    rows_to_json,
    select,
    split_subset,
)

__all__ = [
    "Features",
    "LogisticPath",
    "ProbeRow",
    "Selection",
    "Subset",
    "features_key",
    "label_subset",
    "logistic_path",
    "model_digest",
    "open_features",
    "probe_layer",
    "raw_pixels",
    "rows_from_json",
    "rows_to_json",
    "select",
    "split_subset",
    "write_features",
]
