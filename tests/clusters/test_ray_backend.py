"""What a Ray cluster file may say, what is submitted, and what an attempt's end is called."""

import json
import os
import shlex
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from igpt.clusters.base import Launch
from igpt.clusters.files import parse_cluster
from igpt.clusters.ranks.exits import write_exits
from igpt.clusters.ray import client
from igpt.clusters.ray.backend import RayBackend, job_id, submission
from igpt.clusters.ray.config import RayCluster
from igpt.config import read_yaml
from igpt.errors import Unreachable, UserError
from igpt.runs import Run
from igpt.runs import events as ev
from igpt.runs.failures import FailureClass, RankExit, Verdict
from igpt.runs.record import open_run
from igpt.storage import Store, open_store

LAUNCH = Launch(
    "s3://bucket/runs/pretrain-1a2b3c4d", 3, "c0de", environment={"IGPT_S3_REGION": "eu-1"}
)


def parse(text: str) -> RayCluster:
    found = parse_cluster(read_yaml(f"kind: ray\n{text}", "ray.yaml"))
    assert isinstance(found, RayCluster)
    return found


def test_the_number_of_workers_is_fixed_or_within_bounds() -> None:
    assert (parse("workers: 8").least_workers, parse("workers: 8").most_workers) == (8, 8)
    elastic = parse("workers: {min: 4, max: 16}")
    assert (elastic.least_workers, elastic.most_workers) == (4, 16)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("workers: 0", ["workers", "at least 1"]),
        ("workers: {min: 3, max: 2}", ["min 3 is larger than max 2"]),
        ("workers: {min: 0, max: 2}", ["workers", "greater than or equal to 1"]),
        ("workers: {minimum: 1, max: 2}", ["minimum"]),
        ("address: head:8265", ["address", "http://head-node:8265"]),
        ("variables: {HF_TOKEN: abc}", ["HF_TOKEN", "Ray shows these to everybody"]),
        ("variables: {AWS_SECRET_ACCESS_KEY: abc}", ["AWS_SECRET_ACCESS_KEY"]),
        ("placement: TIGHT", ["placement", "STRICT_PACK"]),
        ("address: http://head:port", ["address", "http://head-node:8265"]),
        ("address: http://me:word@head", ["no user or password"]),
        ("resources_per_worker: {GPU: 1}", ["GPU", "gpus_per_worker"]),
        ("resources_per_worker: {nvme: -1}", ["greater than 0"]),
        ("variables: {CUDA_VISIBLE_DEVICES: '0'}", ["CUDA_VISIBLE_DEVICES", "gpus_per_worker"]),
        ("python: 'python \"'", ["python", "a command"]),
        (
            "python: env AWS_SECRET_ACCESS_KEY=abc python",
            ["python", "a secret (AWS_SECRET_ACCESS_KEY)"],
        ),
        ("gpus: 1", ["gpus"]),
    ],
)
def test_a_wrong_field_is_named_with_what_was_expected(text: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        parse(text)
    assert "ray.yaml" in str(refusal.value)
    assert "abc" not in str(refusal.value)
    for part in parts:
        assert part in str(refusal.value)


def test_a_submission_holds_the_runs_address_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "sesame")
    cluster = parse("variables: {NCCL_DEBUG: INFO}\npython: exec python3")
    made = submission(cluster, LAUNCH, "job-a3", "/code")
    assert shlex.split(made["entrypoint"]) == [
        *("exec", "python3", "-u", "-m", "igpt.clusters.ray.driver"),
        *("s3://bucket/runs/pretrain-1a2b3c4d", "3"),
    ]
    assert made["submission_id"] == "job-a3"
    assert made["runtime_env"] == {
        "env_vars": {"IGPT_S3_REGION": "eu-1", "NCCL_DEBUG": "INFO"},
        "working_dir": "/code",
        "excludes": [".git"],
    }
    shown = RayBackend(cluster).plan(LAUNCH)
    assert "sesame" not in json.dumps(made) + shown.text + str(shown.facts)


