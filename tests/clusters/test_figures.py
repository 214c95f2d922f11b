"""The figures of a run while it runs: what each rank says, TensorBoard, Prometheus, Grafana."""

import json
import math
import os
import re
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from tensorboardX.proto.event_pb2 import Event, SessionLog

from igpt.clusters import resume, status
from igpt.clusters.figures import (
    ABANDONED_SECONDS,
    FIGURES,
    FiguresConfig,
    TensorBoard,
    TextFile,
    exposition,
    figures,
    recorded,
    remove_abandoned,
)
from igpt.clusters.local.config import LocalCluster
from igpt.clusters.ranks.progress import Onlooker, together
from igpt.clusters.ranks.start import Ranks
from igpt.clusters.ranks.watch import run_ranks
from igpt.clusters.submission import propose
from igpt.config import load
from igpt.errors import IgptError, UserError
from igpt.jobs import find_job
from igpt.jobs.context import progress_file
from igpt.jobs.recipes import packaged
from igpt.runs import Run, create_run
from igpt.runs.attempts import Claim, claim
from igpt.runs.record import open_run
from igpt.runs.state import RunState
from igpt.storage import Store
from tests.support import study

PROGRESS: dict[str, Any] = {
    "done": 120,
    "total": 2_000,
    "unit": "steps",
    "loss": 2.5,
    "validation_loss": 2.75,
    "validation_step": 100,
    "learning_rate": 0.003,
    "tokens_per_second": 20_480.0,
    "mfu": None,
    "data_wait": 0.5,
    "own_data_wait": 0.25,
}


def claimed(store: Store, attempt: int = 1, start_step: int = 0) -> Run:
    """A run of which an attempt has begun."""
    run = open_run(store, "tiny-1a2b3c4d")
    assert claim(run.record, Claim(attempt, "launch", "host", 1, 1.0, start_step))
    return run


