"""The logistic path against brute force, against scikit-learn, and under what must not matter."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from igpt.errors import UserError
from igpt.evaluation import LogisticPath, logistic_path

STRENGTHS = [1.0, 0.1, 1e-2, 1e-3]


def example(
    samples: int = 150, width: int = 6, classes: int = 4, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Features of unequal spread, far from 0, and labels that depend on them; all classes occur."""
    generator = np.random.default_rng(seed)
    z = generator.normal(size=(samples, width))
    y = (
        z @ generator.normal(size=(width, classes)) + generator.gumbel(size=(samples, classes))
    ).argmax(1)
    y[:classes] = np.arange(classes)
    return z * np.arange(1, width + 1) ** -1.0 + 3, y


def objective(x: np.ndarray, y: np.ndarray, l2: float, w: np.ndarray, b: np.ndarray) -> float:
    """The stated objective, written down as plainly as can be."""
    logits = x @ w + b
    log_loss = scipy.special.logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]
    return float(log_loss.mean() + l2 / 2 * (w**2).sum())


def brute_force(x: np.ndarray, y: np.ndarray, l2: float, classes: int) -> np.ndarray:
    """The optimal W [d, K], by a general minimiser on the raw features with numerical slopes."""
    d = x.shape[1]

    def of(flat: np.ndarray) -> float:
        return objective(x, y, l2, flat[: d * classes].reshape(d, classes), flat[d * classes :])

    best = scipy.optimize.minimize(
        of, np.zeros((d + 1) * classes), method="BFGS", options={"gtol": 1e-7, "maxiter": 10_000}
    )
    return best.x[: d * classes].reshape(d, classes)


def reference_gradient(x: np.ndarray, y: np.ndarray, path: LogisticPath, place: int) -> np.ndarray:
    """The gradient of the objective in W [d, K] and then in the intercept [K]."""
    logits = x @ path.coef[place] + path.intercept[place]
    excess = scipy.special.softmax(logits, axis=1) - np.eye(logits.shape[1])[y]
    slope = x.T @ excess / len(y) + path.l2[place] * path.coef[place]
    return np.vstack([slope, excess.mean(axis=0)])


def test_gradient_vanishes_at_each_answer() -> None:
    x, y = example()
    path = logistic_path(x, y, STRENGTHS)
    assert path.converged.all()
    assert (path.gradient_norm <= 1e-6).all()
    for place in range(len(STRENGTHS)):
        assert np.abs(reference_gradient(x, y, path, place)).max() < 1e-5


