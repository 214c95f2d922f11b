"""What a store in a bucket promises when server, network or keys are not as they should be.

The server is real. What a real one cannot be made to do is done to its answers by a proxy.
"""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import igpt.storage.s3 as s3
from igpt.errors import DataCorrupt, NotFound, Unreachable, UserError
from igpt.storage import S3Settings, Store, check_writable, open_store
from igpt.storage.s3_client import forget_clients, s3_client
from tests.support.aws_server import aws_like_server
from tests.support.proxy import meddling_proxy
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

pytestmark = pytest.mark.s3

MISSING = "s3://no-bucket-of-this-name"


def uses(store: Store, folder: Path) -> dict[str, Callable[[], object]]:
    """Every method that asks the server."""
    file = folder / "file"
    file.write_bytes(b"1")
    return {
        "get": lambda: store.get("a"),
        "put": lambda: store.put("a", b""),
        "create": lambda: store.create("a", b""),
        "upload": lambda: store.upload("a", file),
        "download": lambda: store.download("a", folder / "target"),
        "objects": lambda: store.objects(),
        "children": lambda: store.children(),
        "exists": lambda: store.exists("a"),
        "delete": lambda: store.delete(["a"]),
    }


def complaint(use: Callable[[], object]) -> str:
    with pytest.raises(Unreachable) as caught:
        use()
    assert caught.value.exit_code == 3
    assert caught.value.mend
    assert "igpt-secret" not in str(caught.value)
    return str(caught.value)


def test_a_missing_bucket_is_named_by_every_method(
    s3_bucket: str, s3_server: S3Server, tmp_path: Path
) -> None:
    for use in uses(open_store(MISSING), tmp_path).values():
        text = complaint(use)
        assert f"the bucket 'no-bucket-of-this-name' at {s3_server.endpoint} does not exist" in text
        assert "Create the bucket" in text
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    ("variable", "code"),
    [("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"), ("AWS_ACCESS_KEY_ID", "InvalidAccessKey")],
)
def test_wrong_credentials_are_told_from_other_errors(
    s3_bucket: str, variable: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "WRONG")
    forget_clients()
    for use in uses(open_store(s3_bucket), tmp_path).values():
        text = complaint(use)
        assert "refuses our credentials" in text
        assert code in text
        assert "AWS_SECRET_ACCESS_KEY" in text


def test_no_credentials_are_told_at_once(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    forget_clients()
    for use in uses(open_store(s3_bucket), tmp_path).values():
        text = complaint(use)
        assert "needs credentials and there are none" in text
        assert "AWS_ACCESS_KEY_ID" in text


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Rewrites ~/.aws/credentials, where all keys are from then on."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    forget_clients()
    folder = Path.home() / ".aws"
    folder.mkdir(exist_ok=True)

    def write(**values: str) -> None:
        lines = [f"{name} = {value}\n" for name, value in values.items()]
        (folder / "credentials").write_text("[default]\n" + "".join(lines))

    yield write
    forget_clients()


GOOD = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}


@pytest.mark.parametrize("name", ["get", "upload", "download", "objects", "exists"])
def test_keys_that_were_refused_are_read_anew(
    s3_bucket: str, keys: Callable[..., None], name: str, tmp_path: Path
) -> None:
    store = open_store(s3_bucket)
    keys(**GOOD)
    store.put("a", b"1")
    forget_clients()
    keys(**GOOD | {"aws_secret_access_key": "old"})
    use = uses(store, tmp_path)[name]
    assert "refuses our credentials (SignatureDoesNotMatch" in complaint(use)
    keys(**GOOD)
    use()


@pytest.mark.parametrize("name", ["get", "put", "upload", "download", "objects", "exists"])
def test_a_token_that_expires_on_the_way_is_told_and_the_next_one_is_used(
    keys: Callable[..., None], name: str, tmp_path: Path
) -> None:
    with aws_like_server() as aws:
        store = open_store("s3://bucket", S3Settings(endpoint=aws.endpoint, region=aws.region))
        use = uses(store, tmp_path)[name]
        keys(**GOOD, aws_session_token="first")
        aws.token = "first"
        store.put("a", b"1")
        aws.token = "second"
        text = complaint(use)
        assert "refuses our credentials (ExpiredToken" in text
        assert "region" not in text
        keys(**GOOD, aws_session_token="second")
        use()