def samples(text: str) -> dict[tuple[str, str, str], float]:
    """(figure, run, rank) -> value, as Prometheus' own client reads it."""
    return {
        (one.name, one.labels["run"], one.labels["rank"]): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def events(folder: Path) -> list[Event]:
    """All events of TensorBoard's files, in the order in which it reads them."""
    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        at = 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            found.append(Event.FromString(content[at + 12 : at + 12 + size]))
            at += 12 + size + 4  # a record: its size, a checksum, the event, a checksum
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) as TensorBoard shows them: a start voids what stood from its step on."""
    shown: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            shown = {
                tag: [point for point in points if point[0] < event.step]
                for tag, points in shown.items()
            }
        for value in event.summary.value:
            shown.setdefault(value.tag, []).append((event.step, round(value.simple_value, 6)))
    return shown


def test_the_figures_of_a_rank_are_what_it_knows() -> None:
    assert figures(PROGRESS) == {
        "igpt_loss": 2.5,
        "igpt_tokens_per_second": 20_480.0,
        "igpt_step": 120.0,
        "igpt_data_wait": 0.25,
    }
    assert figures(PROGRESS | {"mfu": 0.5})["igpt_mfu"] == 0.5
    assert figures({"done": 3, "total": 9, "unit": "layers"}) == {}


def test_the_text_for_prometheus_is_to_the_letter() -> None:
    ranks = {10: {"igpt_step": 3.0}, 2: {"igpt_step": 1_000_000.0, "igpt_loss": 2.5}}
    assert exposition("tiny-1a2b3c4d", ranks) == (
        "# HELP igpt_loss Training loss of the latest step, in nats per token.\n"
        "# TYPE igpt_loss gauge\n"
        'igpt_loss{run="tiny-1a2b3c4d",rank="2"} 2.5\n'
        "# HELP igpt_step Finished optimizer steps.\n"
        "# TYPE igpt_step gauge\n"
        'igpt_step{run="tiny-1a2b3c4d",rank="2"} 1000000.0\n'
        'igpt_step{run="tiny-1a2b3c4d",rank="10"} 3.0\n'
    )


@given(run=st.text(st.characters(codec="utf-8")), value=st.floats())
def test_prometheus_reads_back_any_name_and_any_number(run: str, value: float) -> None:
    read = samples(exposition(run, {0: {"igpt_loss": value}}))
    ((name, of, rank),) = read
    assert (name, of, rank) == ("igpt_loss", run, "0")
    found = read[name, of, rank]
    assert found == value or (math.isnan(found) and math.isnan(value))


def test_the_text_file_holds_all_ranks_of_the_node_and_goes_with_them(tmp_path: Path) -> None:
    file = TextFile(tmp_path / "collected", "tiny-1a2b3c4d", 1)
    file.show(4, PROGRESS)
    file.show(5, PROGRESS | {"own_data_wait": 0.75})
    file.show(4, PROGRESS | {"loss": 2.0})
    (path,) = (tmp_path / "collected").iterdir()  # and nothing half written beside it
    assert path.name == "igpt-tiny-1a2b3c4d-node-0001.prom"
    assert path.stat().st_mode & 0o777 == 0o644
    read = samples(path.read_text())
    assert read["igpt_loss", "tiny-1a2b3c4d", "4"] == 2.0
    assert read["igpt_data_wait", "tiny-1a2b3c4d", "5"] == 0.75
    assert len(read) == 8
    file.close()
    assert not list((tmp_path / "collected").iterdir())
    file.close()


def test_a_job_without_figures_leaves_no_text_file(tmp_path: Path) -> None:
    file = TextFile(tmp_path / "collected", "tiny-1a2b3c4d", 0)
    file.show(0, {"done": 3, "total": 9, "unit": "images"})
    assert not (tmp_path / "collected").exists()


def test_only_text_files_of_ours_that_are_a_day_old_are_removed(tmp_path: Path) -> None:
    names = ["igpt-a-00000000-node-0000.prom", "igpt-b-00000000-node-0000.prom", "raid.prom"]
    folder = tmp_path / "collected"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("")
    now = (folder / names[0]).stat().st_mtime
    for name in names[1:]:
        os.utime(folder / name, (now, now - ABANDONED_SECONDS - 1))
    remove_abandoned(folder, now)
    assert {path.name for path in folder.iterdir()} == {names[0], "raid.prom"}


def test_tensorboard_gets_rank_0s_figures_by_step_and_none_twice(
    store: Store, tmp_path: Path
) -> None:
    board = TensorBoard(tmp_path, claimed(store), 1)
    board.show(1, PROGRESS)
    assert not list(tmp_path.glob("tiny-*"))
    board.show(0, PROGRESS)
    validated = PROGRESS | {"validation_loss": 2.25, "validation_step": 120}
    board.show(0, validated)
    board.show(0, validated | {"done": 130, "loss": 2.0, "mfu": 0.5})
    board.close()
    assert scalars(tmp_path / "tiny-1a2b3c4d") == {
        "loss": [(120, 2.5), (130, 2.0)],
        "tokens_per_second": [(120, 20_480.0), (130, 20_480.0)],
        "mfu": [(130, 0.5)],
        "data_wait": [(120, 0.5), (130, 0.5)],
        "learning_rate": [(120, 0.003), (130, 0.003)],
        "validation_loss": [(100, 2.75), (120, 2.25)],
    }


def test_a_resumed_attempt_shows_no_step_twice(store: Store, tmp_path: Path) -> None:
    first = TensorBoard(tmp_path, claimed(store), 1)
    for step in (90, 100, 110):  # the last is beyond the checkpoint
        first.show(0, PROGRESS | {"done": step, "loss": float(step), "validation_step": step})
    first.close()
    second = TensorBoard(tmp_path, claimed(store, attempt=2, start_step=100), 2)
    for step in (105, 115):
        second.show(0, PROGRESS | {"done": step, "loss": -float(step), "validation_step": None})
    second.close()
    shown = scalars(tmp_path / "tiny-1a2b3c4d")
    assert shown["loss"] == [(90, 90.0), (100, 100.0), (105, -105.0), (115, -115.0)]
    assert [step for step, _ in shown["validation_loss"]] == [90, 100]


def test_a_folder_that_cannot_be_written_keeps_nothing_from_the_other(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    config = FiguresConfig(
        tensorboard=str(tmp_path / "file" / "boards"), prometheus=str(tmp_path / "collected")
    )
    progress_file(tmp_path, 0).write_text(json.dumps(PROGRESS))
    with recorded(config, claimed(store), 1) as show:
        onlooker = Onlooker(tmp_path, range(1), show)
        for _ in range(3):
            onlooker.look()
        assert len(list((tmp_path / "collected").iterdir())) == 1
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert f"figures.tensorboard: {tmp_path}/file/boards cannot be written" in warnings[0]


def test_what_cannot_be_written_here_is_refused_at_submission(root: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    where = study.cluster(figures=FiguresConfig(prometheus=str(tmp_path / "file" / "below")))
    with pytest.raises(UserError, match=r"figures\.prometheus"):
        study.start(root, where)
    assert root.children("runs") == []
    FiguresConfig(tensorboard=str(tmp_path / "new" / "one")).check()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("path", ["boards", "./boards", "~someone/boards"])
def test_a_path_that_depends_on_where_one_stands_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="begins with / or ~/"):
        LocalCluster.model_validate({"figures": {"tensorboard": path}})


def test_each_rank_is_shown_when_it_has_moved_on_and_only_then(tmp_path: Path) -> None:
    seen: list[tuple[int, Any]] = []
    onlooker = Onlooker(tmp_path, range(2, 4), lambda rank, said: seen.append((rank, said["done"])))
    onlooker.look()
    for rank, done in ((1, 1), (2, 1), (3, 1)):
        progress_file(tmp_path, rank).write_text(json.dumps({"done": done}))
    onlooker.look()
    progress_file(tmp_path, 3).write_text(json.dumps({"done": 2}))
    onlooker.look()
    onlooker.look()
    assert seen == [(2, 1), (3, 1), (3, 2)]


def test_what_is_shown_together_reaches_all_and_names_every_failure() -> None:
    seen = []

    def broken(rank: int, progress: Mapping[str, Any]) -> None:
        raise ValueError("no room")

    def full(rank: int, progress: Mapping[str, Any]) -> None:
        raise IgptError("the disk is full")

    with pytest.raises(IgptError, match="ValueError: no room; the disk is full"):
        together(broken, lambda rank, said: seen.append(rank), full)(1, {})
    assert seen == [1]


def test_the_parent_shows_every_rank_to_its_end_whatever_the_onlooker_does(
    root: Store, caplog: pytest.LogCaptureFixture
) -> None:
    job = find_job("pretrain")
    config = load(job.config, study.TRAINING, "test.yaml")
    spec = propose(root, job, config, study.cluster(), folder=Path("/"), arguments=[]).spec
    run, _ = create_run(
        root, job=job.name, name="shown", config=spec.config, inputs=spec.inputs, status=status
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = Ranks(
        workers=2,
        master_port=port,
        heartbeat_seconds=0.2,
        grace_seconds=30.0,
        environment={"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    seen: list[tuple[int, dict[str, Any]]] = []

    def show(rank: int, progress: Mapping[str, Any]) -> None:
        seen.append((rank, dict(progress)))
        raise RuntimeError("nobody looks")

    exits = run_ranks(run, 1, ranks, lambda: None, show=show)
    assert [one.code for one in exits] == [0, 0]
    last = dict(seen)
    assert sorted(last) == [0, 1]
    for progress in last.values():
        assert progress["done"] == progress["validation_step"] == 40
        assert 0 <= progress["own_data_wait"] <= progress["data_wait"]
    assert last[0]["loss"] == last[1]["loss"]
    complaints = [r.getMessage() for r in caplog.records if "nobody looks" in r.getMessage()]
    assert len(complaints) == 1


def test_a_run_writes_both_while_it_trains_and_goes_on_from_there(
    root: Store, tmp_path: Path
) -> None:
    boards, collected = tmp_path / "boards", tmp_path / "collected"
    figures = FiguresConfig(tensorboard=str(boards), prometheus=str(collected))
    where = study.cluster(figures=figures, workers=2)
    run = study.start(root, where, "schedule.steps=100000", "checkpoints.every_steps=20")

    def shown() -> dict[tuple[str, str, str], float]:
        files = list(collected.glob("*.prom"))
        return samples(files[0].read_text()) if files else {}

    study.until(lambda: ("igpt_step", run.id, "1") in shown(), "the text file holds both ranks")
    study.reached(run, 20)
    study.send(study.processes(run), 9)
    study.until(lambda: not status(run).state.active, "all are dead")
    assert list(collected.glob("*.prom"))  # there was nobody left to remove it
    before = max(step for step, _ in scalars(boards / run.id)["loss"])
    resume(run)
    study.until(
        lambda: max(step for step, _ in scalars(boards / run.id)["loss"]) > before + 20,
        "the resumed attempt writes",
    )
    study.send(study.processes(run, "igpt.clusters"), 15)
    assert study.ended(run).state is RunState.STALLED
    assert not list(collected.iterdir())
    steps = [step for step, _ in scalars(boards / run.id)["loss"]]
    assert steps == sorted(set(steps))


def test_the_dashboard_for_grafana_asks_for_every_figure_and_no_other() -> None:
    board = json.loads((packaged("clusters") / "grafana" / "igpt.json").read_text())
    asked: list[str] = []
    for panel in board["panels"]:
        for target in panel["targets"]:
            names = re.findall(r"\b(?:ray_)?igpt_\w+", target["expr"])
            plain = [name.removeprefix("ray_") for name in names]
            # The same figure of both, Ray and the text files, of the chosen runs and ranks.
            assert sorted(names) == sorted({plain[0], f"ray_{plain[0]}"})
            assert target["expr"].count('{run=~"$run", rank=~"$rank"}') == 2
            asked.append(plain[0])
    assert sorted(asked) == sorted(figure.name for figure in FIGURES)
    for variable in board["templating"]["list"]:
        for name in re.findall(r"igpt_\w+", json.dumps(variable)):
            assert name in asked


def test_the_dashboard_has_what_grafanas_import_needs() -> None:
    board = json.loads((packaged("clusters") / "grafana" / "igpt.json").read_text())
    assert board["id"] is None  # Grafana gives it one
    assert board["title"]
    assert re.fullmatch(r"[\w-]{1,40}", board["uid"])
    assert board["schemaVersion"] >= 36
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert set(variables) == {"datasource", "run", "rank"}
    assert variables["datasource"]["type"] == "datasource"
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert [variables[name]["datasource"] for name in ("run", "rank")] == [source] * 2
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"]
        assert panel["type"] == "timeseries"
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken
        taken |= cells
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert [one["datasource"] for one in (panel, *panel["targets"])] == [source] * 2