def test_gradient_norm_is_that_of_standardised_features() -> None:
    x, y = example()
    with pytest.warns(RuntimeWarning):
        path = logistic_path(x, y, [1e-2], max_iterations=3)
    centred = x - x.mean(axis=0)
    scale = np.sqrt((centred**2).mean())
    slope = reference_gradient(x, y, path, 0)
    slope[:-1] -= np.outer(x.mean(axis=0), slope[-1])
    slope[:-1] /= scale
    assert path.gradient_norm[0] == pytest.approx(np.linalg.norm(slope), rel=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_answer_is_the_brute_force_optimum(classes: int) -> None:
    x, y = example(80, 3, classes)
    path = logistic_path(x, y, [0.3, 1e-2])
    for place, l2 in enumerate(path.l2):
        assert path.coef[place] == pytest.approx(brute_force(x, y, l2, classes), abs=1e-4)


@pytest.mark.parametrize("classes", [2, 5])
def test_loss_is_the_objective_and_no_neighbour_is_below_it(classes: int) -> None:
    x, y = example(classes=classes)
    path = logistic_path(x, y, STRENGTHS)
    generator = np.random.default_rng(1)
    for place, l2 in enumerate(STRENGTHS):
        w, b = path.coef[place], path.intercept[place]
        assert path.loss[place] == pytest.approx(objective(x, y, l2, w, b), rel=1e-12)
        for _ in range(20):
            step = 1e-3 * generator.normal(size=(w.shape[0] + 1, classes))
            assert objective(x, y, l2, w + step[:-1], b + step[-1]) > path.loss[place]


def test_agrees_with_scikit_learn() -> None:
    x, y = example()
    path = logistic_path(x, y, [1e-2])
    oracle = LogisticRegression(C=1 / (len(y) * 1e-2), solver="newton-cg", tol=1e-10).fit(x, y)
    assert path.coef[0] == pytest.approx(oracle.coef_.T, abs=1e-5)
    assert (path.predict(x)[0] == oracle.predict(x)).all()


def test_features_of_very_unequal_spread_take_few_steps() -> None:
    generator = np.random.default_rng(0)
    z = generator.normal(size=(1000, 40))
    y = (z[:, ::4] + 2 * generator.gumbel(size=(1000, 10))).argmax(axis=1)
    axes = np.linalg.qr(generator.normal(size=(40, 40)))[0]
    path = logistic_path((z * np.logspace(0, -3, 40)) @ axes, y, [1.0, 1e-2, 1e-4, 1e-6])
    assert path.converged.all()
    assert path.iterations.max() < 100  # without preconditioning, 1,900


def test_path_is_that_of_independent_fits_in_any_order() -> None:
    x, y = example()
    path = logistic_path(x, y, [1e-3, 1.0, 1e-2])
    assert path.l2.tolist() == [1e-3, 1.0, 1e-2]
    for place, l2 in enumerate(path.l2):
        alone = logistic_path(x, y, [l2])
        assert path.loss[place] == pytest.approx(alone.loss[0], abs=1e-9)
        assert path.coef[place] == pytest.approx(alone.coef[0], abs=1e-4)
        assert path.only(place).coef == pytest.approx(path.coef[[place]])


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_order_of_the_samples_does_not_matter(seed: int) -> None:
    x, y = example(60, 4, 3)
    order = np.random.default_rng(seed).permutation(60)
    one, other = logistic_path(x, y, [1e-2]), logistic_path(x[order], y[order], [1e-2])
    assert one.coef == pytest.approx(other.coef, abs=1e-5)
    assert one.intercept == pytest.approx(other.intercept, abs=1e-4)


def test_shift_moves_the_intercept_only_and_scale_acts_with_l2() -> None:
    x, y = example()
    plain = logistic_path(x, y, [1e-2])
    shifted = logistic_path(x + 1000, y, [1e-2])
    scaled = logistic_path(x * 50, y, [1e-2 * 50**2])
    assert shifted.coef == pytest.approx(plain.coef, abs=1e-5)
    assert scaled.coef * 50 == pytest.approx(plain.coef, abs=1e-5)
    assert scaled.loss == pytest.approx(plain.loss, abs=1e-9)
    assert (shifted.predict(x + 1000) == plain.predict(x)).all()


def test_fewer_samples_than_features_is_the_same_problem_turned() -> None:
    x, y = example(20, 50, 3)
    turned = logistic_path(x, y, STRENGTHS)
    # Three copies of each sample have the same objective, and are more samples than features.
    plain = logistic_path(np.tile(x, (3, 1)), np.tile(y, 3), STRENGTHS)
    assert turned.loss == pytest.approx(plain.loss, abs=1e-8)
    assert turned.coef == pytest.approx(plain.coef, abs=1e-4)
    for place in range(len(STRENGTHS)):
        assert np.abs(reference_gradient(x, y, turned, place)).max() < 1e-5


def test_duplicate_feature_shares_its_weight() -> None:
    x, y = example(width=3)
    doubled = logistic_path(np.hstack([x, x[:, :1]]), y, [1e-2])
    assert doubled.coef[0, 0] == pytest.approx(doubled.coef[0, 3], abs=1e-6)
    once = logistic_path(x * [np.sqrt(2), 1, 1], y, [1e-2])
    assert doubled.loss == pytest.approx(once.loss, abs=1e-9)


def test_constant_feature_gets_no_weight() -> None:
    x, y = example()
    path = logistic_path(np.hstack([x, np.full((len(x), 1), 7.3)]), y, [1e-3])
    assert path.coef[0, -1] == pytest.approx(np.zeros(4), abs=1e-9)
    assert path.loss == pytest.approx(logistic_path(x, y, [1e-3]).loss, abs=1e-9)


@pytest.mark.parametrize("constant", [0.0, 0.1])
def test_features_without_information_give_the_frequencies(constant: float) -> None:
    y = np.array([0] * 5 + [1] * 3 + [2] * 2)
    path = logistic_path(np.full((10, 4), constant), y, [1e-3])
    assert path.loss[0] == pytest.approx(scipy.stats.entropy([0.5, 0.3, 0.2]), abs=1e-9)
    assert (path.predict(np.full((2, 4), constant)) == 0).all()


def test_missing_class_is_never_predicted_and_changes_nothing() -> None:
    x, y = example(classes=4)
    moved = np.array([0, 2, 3, 5])[y]
    path, plain = logistic_path(x, moved, STRENGTHS, classes=7), logistic_path(x, y, STRENGTHS)
    assert path.coef.shape == (4, 6, 7)
    assert path.coef[:, :, [0, 2, 3, 5]] == pytest.approx(plain.coef)
    assert (path.coef[:, :, [1, 4, 6]] == 0).all()
    assert np.isneginf(path.intercept[:, [1, 4, 6]]).all()
    assert (path.predict(x) == np.array([0, 2, 3, 5])[plain.predict(x)]).all()


def test_accuracy_is_the_share_of_right_predictions() -> None:
    x, y = example()
    path = logistic_path(x.astype(np.float16), y, STRENGTHS)
    predicted = path.predict(x)
    assert predicted.shape == (4, len(y))
    for place in range(4):
        logits = x @ path.coef[place] + path.intercept[place]
        assert (predicted[place] == logits.argmax(axis=1)).all()
    assert path.accuracy(x, y) == pytest.approx([(row == y).mean() for row in predicted])
    assert path.accuracy(x, y)[3] > 0.5


def test_more_rows_than_one_block_are_predicted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = example()
    path = logistic_path(x, y, STRENGTHS)
    whole = path.predict(x)
    monkeypatch.setattr("igpt.evaluation.logistic._ROWS", 7)
    assert (path.predict(x) == whole).all()


def test_what_did_not_converge_is_marked_and_said_once() -> None:
    x, y = example()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = logistic_path(x, y, [1e-6, 1e-7], max_iterations=2)
    assert not path.converged.any()
    assert (path.iterations <= 2).all()
    assert [str(w.message) for w in caught if "did not converge" in str(w.message)] == [
        str(caught[0].message)
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(150, np.int64)}, "all 150 labels are 0"),
        ({"y": np.zeros(149, np.int64)}, r"y is int64 \[149\]"),
        ({"y": np.zeros(150)}, "y is float64"),
        ({"y": np.arange(150) % 3 - 1}, "50 of 150 samples have no label"),
        ({"y": np.arange(150) % 2 * 2}, "no sample has label 1"),
        ({"y": np.arange(150) % 3, "classes": 2}, "a sample has label 2"),
        ({"x": np.zeros(150)}, r"x is float64 \[150\]"),
        ({"x": np.full((150, 2), np.nan)}, "not finite, first in row 0"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0, np.int64)}, r"x is float64 \[0, 2\]"),
        ({"l2": [0.1, 0.0]}, "l2 = 0 is not a strength"),
        ({"l2": [-1.0]}, "l2 = -1 is not a strength"),
        ({"l2": [np.nan]}, "l2 = nan is not a strength"),
        ({"l2": []}, r"l2 is \[\]"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, object], message: str) -> None:
    x, y = example()
    with pytest.raises(UserError, match=message):
        logistic_path(**{"x": x, "y": y, "l2": [0.1], **change})


def test_features_of_another_width_are_not_predicted() -> None:
    x, y = example()
    with pytest.raises(UserError, match="x has 5 features"):
        logistic_path(x, y, [0.1]).predict(x[:, :5])


def test_the_room_is_imported_without_torch_or_scikit_learn() -> None:
    code = "import igpt.evaluation, sys; sys.exit(bool({'torch', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
