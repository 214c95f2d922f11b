"""Word of a change of state, by real commands and a real HTTP server."""

import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from igpt.clusters.local.place import process_started
from igpt.clusters.notify import Message, NotifyConfig, document, environment, notify, text
from igpt.config import Strict, load
from igpt.errors import UserError
from tests.support import study

SECRET = "T0123-B4567-verysecret"

MESSAGE = Message(
    run="tiny-1a2b3c4d",
    uri="s3://bucket/runs/tiny-1a2b3c4d",
    state="failed",
    time=1795500000.0,
    host="n1",
    reason="node: rank 1 was killed by signal 9",
    next="igpt-jobs resume tiny-1a2b3c4d tries again",
    attempt=3,
    step=120,
    total=400,
    loss=2.31,
)


class Server:
    """An HTTP server that notes what it gets and answers as it was told, then with 200."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, Any]]] = []  # path and document
        self.answers: list[int | Callable[[BaseHTTPRequestHandler], None]] = []
        self.done = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/json"
                outer.got.append((self.path, json.loads(body)))
                answer = outer.answers.pop(0) if outer.answers else 200
                if callable(answer):
                    answer(self)
                    return
                self.send_response(answer, f"about {SECRET}")
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *unused: object) -> None:
                """Quiet."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self.url = f"{self.address}/services/{SECRET}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()

    def stop(self) -> None:
        self.done.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def closed() -> Iterator[str]:
    """An address where nobody listens, and nobody else will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def python(code: str) -> NotifyConfig:
    return NotifyConfig(command=(sys.executable, "-c", code))


def test_a_webhook_gets_the_document_with_the_text(server: Server) -> None:
    assert notify(NotifyConfig(webhook=server.url), MESSAGE) == []
    assert server.got == [(f"/services/{SECRET}", document(MESSAGE))]
    assert server.got[0][1]["text"] == text(MESSAGE)


def test_a_webhook_that_fails_for_a_moment_gets_it_in_the_end(server: Server) -> None:
    server.answers = [503, 429]
    assert notify(NotifyConfig(webhook=server.url), MESSAGE) == []
    assert len(server.got) == 3


def test_a_webhook_that_goes_on_failing_is_given_up(server: Server) -> None:
    server.answers = [500] * 9
    problems = notify(NotifyConfig(webhook=server.url), MESSAGE)
    assert problems == ["notification of failed by webhook: answered 500 Internal Server Error"]
    assert len(server.got) == 3


@pytest.mark.parametrize(("status", "words"), [(404, "404 Not Found"), (302, "302 Found")])
def test_what_will_not_pass_is_not_tried_again(server: Server, status: int, words: str) -> None:
    server.answers = [status]
    problems = notify(NotifyConfig(webhook=server.url), MESSAGE)
    assert problems == [f"notification of failed by webhook: answered {words}"]
    assert len(server.got) == 1


def test_a_webhook_that_does_not_answer_is_not_waited_for_and_told_once(server: Server) -> None:
    server.answers = [lambda handler: server.done.wait() and None]
    started = time.monotonic()
    problems = notify(NotifyConfig(webhook=server.url), MESSAGE, seconds=1)
    assert time.monotonic() - started < 5
    assert problems == ["notification of failed by webhook: no answer in time"]
    assert len(server.got) == 1


def test_a_webhook_that_answers_drop_by_drop_is_not_waited_for(server: Server) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
        while not server.done.wait(0.1):
            handler.wfile.write(b"x")

    server.answers = [drip]
    started = time.monotonic()
    problems = notify(NotifyConfig(webhook=server.url), MESSAGE, seconds=1)
    assert time.monotonic() - started < 5
    assert problems == ["notification of failed by webhook: no answer within 1 s"]


def test_a_webhook_that_hangs_up_is_tried_again(server: Server) -> None:
    server.answers = [lambda handler: None]
    assert notify(NotifyConfig(webhook=server.url), MESSAGE) == []
    assert len(server.got) == 2


def test_a_webhook_where_nobody_listens_is_a_problem_without_its_address(closed: str) -> None:
    problems = notify(NotifyConfig(webhook=f"{closed}/{SECRET}"), MESSAGE, seconds=5)
    assert problems == ["notification of failed by webhook: Connection refused"]


def test_the_address_comes_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", f" {server.url}\n")
    assert notify(NotifyConfig(webhook="env:HOOK"), MESSAGE) == []
    assert len(server.got) == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "HOOK is not set where the run is supervised"),
        (f"ftp://hooks/{SECRET}", "the URL in HOOK is not one of http:// or https://"),
        (f"file:///{SECRET}", "the URL in HOOK is not one of http:// or https://"),
        (f"http://hooks:port/{SECRET}", "the URL in HOOK is not one of http:// or https://"),
        (f"http://hooks/a {SECRET}", "the URL in HOOK is not one of http:// or https://"),
        (f"http://hooks/ü{SECRET}", "the URL in HOOK is not one of http:// or https://"),
        (f"http://me:{SECRET}@hooks/", "the URL in HOOK holds a user name or a password"),
    ],
)
def test_an_address_that_cannot_be_used_is_not_shown(
    value: str | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv("HOOK", value)
    (problem,) = notify(NotifyConfig(webhook="env:HOOK"), MESSAGE)
    assert problem.startswith(f"notification of failed by webhook: {words}")
    assert SECRET not in problem


def test_the_proxy_of_the_environment_is_used_but_not_for_this_machine(
    server: Server, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.setenv("HOOK", "http://hooks.invalid/in")
    assert notify(NotifyConfig(webhook="env:HOOK"), MESSAGE) == []
    monkeypatch.setenv("http_proxy", closed)
    assert notify(NotifyConfig(webhook=server.url), MESSAGE) == []
    assert [path for path, _ in server.got] == [
        "http://hooks.invalid/in",
        f"/services/{SECRET}",
    ]


def test_a_command_gets_the_document_and_the_environment(tmp_path: Path) -> None:
    code = (
        "import json, os, sys\n"
        "known = {name: value for name, value in os.environ.items() if name[:5] == 'IGPT_'}\n"
        f"with open({str(tmp_path / 'got')!r}, 'w') as got:\n"
        "    json.dump([json.load(sys.stdin), known], got)\n"
    )
    assert notify(python(code), MESSAGE) == []
    given, variables = json.loads((tmp_path / "got").read_text())
    assert given == document(MESSAGE)
    assert variables == environment(MESSAGE)
    assert (variables["IGPT_RUN"], variables["IGPT_STEP"]) == ("tiny-1a2b3c4d", "120")


def test_a_command_that_fails_is_a_problem_with_its_last_words() -> None:
    (problem,) = notify(
        python("import sys; print('one', flush=True); sys.exit('no such list')"), MESSAGE
    )
    assert problem == (
        f"notification of failed by command: {sys.executable} ended with exit code 1: no such list"
    )


def test_a_command_that_is_not_there_is_a_problem() -> None:
    (problem,) = notify(NotifyConfig(command=("/nowhere/tell",)), MESSAGE)
    assert problem == (
        "notification of failed by command: /nowhere/tell cannot be run: No such file or directory"
    )


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = f"sleep 600 & echo $! > {started}; echo waiting; wait"
    before = time.monotonic()
    (problem,) = notify(NotifyConfig(command=("sh", "-c", script)), MESSAGE, seconds=2)
    assert time.monotonic() - before < 7
    assert problem == (
        "notification of failed by command: sh had not ended in time and was killed: waiting"
    )
    child = int(started.read_text())
    study.until(lambda: process_started(child) is None, "its child is gone", 10)


def test_what_a_command_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    started = tmp_path / "started"
    script = f"sleep 600 & echo $! > {started}"
    before = time.monotonic()
    try:
        assert notify(NotifyConfig(command=("sh", "-c", script)), MESSAGE) == []
        assert time.monotonic() - before < 5
    finally:
        os.kill(int(started.read_text()), 9)


def test_command_and_webhook_are_told_both_and_neither_stops_the_other(server: Server) -> None:
    server.answers = [404]
    config = NotifyConfig(command=("false",), webhook=server.url)
    assert notify(config, MESSAGE) == [
        "notification of failed by command: false ended with exit code 1",
        "notification of failed by webhook: answered 404 Not Found",
    ]


def test_only_the_states_that_were_asked_for_are_told(server: Server) -> None:
    config = NotifyConfig(on=("finished",), webhook=server.url, command=("false",))
    assert notify(config, MESSAGE) == []
    assert server.got == []


def test_nothing_goes_out_by_default() -> None:
    assert NotifyConfig() == NotifyConfig(on=("finished", "failed"), command=None, webhook=None)
    assert notify(NotifyConfig(), MESSAGE) == []


class Around(Strict):
    """A file with a notification in it."""

    notify: NotifyConfig = NotifyConfig()


@pytest.mark.parametrize(
    "webhook",
    [
        f"https://hooks.example.com/services/{SECRET}",
        f"http://localhost/in?token={SECRET}",
        f"http://me:{SECRET}@localhost/in",
        f"env:{SECRET}",  # not a name: somebody has put the value there
        f"ftp://localhost/{SECRET}",
    ],
)
def test_an_address_that_may_be_a_secret_is_refused_and_not_shown(webhook: str) -> None:
    with pytest.raises(UserError) as raised:
        load(Around, f"notify:\n  webhook: {webhook}\n", "slurm.yaml")
    assert "slurm.yaml, line 1: notify: webhook" in str(raised.value)
    assert "env:NAME" in str(raised.value)
    assert SECRET not in str(raised.value)
    with pytest.raises(UserError) as raised:
        load(Around, "", "slurm.yaml", [f"notify.webhook={webhook}"])
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("webhook", ["env:HOOK", "http://localhost:80/a", "http://[::1]/a", None])
def test_a_name_and_an_address_on_this_machine_are_taken(webhook: str | None) -> None:
    written = json.dumps({"notify": {"webhook": webhook, "command": ["tell", "me"]}})
    assert load(Around, written, "slurm.yaml").notify == NotifyConfig(
        webhook=webhook, command=("tell", "me")
    )


@pytest.mark.parametrize("wrong", ["on: [ended]", "command: []", "command: tell me"])
def test_other_mistakes_name_their_line(wrong: str) -> None:
    with pytest.raises(UserError, match=r"slurm\.yaml, line 2: notify"):
        load(Around, f"notify:\n  {wrong}\n", "slurm.yaml")


def test_the_text_says_what_is_known() -> None:
    assert text(MESSAGE) == (
        "tiny-1a2b3c4d failed (attempt 3, step 120 of 400, loss 2.3100)\n"
        "node: rank 1 was killed by signal 9\n"
        "igpt-jobs resume tiny-1a2b3c4d tries again"
    )
    bare = Message("tiny-1a2b3c4d", "store/runs/tiny-1a2b3c4d", "started", 0.0, "n1")
    assert text(bare) == "tiny-1a2b3c4d started"
    assert "IGPT_LOSS" not in environment(bare)
    assert "IGPT_REASON" not in environment(bare)


def test_a_loss_that_is_no_number_is_text_only() -> None:
    lost = Message("tiny", "store/runs/tiny", "failed", 0.0, "n1", loss=math.nan)
    assert document(lost)["loss"] is None
    assert "loss nan" in document(lost)["text"]
