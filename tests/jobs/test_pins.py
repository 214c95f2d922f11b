"""The checkpoint of another run that a run needs: pinned, and let go."""

import json

import pytest

from igpt.errors import UserError
from igpt.jobs import find_job
from igpt.jobs.generate import GenerateConfig
from igpt.jobs.pins import hold_model, needs_model
from igpt.jobs.waiting import settle_inputs
from igpt.model.config import ModelConfig
from igpt.runs import Run, create_run
from igpt.storage import Store

SHAPE = ModelConfig(layers=1, width=8, heads=1, resolution=8, colors=16)


def recorded(root: Store, job: str, **spec: dict[str, object]) -> Run:
    """A run that nobody has started."""
    given = {"config": {}, "inputs": {}} | spec
    return create_run(root, job=job, name=job, status=Run.status, **given)[0]  # type: ignore[arg-type]


def trained(root: Store, *, committed: bool = True) -> tuple[Run, str]:
    """A pretraining that goes on, with the small files of a checkpoint, and where these are."""
    run = recorded(root, "pretrain", config={"data": "data/digits"})
    address = f"runs/{run.id}/checkpoints/step-000000040/attempt-1"
    folder = root.sub(address)
    folder.put("config.json", json.dumps({"model": SHAPE.model_dump(mode="json")}).encode())
    folder.put("manifest.json", b"{}")
    if committed:
        folder.put("COMMITTED", b"")
    return run, address


def waiting(root: Store, model: str) -> Run:
    """A run that had to wait for another, which has finished."""
    shard = recorded(root, "shard")
    shard.record.create("result.json", b"{}")
    config = GenerateConfig(model=model).model_dump(mode="json")
    inputs: dict[str, object] = {"after": [shard.id], "folder": "/"}
    return recorded(root, "generate", config=config, inputs=inputs)


def pins(root: Store, address: str) -> list[str]:
    return root.children(f"{address}/pins")


def test_a_run_that_waited_pins_the_checkpoint_that_it_finds_until_it_has_finished(
    root: Store,
) -> None:
    source, address = trained(root)
    run = waiting(root, source.id)
    assert settle_inputs(run, find_job("generate"), 1).config["model"] == address
    assert pins(root, address) == [run.id]
    assert needs_model(root, run.id)
    run.record.create("result.json", b"{}")
    assert not needs_model(root, run.id)
    run.delete()
    assert not needs_model(root, run.id)


def test_the_record_of_a_run_that_has_finished_is_left_as_it_is(root: Store) -> None:
    source, address = trained(root)
    source.record.create("result.json", b"{}")
    run = waiting(root, source.id)
    settle_inputs(run, find_job("generate"), 1)
    assert pins(root, address) == []


def test_a_checkpoint_that_was_dropped_is_not_pinned(root: Store) -> None:
    source, address = trained(root)
    run = waiting(root, source.id)
    source.delete()
    assert not hold_model(run, GenerateConfig(model=address))
    assert source.id not in root.children("runs")


def test_a_checkpoint_that_was_never_committed_is_the_users_to_mend(root: Store) -> None:
    _, address = trained(root, committed=False)
    with pytest.raises(UserError, match=r"is not committed.*model=RUN"):
        settle_inputs(waiting(root, address), find_job("generate"), 1)
