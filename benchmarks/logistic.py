"""The linear probe over L2 strengths: our path against scikit-learn, to the same gradient.

Features are real: one layer's of the quickstart's network, untrained, on its coloured digits.
Centred and of root mean square 1, so that scikit-learn gets what our solver makes for itself and
the gradient means the same to both. Peers: `LogisticRegression` with L-BFGS, its default, and with
Newton-Cholesky, which it recommends for many more samples than features; one fit for each strength,
from strong to weak, each from the last answer (`warm_start`). Their `tol` is the looser of 1e-6 and
1e-7 at which all gradients have a Euclidean norm below 1e-6, as ours must; the objectives must
agree to 1e-9.

Predicted: 4 times as fast as L-BFGS; slower than Newton-Cholesky, 0.7 times as fast, because with
64 features a Newton step costs little.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

import igpt
from benchmarks.harness import Figure, compare, timed
from igpt.data.digits import digits
from igpt.evaluation import logistic_path

STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
GRADIENT = 1e-6
_LAYER = 2

_Floats = NDArray[np.float64]


def figures(quick: bool, folder: Path) -> list[Figure]:
    """The whole path."""
    x, y = _features(300 if quick else None)
    strengths = STRENGTHS[:2] if quick else STRENGTHS
    solvers = {"lbfgs": 1e-7, "newton-cholesky": 1e-6}

    path = logistic_path(x, y, l2=strengths, tolerance=GRADIENT)
    assert path.converged.all()
    for solver, tolerance in solvers.items():
        fits = _theirs(x, y, strengths, solver, tolerance)
        for place, (strength, (coef, intercept)) in enumerate(zip(strengths, fits, strict=True)):
            loss, gradient = _objective(x, y, coef, intercept, strength)
            assert gradient <= GRADIENT
            assert abs(loss - path.loss[place]) < 1e-9
    return compare(
        f"{len(strengths)} strengths, {len(x)} samples of {x.shape[1]} features",
        timed(lambda: logistic_path(x, y, l2=strengths, tolerance=GRADIENT)),
        {
            f"scikit-learn {solver}": timed(partial(_theirs, x, y, strengths, solver, tolerance))
            for solver, tolerance in solvers.items()
        },
        rounds=1 if quick else 3,
        warm_up=False,  # each has run above
    )


def _features(count: int | None) -> tuple[_Floats, NDArray[np.int64]]:
    """Features float64 [N, 64] and labels of the first `count` training digits."""
    images, labels, splits = digits()
    train = np.flatnonzero(np.array(splits) == "train")[:count]
    palette = igpt.Palette.fit(images[train].reshape(-1, 3), 32)
    model = igpt.ImageGPT(igpt.ModelConfig(layers=4, width=64, heads=4, resolution=8, colors=32))
    tokens = torch.from_numpy(palette.encode(images[train])).long()
    pooled = [model.features(part)[_LAYER] for part in torch.split(tokens, 512)]
    features = torch.cat(pooled).double().numpy()
    features -= features.mean(axis=0)
    return features / np.sqrt(np.square(features).mean()), labels[train]


def _theirs(
    x: _Floats, y: NDArray[np.int64], strengths: tuple[float, ...], solver: str, tolerance: float
) -> list[tuple[_Floats, _Floats]]:
    """Coefficients [d, K] and intercept [K] for each strength."""
    model: Any = LogisticRegression(solver=solver, tol=tolerance, max_iter=20_000, warm_start=True)
    fits = []
    for strength in strengths:
        model.set_params(C=1 / (len(x) * strength)).fit(x, y)
        fits.append((model.coef_.T.copy(), model.intercept_.copy()))
    return fits


def _objective(
    x: _Floats, y: NDArray[np.int64], coef: _Floats, intercept: _Floats, l2: float
) -> tuple[float, float]:
    """Mean log loss + l2/2 |W|^2, and the norm of its gradient, written down once more."""
    logits = x @ coef + intercept
    logits -= logits.max(axis=1, keepdims=True)
    likelihood = np.exp(logits)
    likelihood /= likelihood.sum(axis=1, keepdims=True)
    rows = np.arange(len(x))
    loss = -np.log(likelihood[rows, y]).mean() + l2 / 2 * np.square(coef).sum()
    likelihood[rows, y] -= 1
    slopes = np.vstack([x.T @ likelihood / len(x) + l2 * coef, likelihood.mean(axis=0)])
    return float(loss), float(np.linalg.norm(slopes))
