"""Which store is meant: option, environment, igpt.yaml, default."""

from pathlib import Path

import pytest

from igpt.errors import UserError
from igpt.storage import S3Settings, resolve_store

FILE = "store: s3://of-the-file\ns3:\n  endpoint: http://file:9000\n  region: file-1\n"


def test_the_option_goes_before_the_variable_before_the_file_before_the_default(
    tmp_path: Path,
) -> None:
    file = tmp_path / "igpt.yaml"
    variable = {"IGPT_STORE": "s3://of-the-variable"}
    assert resolve_store(None, {}, tmp_path) == (
        str(tmp_path / "igpt-store"),
        S3Settings(),
        "the default",
    )
    file.write_text(FILE)
    settings = S3Settings(endpoint="http://file:9000", region="file-1")
    assert resolve_store(None, {}, tmp_path) == ("s3://of-the-file", settings, str(file))
    assert resolve_store(None, {"IGPT_STORE": ""}, tmp_path)[2] == str(file)
    assert resolve_store(None, variable, tmp_path) == (
        "s3://of-the-variable",
        settings,
        "IGPT_STORE",
    )
    assert resolve_store("s3://of-the-option", variable, tmp_path) == (
        "s3://of-the-option",
        settings,
        "--store",
    )


def test_each_setting_of_s3_comes_from_its_variable_or_else_the_file(tmp_path: Path) -> None:
    (tmp_path / "igpt.yaml").write_text(FILE)
    environment = {"IGPT_S3_ENDPOINT": "https://variable", "IGPT_S3_PROFILE": "lab"}
    _, settings, _ = resolve_store(None, environment, tmp_path)
    assert settings == S3Settings(endpoint="https://variable", region="file-1", profile="lab")


def test_relative_paths_count_from_the_directory(tmp_path: Path) -> None:
    assert resolve_store("a/b", {}, tmp_path)[0] == str(tmp_path / "a" / "b")
    assert resolve_store("~/b", {}, tmp_path)[0] == str(Path.home() / "b")
    assert resolve_store("/c", {}, tmp_path)[0] == "/c"
    (tmp_path / "igpt.yaml").write_text("store: ./mine\n")
    assert resolve_store(None, {}, tmp_path)[0] == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stor: x\n", "igpt.yaml, line 1: unknown key 'stor'; did you mean \"store\"?"),
        ("s3:\n  endpiont: http://x\n", "line 2: unknown key 's3.endpiont'; did you mean \"end"),
        ("s3:\n  endpoint: localhost:9000\n", "line 2: s3.endpoint: 'localhost:9000' is not an"),
        ("store: 5\n", "igpt.yaml, line 1: store"),
        ("s3:\n  endpoint: http://me:secret@host\n", "takes no user name or password"),
        ("- store\n", "holds a list"),
    ],
)
def test_a_mistake_in_the_file_is_shown_where_it_is(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "igpt.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        resolve_store("s3://given", {}, tmp_path)
    assert message in str(caught.value)


def test_settings_travel_through_the_environment() -> None:
    settings = S3Settings(endpoint="http://127.0.0.1:9000", profile="lab")
    environment = settings.to_environment()
    assert environment == {
        "IGPT_S3_ENDPOINT": "http://127.0.0.1:9000",
        "IGPT_S3_PROFILE": "lab",
    }
    assert S3Settings.from_environment({**environment, "IGPT_S3_REGION": ""}) == settings
    assert S3Settings.from_environment({}).to_environment() == {}


@pytest.mark.parametrize("address", ["http://host:99999", "http://host:x", "http://:80"])
def test_an_endpoint_with_an_impossible_port_or_no_host_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=f"IGPT_S3_ENDPOINT: '{address}' is not an address"):
        S3Settings.from_environment({"IGPT_S3_ENDPOINT": address})


def test_an_endpoint_that_is_none_is_shown_with_its_variable() -> None:
    with pytest.raises(UserError, match="IGPT_S3_ENDPOINT: 'minio' is not an address"):
        S3Settings.from_environment({"IGPT_S3_ENDPOINT": "minio"})


def test_a_secret_in_an_endpoint_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "igpt.yaml").write_text("s3:\n  endpoint: http://me:hunter2@host\n")
    for use in (
        lambda: S3Settings.from_environment({"IGPT_S3_ENDPOINT": "http://me:hunter2@host"}),
        lambda: resolve_store(None, {}, tmp_path),
    ):
        with pytest.raises(UserError) as caught:
            use()
        assert "hunter2" not in str(caught.value)