def test_equal_work_in_two_stores_or_begun_again_is_another_job_and_each_attempt_is_one(
    tmp_path: Path,
) -> None:
    ids = set()
    for place in ("a", "b"):
        run = open_run(open_store(str(tmp_path / place)), "tiny-12345678")
        run.event(ev.SUBMITTED, writer="client", attempt=1)
        ids |= {job_id(run, 1), job_id(run, 2)}
        run.event(ev.SUBMITTED, writer="client", attempt=2)  # resumed: the same run
        assert job_id(run, 1) in ids
        run.delete()
        run.event(ev.SUBMITTED, writer="client", attempt=1)
        ids.add(job_id(run, 1))
    assert len(ids) == 6


def test_the_token_is_found_where_ray_finds_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    by_file = {"RAY_AUTH_TOKEN_PATH": str(file)}
    assert client.token_of(RayCluster(), {"RAY_AUTH_TOKEN": " given "}) == "given"
    assert client.token_of(RayCluster(), by_file) == "from-file"
    assert client.token_of(RayCluster(), {}) is None
    named = RayCluster(token_file=str(file))
    assert client.token_of(named, {"RAY_AUTH_TOKEN": "given"}) == "from-file"
    home = Path.home() / ".ray" / "auth_token"
    home.parent.mkdir()
    home.write_text("of-the-home")
    assert client.token_of(RayCluster(), {}) == "of-the-home"
    file.write_text("two\nwords")
    with pytest.raises(UserError, match="no token") as refusal:
        client.token_of(RayCluster(), by_file)
    assert "words" not in str(refusal.value)
    with pytest.raises(UserError, match="is not there"):
        client.token_of(RayCluster(token_file=str(tmp_path / "none")), {})


def test_a_cluster_that_is_not_there_is_told_apart_from_one_that_is_something_else(
    tmp_path: Path,
) -> None:
    with pytest.raises(Unreachable, match="cannot be reached"):
        RayBackend(RayCluster(address="http://127.0.0.1:9")).check()


