"""How a recipe names data and models.

A name without a scheme or a leading `/`, `.` or `~` names a thing in the store: `data/cifar10-32`
is the same set wherever the store is. `./x`, `/x` and `s3://bucket/x` are taken as given. A model
is a run, `latest`, or the address of a checkpoint or of an exported folder.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from igpt.errors import NotFound, UserError
from igpt.model.sealed import MANIFEST, local_copy, newest_attempt, sha256_of
from igpt.runs import Run, find_run
from igpt.runs.attempts import newest
from igpt.runs.listing import finished_runs
from igpt.runs.record import open_run
from igpt.storage import Store, check_key, open_store
from igpt.storage.settings import absolute_path


def settle(reference: str, folder: Path) -> str:
    """The reference in the form that is written into a record: relative paths made absolute."""
    if reference.startswith((".", "~")):
        return settle_path(reference, folder)
    reference = reference.rstrip("/")
    if "://" not in reference and not reference.startswith("/"):
        try:
            check_key(reference)
        except ValueError:
            raise UserError(
                f"{reference!r} names nothing in a store",
                expected="data/NAME, a path that begins with / or ./, or s3://bucket/prefix",
            ) from None
    return reference


def settle_path(path: str, folder: Path) -> str:
    """A path of this machine made absolute; `~` is a home, what is relative begins in `folder`."""
    return str(absolute_path(path, folder, "path").resolve())


def open_reference(root: Store, reference: str) -> Store:
    """The folder a settled reference names."""
    if "://" in reference or reference.startswith("/"):
        return open_store(reference)
    return root.sub(reference)


def committed_checkpoints(run: Run) -> list[tuple[int, int]]:
    """(step, attempt) of every committed checkpoint of a run, whether or not it counts."""
    found = []
    for info in run.record.objects("checkpoints/"):
        parts = info.key.split("/")
        if parts[-1] == "COMMITTED":
            step, attempt = parts[1].removeprefix("step-"), parts[2].removeprefix("attempt-")
            found.append((int(step), int(attempt)))
    return sorted(found)


def checkpoint_key(step: int, attempt: int) -> str:
    """The folder of a checkpoint inside its run."""
    return f"checkpoints/step-{step:09d}/attempt-{attempt}"


def newest_checkpoint(run: Run, *, at_most: int | None = None) -> tuple[int, int] | None:
    """(step, attempt) of the furthest checkpoint that counts, up to a step."""
    committed = [one for one in committed_checkpoints(run) if at_most is None or one[0] <= at_most]
    return newest(run.claims(), committed)


def settle_model(root: Store, reference: str, folder: Path) -> tuple[str, Run | None]:
    """A model reference as the address of one checkpoint, and the run it comes from, if any.

    Raises NotFound where there is no such run, or none finished for `latest`; UserError where the
    run has no committed checkpoint yet.
    """
    if "://" in reference or reference.startswith(("/", ".", "~")):
        return _one_checkpoint(root, settle(reference, folder)), None
    if reference.startswith("runs/") and "/checkpoints/" in reference:
        reference = _one_checkpoint(root, settle(reference, folder))
        return reference, open_run(root, reference.split("/")[1])
    run = latest_pretraining(root) if reference == "latest" else find_run(root, reference)
    best = newest_checkpoint(run)
    if best is None:
        raise UserError(
            f"run {run.id} has no committed checkpoint",
            expected="a pretraining run that has saved at least once",
            mend=f"igpt-jobs status {run.id} shows how far it is",
        )
    return f"runs/{run.id}/{checkpoint_key(*best)}", run


def _one_checkpoint(root: Store, reference: str) -> str:
    """The newest committed attempt where the reference is a step's folder, as for load_model."""
    folder = open_reference(root, reference)
    attempt = newest_attempt(folder.children(), folder)
    return f"{reference}/{attempt}" if attempt else reference


def only_pretraining(after: Sequence[Run]) -> Run | None:
    """The pretraining among the runs that one starts after: it is the latest, if there is one.

    Raises UserError where there are several.
    """
    found = {run.id: run for run in after if run.spec().job == "pretrain"}
    if len(found) > 1:
        raise UserError(
            f"model=latest does not say which of the pretraining runs to start after is meant: "
            f"{', '.join(found)}",
            mend="Name one: model=RUN",
        )
    return next(iter(found.values()), None)


def latest_pretraining(root: Store) -> Run:
    """The pretraining run that finished last. Raises NotFound where there is none."""
    for run in finished_runs(root):
        try:
            if run.spec().job == "pretrain":
                return run
        except NotFound:  # deleted since
            continue
    raise NotFound(
        f"{root.uri} holds no finished pretraining run",
        mend="igpt-jobs submit pretrain starts one; model=RUN names one that is still going on",
    )


def model_digest(root: Store, reference: str) -> str:
    """What identifies a model's bytes: sha256 of a checkpoint's manifest, or of the files' own."""
    folder = open_reference(root, reference)
    if folder.exists(MANIFEST):
        return hashlib.sha256(folder.get(MANIFEST)).hexdigest()
    names = [name for name in folder.children() if name.endswith((".json", ".safetensors"))]
    if "config.json" not in names:
        raise no_model(folder)
    with tempfile.TemporaryDirectory(prefix="igpt-model-") as scratch:
        digests = {name: sha256_of(local_copy(folder, name, Path(scratch))) for name in names}
    return hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()


def no_model(folder: Store) -> NotFound:
    """What to raise for a folder in which no model is."""
    return NotFound(
        f"{folder.uri} holds no model",
        expected="a committed checkpoint or an exported folder, with its config.json",
    )