@pytest.mark.parametrize("refusal", ["none", "AccessDenied"])
def test_keys_that_were_missing_or_without_rights_are_read_anew(
    keys: Callable[..., None], refusal: str
) -> None:
    with aws_like_server() as aws:
        aws.refusal = refusal
        store = open_store("s3://bucket", S3Settings(endpoint=aws.endpoint, region=aws.region))
        if refusal != "none":
            keys(**GOOD, aws_session_token="of another account")
        complaint(lambda: store.get("a"))
        keys(**GOOD, aws_session_token=aws.token)
        store.put("a", b"1")


@pytest.mark.parametrize("name", ["get", "download", "exists"])
def test_a_wrong_region_is_told_from_wrong_keys(
    keys: Callable[..., None], name: str, tmp_path: Path
) -> None:
    with aws_like_server() as aws:
        keys(**GOOD, aws_session_token=aws.token)
        store = open_store("s3://bucket", S3Settings(endpoint=aws.endpoint, region="us-west-2"))
        text = complaint(uses(store, tmp_path)[name])
        assert "is not served in our region, us-west-2 (AuthorizationHeaderMalformed" in text
        assert "IGPT_S3_REGION" in text


def test_a_bare_refusal_of_one_object_is_told_as_it_is(s3_bucket: str, s3_server: S3Server) -> None:
    open_store(s3_bucket).put("a", b"1")
    for status, words in (("403 Forbidden", "our account (403"), ("400 Bad", "answered 400")):
        bare = f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        answers = Answers("HEAD", lambda _, bare=bare: bare.encode(), times=99)
        with meddling_proxy(s3_server.endpoint, answers) as endpoint:
            store = open_store(s3_bucket, S3Settings(endpoint=endpoint))
            assert words in complaint(lambda store=store: store.exists("a"))


def test_an_object_that_goes_before_it_is_read_is_missing(
    s3_bucket: str, s3_server: S3Server, tmp_path: Path
) -> None:
    open_store(s3_bucket).put("a", b"1")
    heads = iter([False, True])
    gone = b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    answers = Answers("HEAD", lambda answer: gone if next(heads) else answer, times=2)
    with meddling_proxy(s3_server.endpoint, answers) as endpoint:
        store = open_store(s3_bucket, S3Settings(endpoint=endpoint))
        with pytest.raises(NotFound, match=f"there is no {s3_bucket}/a"):
            store.download("a", tmp_path / "file")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("credential_process = /no/such/tool", "/no/such/tool"),
        ("credential_process = /bin/echo hello", "Expecting value"),
        ("role_arn = arn:aws:iam::1:role/x\nweb_identity_token_file = /no/token", "/no/token"),
    ],
)
def test_credentials_that_cannot_be_fetched_are_told(
    lines: str, message: str, tmp_path: Path
) -> None:
    forget_clients()
    folder = Path.home() / ".aws"
    folder.mkdir()
    (folder / "config").write_text(f"[default]\n{lines}\n")
    store = open_store("s3://bucket", S3Settings(endpoint="http://127.0.0.1:9", region="x"))
    for name in ("get", "download"):
        text = complaint(uses(store, tmp_path)[name])
        assert "the credentials for S3 cannot be fetched" in text
        assert message in text