def test_a_server_that_does_not_answer_is_waited_for_once_by_whoever_looks_at_many_runs(
    monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(client, "_AWAY", {})
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(0.0)
        backend = RayBackend(RayCluster(address=f"http://127.0.0.1:{mute.getsockname()[1]}"))
        for number in range(5):
            run = open_run(store, f"tiny-0000000{number}")
            run.event(ev.SUBMITTED, writer="client", attempt=1)
            seen = backend.look(run)
            assert seen.alive is None
            assert "cannot be reached" in seen.reason
        mute.accept()[0].close()
        with pytest.raises(BlockingIOError):
            mute.accept()


class Server:
    """An HTTP server, which may be somebody's proxy: notes what it is asked, with which token."""

    def __init__(self, status: int, answer: object) -> None:
        self.got: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.got.append((self.path, self.headers["Authorization"]))
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *unused: object) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,))
        self.thread.start()

    def stop(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The proxy that the user's shell names, and that lets nobody through."""
    server = Server(403, "Forbidden by the site")
    monkeypatch.setenv("http_proxy", f"http://me:sesame@{server.address}")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the-token")
    yield server
    server.stop()


def test_what_is_asked_of_this_machine_and_the_token_go_past_the_proxy(proxy: Server) -> None:
    import requests

    head = Server(200, {"session_name": "s"})
    try:
        cluster = RayCluster(address=f"http://{head.address}")
        assert client.ask(cluster, "/api/version") == {"session_name": "s"}
        with client._no_other(cluster):  # as Ray's SDK asks
            headers = client.headers_of(cluster)
            assert requests.get(cluster.server, headers=headers, timeout=10).status_code == 200
    finally:
        head.stop()
    assert [token for _, token in head.got] == ["Bearer the-token"] * 2
    assert proxy.got == []
    assert not {"no_proxy", "NO_PROXY", "RAY_API_SERVER_ADDRESS"} & os.environ.keys()


def test_a_proxy_on_the_way_is_named_in_what_goes_wrong_without_its_password(
    proxy: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = RayCluster(address="http://ray.invalid:8265")
    with pytest.raises(Unreachable) as refused:
        client.ask(cluster, "/api/version")
    assert [path for path, _ in proxy.got] == ["http://ray.invalid:8265/api/version"]
    way = f"by way of the proxy {proxy.address}, which no_proxy=ray.invalid would leave out"
    assert f"does not know our token; asked {way}" in str(refused.value)
    assert "sesame" not in str(refused.value)
    assert f"cannot be reached {way}: why" in str(client.unreachable(cluster, "why"))
    monkeypatch.setenv("no_proxy", "ray.invalid")
    assert "cannot be reached: why" in str(client.unreachable(cluster, "why"))


@pytest.fixture
def run(store: Store) -> Run:
    return open_run(store, "tiny-12345678")


def told(run: Run, *exits: RankExit | None) -> None:
    """Records the ranks' places and ends; None is one that said nothing."""
    place = {"node": "n", "host": "h", "address": "1.2.3.4", "port": 1}
    body = {"launch": "word", "places": [place] * len(exits)}
    run.record.put("attempts/0001/meeting.json", json.dumps(body).encode())
    for rank, one in enumerate(exits):
        if one is not None:
            write_exits(run, 1, rank, [one], bad=one.code not in (0, 75))


def verdict(run: Run, error: Any = None, asked: str | None = None) -> Verdict:
    from igpt.clusters.ray.verdict import verdict_of

    return verdict_of(run, 1, error, asked)


def test_what_the_ranks_said_decides(run: Run) -> None:
    told(run, RankExit(0, 75), RankExit(1, 75))
    assert verdict(run).failure is FailureClass.PREEMPTED
    assert verdict(run, asked="there is room").reason == "there is room; saved"
    said = RankExit(1, 2, FailureClass.USER_ERROR, "no such data")
    told(run, RankExit(0, 1, torn_down=True), said)
    assert verdict(run) == Verdict("failed", FailureClass.USER_ERROR, "no such data")


def test_a_worker_that_went_without_a_word_is_a_lost_one_unless_a_rank_named_the_cause(
    run: Run,
) -> None:
    from ray.exceptions import RayActorError
    from ray.train.v2.api.exceptions import WorkerGroupError

    def lost(message: str) -> WorkerGroupError:
        return WorkerGroupError("one", {1: RayActorError(error_msg=message)})

    gone = lost("The actor died.\nThe node has died.")
    told(run, RankExit(0, 1, FailureClass.CRASH, "RuntimeError: Connection closed by peer"), None)
    assert verdict(run, gone) == Verdict(
        "failed", FailureClass.NODE, "the worker of rank 1: The node has died."
    )
    assert verdict(run).failure is FailureClass.NODE
    assert verdict(run, lost("memory pressure")).failure is FailureClass.OUT_OF_MEMORY
    drained = verdict(run, gone, asked="w1 is being drained")
    assert (drained.outcome, drained.failure) == ("stopped", FailureClass.PREEMPTED)
    told(run, RankExit(0, 3, FailureClass.STORAGE, "the store is full"), None)
    assert verdict(run, gone).failure is FailureClass.STORAGE


def test_what_our_own_code_raised_around_a_rank_keeps_its_class(run: Run) -> None:
    from ray.train.v2.api.exceptions import WorkerGroupError

    for error, failure in (
        (UserError("no such store on this node"), FailureClass.USER_ERROR),
        (Unreachable("no credentials"), FailureClass.STORAGE),
        (OSError("a bug"), FailureClass.CRASH),
    ):
        told(run, RankExit(0, 75), None)
        assert verdict(run, WorkerGroupError("one", {1: error})).failure is failure


def test_an_attempt_that_never_began_was_stopped_or_could_not_start(run: Run) -> None:
    from ray.train.v2.api.exceptions import ControllerError

    assert verdict(run, asked="cancelled").outcome == "stopped"
    broken = verdict(run, ControllerError(RuntimeError("no such image")))
    assert broken.failure is FailureClass.CRASH
    assert "could not start" in broken.reason


def test_a_result_is_the_end_whatever_became_of_the_workers(run: Run) -> None:
    run.record.put("result.json", b"{}")
    assert verdict(run).outcome == "finished"
