"""What a run survives on a real Ray of several hosts, each with its own network.

Killed ranks, killed workers of Ray, a lost node, a drained one, more and fewer workers, a killed
driver, a user's error: each with its outcome, its attempts, and batches that are those of a local
run, digest by digest; where the number of workers stays, losses that are the same to the last bit.
"""

import signal
import subprocess
from pathlib import Path

import pytest

from igpt.clusters import cancel, resume, status
from igpt.runs import events as ev
from igpt.runs.state import RunState
from igpt.storage import Store
from tests.cli.command import igpt
from tests.cluster import scenario
from tests.cluster.scenario import LONG, LONGER, on_ray
from tests.support import study
from tests.support.ray_cluster import RayHosts

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("slow_disk")]

THREE = {"head_cpus": 1, "workers": (1, 1), "spare": 1}


@pytest.fixture
def straight(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of the undisturbed run."""
    return scenario.yardstick(digits, scenario.base_folder(tmp_path_factory), *LONG)


def test_a_killed_rank_and_a_killed_worker_of_ray_each_cost_an_attempt_and_no_step(
    ray_hosts: RayHosts, root: Store, straight: dict[int, float]
) -> None:
    run = study.start(root, on_ray(ray_hosts), *LONG)
    study.reached(run, 100)
    study.send([scenario.ranks(run)[1]], signal.SIGKILL)
    study.until(lambda: scenario.kinds(run)[ev.FAILED], "the attempt is over")
    failed = scenario.last(run, ev.FAILED)
    assert (failed["class"], failed["final"]) == ("node", False)
    assert failed["reason"] == "rank 1 was killed by signal 9"
    study.until(lambda: len(run.claims()) == 2, "another attempt begins")
    second = run.claims()[1].start_step
    assert second >= 100
    study.until(lambda: scenario.trained(run, second + 100), "it trains")
    study.send(ray_hosts.pids("w1", "ray::RayTrainWorker"), signal.SIGKILL)
    study.until(lambda: scenario.kinds(run)[ev.FAILED] == 2, "the attempt is over")
    failed = scenario.last(run, ev.FAILED)
    assert (failed["class"], failed["final"]) == ("node", False)
    assert failed["reason"].startswith("the worker of rank")
    assert scenario.ended(run).state is RunState.FINISHED, scenario.story(run)
    assert len(run.claims()) == 3
    assert study.losses(run) == straight


@pytest.mark.long
@pytest.mark.parametrize("ray_hosts", [THREE], indirect=True)
def test_workers_become_fewer_with_a_lost_node_and_more_with_a_new_one(
    ray_hosts: RayHosts, root: Store, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elastic = on_ray(ray_hosts, workers={"min": 1, "max": 3}, resize_seconds=2)
    run = study.start(root, elastic, *LONGER, "checkpoints.every_steps=50")
    study.reached(run, 100)
    assert run.claims()[0].workers == 3
    ray_hosts.kill_node("w2")
    study.until(lambda: len(run.claims()) == 2, "another attempt begins")
    failed = scenario.last(run, ev.FAILED)
    assert (failed["class"], failed["final"]) == ("node", False)
    assert run.claims()[1].workers == 2
    study.until(lambda: scenario.trained(run, run.claims()[1].start_step + 50), "it trains")
    ray_hosts.add("w3")
    study.until(lambda: len(run.claims()) == 3, "a third attempt begins")
    assert run.claims()[2].workers == 3
    grown = scenario.last(run, ev.PREEMPTED)
    assert grown["reason"] == "there is room for 3 workers, 2 are at work; saved"
    assert scenario.last_step(run, 2) == run.claims()[2].start_step  # nothing was lost
    assert scenario.ended(run).state is RunState.FINISHED, scenario.story(run)
    assert scenario.kinds(run)[ev.FAILED] == 1
    base = scenario.base_folder(tmp_path_factory)
    assert study.digests(run) == scenario.planned(digits, base, *LONGER)
    losses, straight = study.losses(run), scenario.yardstick(digits, base, *LONGER)
    assert max(abs(losses[step] - straight[step]) for step in range(1, 21)) < 1e-5


@pytest.mark.parametrize("ray_hosts", [THREE], indirect=True)
def test_a_drained_node_is_left_with_everything_saved(
    ray_hosts: RayHosts, root: Store, straight: dict[int, float]
) -> None:
    run = study.start(root, on_ray(ray_hosts, placement="STRICT_SPREAD"), *LONG)
    study.until(lambda: scenario.trained(run, 50), "it trains")
    places = scenario.meeting(run)["places"]
    leaving = next(place for place in places if place["host"] != "head")
    drain = ray_hosts.ray(
        *("head", "drain-node", "--address", f"{ray_hosts.address('head')}:6379"),
        *("--node-id", leaving["node"], "--reason", "DRAIN_NODE_REASON_PREEMPTION"),
        *("--reason-message", "a test", "--deadline-remaining-seconds", "60"),
    )
    subprocess.run(drain, env=ray_hosts.variables(), check=True, capture_output=True)
    study.until(lambda: scenario.kinds(run)[ev.PREEMPTED], "it makes way")
    left = scenario.last(run, ev.PREEMPTED)
    assert left["class"] == "preempted"
    assert left["reason"] == f"{leaving['host']} is being drained; saved"
    study.until(lambda: len(run.claims()) == 2, "another attempt begins")
    assert scenario.last_step(run, 1) == run.claims()[1].start_step
    assert leaving["node"] not in [place["node"] for place in scenario.meeting(run)["places"]]
    assert scenario.ended(run).state is RunState.FINISHED, scenario.story(run)
    assert scenario.kinds(run)[ev.FAILED] == 0
    assert study.losses(run) == straight


def test_a_killed_driver_stalls_the_run_and_resume_goes_on(
    ray_hosts: RayHosts, root: Store, straight: dict[int, float]
) -> None:
    run = study.start(root, on_ray(ray_hosts), *LONG)
    study.until(lambda: scenario.trained(run, 50), "it trains")
    study.send(study.processes(run, "igpt.clusters.ray.driver"), signal.SIGKILL)
    study.until(lambda: status(run).state is RunState.STALLED, "Ray says so")
    told = status(run)
    assert told.exit_code == 6
    assert "FAILED" in told.reason
    assert "igpt-jobs resume" in told.next
    study.until(lambda: not study.processes(run), "its ranks save and end")
    resume(run)
    assert scenario.ended(run).state is RunState.FINISHED, scenario.story(run)
    assert run.claims()[1].start_step >= 50  # the ranks had saved
    assert study.losses(run) == straight


def test_a_cancelled_run_saves_and_a_waiting_one_ends_at_once(
    ray_hosts: RayHosts, root: Store
) -> None:
    run = study.start(root, on_ray(ray_hosts), *LONG)
    study.until(lambda: scenario.trained(run, 20), "it trains")
    waiting = study.start(root, on_ray(ray_hosts), *LONG, "seed=7")
    study.until(lambda: status(waiting).state is RunState.QUEUED, "the other waits")
    for one in (waiting, run):
        cancel(one)
        assert scenario.ended(one).state is RunState.CANCELLED, scenario.story(one)
        assert status(one).exit_code == 5
    assert not waiting.claims()
    saved = scenario.last(run, ev.CHECKPOINTED)["step"]
    assert saved == scenario.last_step(run, 1)
    study.until(lambda: not study.processes(run), "nothing of it is left")


def test_a_users_error_is_not_tried_again(ray_hosts: RayHosts, root: Store) -> None:
    run = study.start(root, on_ray(ray_hosts, workers=1))
    for info in root.objects("data/digits"):
        if info.key.endswith(".tar"):
            root.delete([info.key])
    end = scenario.ended(run)
    assert end.state is RunState.FAILED, scenario.story(run)
    assert scenario.kinds(run)[ev.REQUEUED] == 0
    assert end.exit_code in (1, 2)


def test_nobody_without_the_token_submits(ray_hosts: RayHosts, root: Store, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    for token, words in ((wrong, "does not know our token"), (None, "wants a token")):
        text = f"kind: ray\naddress: {ray_hosts.server}\n"
        text += f"token_file: {token}\n" if token else ""
        (tmp_path / "guarded.yaml").write_text(text)
        arguments = ("submit", "pretrain", "data=data/digits", "--cluster", "guarded.yaml")
        done = igpt(*arguments, folder=tmp_path, store=root.uri)
        assert done.returncode == 3, done.stderr
        assert words in done.stderr
        assert "ray get-auth-token" in done.stderr
        assert root.children("runs") == []