def test_a_role_that_is_refused_is_not_taken_for_a_refusal_of_the_bucket(
    keys: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with aws_like_server() as aws:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", aws.endpoint)
        keys(**GOOD, aws_session_token="expired")
        (Path.home() / ".aws" / "config").write_text(
            "[profile lab]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = default\n"
        )
        settings = S3Settings(endpoint=aws.endpoint, region=aws.region, profile="lab")
        text = complaint(lambda: open_store("s3://bucket", settings).get("a"))
        assert "the credentials for S3 cannot be fetched" in text
        assert "AssumeRole" in text


def test_a_line_break_in_a_secret_is_told_without_the_secret(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hunter2\nhunter3")
    forget_clients()
    text = complaint(lambda: open_store(s3_bucket).get("a"))
    assert "there is a line break in our credentials" in text
    assert "hunter" not in text


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("address", ["localhost:8333", "me:hunter2@localhost:8333", "http://"])
def test_an_endpoint_that_is_no_address_names_its_variable(
    variable: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, address)
    forget_clients()
    with pytest.raises(UserError, match=rf"http://127.*Set {variable} so") as caught:
        open_store("s3://bucket", S3Settings(region="us-east-1")).get("a")
    assert "hunter2" not in str(caught.value)


def test_a_region_that_cannot_be_is_the_users() -> None:
    settings = S3Settings(endpoint="http://127.0.0.1:9", region="us east")
    with pytest.raises(UserError, match=r"'us east'.*IGPT_S3_REGION"):
        open_store("s3://bucket", settings).get("a")


def test_an_unknown_profile_is_named(s3_bucket: str) -> None:
    store = open_store(s3_bucket, S3Settings(profile="lab"))
    text = complaint(lambda: store.get("a"))
    assert "(lab)" in text
    assert "IGPT_S3_PROFILE" in text


def test_a_profile_and_an_endpoint_of_the_settings_are_used(
    s3_bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.delenv(name)
        if name.endswith(("ID", "KEY")):
            folder = Path.home() / ".aws"
            folder.mkdir(exist_ok=True)
            with (folder / "credentials").open("a") as file:
                file.write(("" if file.tell() else "[lab]\n") + f"{name.lower()} = {value}\n")
    forget_clients()
    settings = S3Settings(endpoint=s3_server.endpoint, region="us-east-1", profile="lab")
    open_store(s3_bucket, settings).put("a", b"1")
    assert open_store(s3_bucket, settings).get("a") == b"1"


def test_a_dead_server_is_given_up_within_fifteen_seconds(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = "http://127.0.0.1:9"  # the port of the discard service, where nobody listens
    start = time.monotonic()
    text = complaint(lambda: open_store(s3_bucket, S3Settings(endpoint=endpoint)).get("a"))
    assert time.monotonic() - start < 15
    assert endpoint in text
    assert s3_bucket.removeprefix("s3://") in text
    assert "IGPT_S3_ENDPOINT" in text


def test_a_server_that_is_killed_on_the_way_is_unreachable(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    server = S3Server(tmp_path / "server")
    try:
        store = open_store(f"s3://{server.make_bucket()}", S3Settings(endpoint=server.endpoint))
        store.put("a", b"1")
        file = tmp_path / "file"
        file.write_bytes(bytes(40 << 20))
        with ThreadPoolExecutor(1) as pool:
            upload = pool.submit(complaint, lambda: store.upload("big", file))
            server.kill()
            assert server.endpoint in upload.result()
    finally:
        server.stop()


def test_a_secret_in_the_endpoint_is_not_shown(
    s3_bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = urlsplit(s3_server.endpoint).netloc
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:hunter2@{address}")
    forget_clients()
    text = complaint(lambda: open_store(MISSING).get("a"))
    assert address in text
    assert "hunter2" not in text


class Answers:
    """Meddles with the answers to some requests, the first `times` of them."""

    def __init__(self, method: str, change: Callable[[bytes], bytes], times: int = 1) -> None:
        self.method = method.encode()
        self.change = change
        self.times = times
        self.requests: list[bytes] = []

    def __call__(self, request: bytes, answer: bytes) -> bytes:
        self.requests.append(request)
        if not request.startswith(self.method) or self.times <= 0:
            return answer
        self.times -= 1
        return self.change(answer)


def refusal(status: str, code: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No</Message></Error>"
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def test_a_create_whose_answer_was_lost_is_known_as_ours(
    s3_bucket: str, s3_server: S3Server
) -> None:
    answers = Answers("PUT", lambda answer: b"")
    with meddling_proxy(s3_server.endpoint, answers) as endpoint:
        store = open_store(s3_bucket, S3Settings(endpoint=endpoint))
        assert store.create("claim", b"mine")
        assert answers.times == 0
        assert sum(request.startswith(b"PUT") for request in answers.requests) >= 2
        answers.times = 1
        assert not store.create("claim", b"mine")
    assert open_store(s3_bucket).get("claim") == b"mine"


def test_a_create_that_met_another_one_is_tried_again(
    s3_bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PAUSES", (0.0, 0.0))
    conflict = refusal("409 Conflict", "ConditionalRequestConflict")
    answers = Answers("PUT", lambda answer: conflict)
    with meddling_proxy(s3_server.endpoint, answers) as endpoint:
        store = open_store(s3_bucket, S3Settings(endpoint=endpoint))
        assert store.create("claim", b"mine")
        answers.times = 3
        assert "ConditionalRequestConflict" in complaint(lambda: store.create("other", b""))


def test_an_answer_that_breaks_off_is_read_again(
    s3_bucket: str, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PAUSES", (0.0,))
    data = bytes(range(256)) * 4096
    open_store(s3_bucket).put("a", data)
    answers = Answers("GET", lambda answer: answer[: len(answer) // 2])
    with meddling_proxy(s3_server.endpoint, answers) as endpoint:
        store = open_store(s3_bucket, S3Settings(endpoint=endpoint))
        assert store.get("a") == data
        answers.times = 1
        store.download("a", tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == data
        assert answers.times == 0
        answers.times = 2
        complaint(lambda: store.get("a"))


def test_an_object_that_is_not_what_was_written_is_corrupt(
    s3_bucket: str, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PAUSES", (0.0,))
    store = open_store(s3_bucket)
    store.put("a", b"right")
    bucket = s3_bucket.removeprefix("s3://")
    metadata = s3_server.client.head_object(Bucket=bucket, Key="a")["Metadata"]
    s3_server.client.put_object(Bucket=bucket, Key="a", Body=b"wrong", Metadata=metadata)
    for use in (lambda: store.get("a"), lambda: store.download("a", tmp_path / "file")):
        with pytest.raises(DataCorrupt, match=f"{s3_bucket}/a arrived as 5 bytes with sha256"):
            use()
    assert not (tmp_path / "file").exists()


def test_objects_of_other_programs_are_read(
    s3_bucket: str, s3_server: S3Server, tmp_path: Path
) -> None:
    bucket = s3_bucket.removeprefix("s3://")
    s3_server.client.put_object(Bucket=bucket, Key="folder/a", Body=b"1")
    s3_server.client.put_object(Bucket=bucket, Key="made-visible/", Body=b"")
    store = open_store(s3_bucket)
    assert store.get("folder/a") == b"1"
    store.download("folder/a", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"1"
    assert [item.key for item in store.objects()] == ["folder/a"]


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        ("301 Moved", "PermanentRedirect", "IGPT_S3_REGION"),
        ("403 Forbidden", "AccessDenied", "s3:PutObject"),
        ("403 Forbidden", "RequestTimeTooSkewed", "Set the clock"),
        ("501 Not Implemented", "NotImplemented", "NotImplemented: No"),
    ],
)
def test_a_refusal_says_what_to_do(
    s3_bucket: str, s3_server: S3Server, status: str, code: str, message: str
) -> None:
    answers = Answers("PUT", lambda answer: refusal(status, code), times=99)
    with meddling_proxy(s3_server.endpoint, answers) as endpoint:
        store = open_store(s3_bucket, S3Settings(endpoint=endpoint))
        assert message in complaint(lambda: store.create("a", b""))


def test_a_delete_that_failed_for_some_is_told(s3_bucket: str, s3_server: S3Server) -> None:
    body = (
        "<DeleteResult><Error><Key>a</Key><Code>AccessDenied</Code><Message>No</Message></Error>"
        "</DeleteResult>"
    )
    answer = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    answers = Answers("POST", lambda _: answer.encode(), times=99)
    with meddling_proxy(s3_server.endpoint, answers) as endpoint:
        store = open_store(s3_bucket, S3Settings(endpoint=endpoint))
        assert "AccessDenied" in complaint(lambda: store.delete(["a", "b"]))


def test_threads_share_one_client(s3_bucket: str) -> None:
    barrier = threading.Barrier(8)

    def take() -> int:
        barrier.wait()
        return id(s3_client(S3Settings()))

    with ThreadPoolExecutor(8) as pool:
        assert len({future.result() for future in [pool.submit(take) for _ in range(8)]}) == 1


def use_after_fork(store: Store, client: int, answers: "multiprocessing.Queue[bool]") -> None:
    answers.put(store.get("a") == b"1" and id(s3_client(S3Settings())) != client)


def test_a_forked_process_makes_a_client_of_its_own(s3_bucket: str) -> None:
    store = open_store(s3_bucket)
    store.put("a", b"1")
    forking = multiprocessing.get_context("fork")
    answers = forking.Queue()
    held = s3_client(S3Settings())
    process = forking.Process(target=use_after_fork, args=(store, id(held), answers))
    process.start()
    try:
        assert answers.get(timeout=30)
    finally:
        process.kill()
        process.join()


def test_a_bucket_passes_the_check_only_with_rights(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(open_store(s3_bucket))
    assert "does not exist" in complaint(lambda: check_writable(open_store(MISSING)))
