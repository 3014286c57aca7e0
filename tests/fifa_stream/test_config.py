"""Settings: values, then file, then environment; every mistake is one clear line, and no line holds a password."""

from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr, ValidationError

from fifa_stream.config import ConfigError, KafkaSettings, Settings, load

SECRET = "hunter2-secret"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("FIFA_"):
            monkeypatch.delenv(name)


def written(folder: Path, text: str) -> Path:
    file = folder / "settings.toml"
    file.write_text(text)
    return file


def test_the_environment_wins_over_the_file_and_the_file_over_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, '[kafka]\ngroup_id = "from-file"\nframes_topic = "from-file"\n')
    monkeypatch.setenv("FIFA_KAFKA__GROUP_ID", "from-environment")
    kafka = load(file).kafka
    assert (kafka.group_id, kafka.frames_topic, kafka.verdicts_topic) == ("from-environment", "from-file", "fifa.verdicts")


def test_settings_made_in_code_do_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIFA_KAFKA__BOOTSTRAP_SERVERS", "production:9092")
    assert Settings().kafka.bootstrap_servers == "localhost:9092"


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIFA_ENGINE__FOLDER", "")
    assert load().engine.folder is None


def test_variables_of_others_under_our_prefix_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIFA_SHARED", "/somewhere")
    assert load() == Settings()


def test_a_state_topic_that_nobody_uses_may_be_called_anything() -> None:
    Settings(kafka=KafkaSettings(state_topic="fifa.frames", max_request_bytes=1 << 14))


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().kafka.group_id = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        pytest.param("FIFA_KAFKA__SESSION_TIMEOUT_MS", "soon", "kafka.session_timeout_ms", id="not a number"),
        pytest.param("FIFA_KAFKA__SESSION_TIMEOUT_MS", "1", "FIFA_KAFKA__SESSION_TIMEOUT_MS", id="out of range names the variable"),
        pytest.param("FIFA_KAFKA__GRUOP_ID", SECRET, "kafka.gruop_id does not exist", id="unknown field"),
        pytest.param("FIFA_KAFKAA__GROUP_ID", "g", "names no section", id="unknown section"),
        pytest.param("FIFA_KAFKA", "text", "must be JSON", id="section that is not JSON"),
        pytest.param("FIFA_KAFKA__SECURITY_PROTOCOL", "SASL_SSL", "needs sasl_mechanism", id="SASL without user"),
        pytest.param("FIFA_KAFKA__SSL_CAFILE", "/no/such/file", "not a file", id="missing certificate"),
        pytest.param("FIFA_KAFKA__VERDICTS_TOPIC", "fifa.frames", "must be different topics", id="answers onto the input"),
        pytest.param("FIFA_KAFKA__SHADOW_TOPIC", "fifa.verdicts", "must be different topics", id="a shadow among the answers"),
        pytest.param("FIFA_ENGINE__ROLL_OUT", "shadow", "roll_out shadow needs candidate", id="nobody to compare with"),
        pytest.param("FIFA_ENGINE__PINNED_DIGEST", "abc", "engine.pinned_digest", id="digest too short"),
        pytest.param("FIFA_ENGINE__EXPLAIN", "sometimes", "'auto', 'always' or 'never'", id="unknown choice"),
    ],
)
def test_a_wrong_variable_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        load()
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("[kafka\n", "is not TOML", id="broken TOML"),
        pytest.param("[kafak]\n", "setting kafak does not exist", id="unknown section"),
        pytest.param("[limits]\nmax_pixels = -1\n", "limits.max_pixels", id="bad value"),
        pytest.param(
            '[streams]\nmemory = "topic"\n[kafka]\nstate_topic = "fifa.frames"\n', "^kafka.state_topic 'fifa.frames' must", id="snapshots as frames"
        ),
        pytest.param(
            '[streams]\nmemory = "topic"\n[kafka]\nmax_request_bytes = 40000\n', "^streams.max_tracks 16 may need 41952 bytes", id="large snapshots"
        ),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml"):
        load(tmp_path / "nothing.toml")


def test_the_password_is_masked_in_the_log_and_reaches_only_the_client() -> None:
    kafka = KafkaSettings(security_protocol="SASL_PLAINTEXT", sasl_mechanism="PLAIN", sasl_username="u", sasl_password=SecretStr(SECRET))
    settings = Settings(kafka=kafka)
    assert SECRET not in settings.masked_json()
    assert SECRET not in repr(settings)
    assert kafka.client_options()["sasl_plain_password"] == SECRET


def test_several_brokers_are_a_comma_separated_list() -> None:
    assert KafkaSettings(bootstrap_servers="a:1, b:2").client_options()["bootstrap_servers"] == ["a:1", "b:2"]


def test_every_setting_says_what_it_means() -> None:
    for name in Settings.model_fields:
        section = getattr(Settings(), name)
        assert isinstance(section, BaseModel)
        assert all(field.description for field in type(section).model_fields.values()), name


@pytest.mark.parametrize("value", ["inf", "nan"])
@pytest.mark.parametrize("name", ["max_gap_s", "max_length_s"])
def test_a_time_without_end_is_refused_where_it_is_set(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"FIFA_STREAMS__{name.upper()}", value)
    with pytest.raises(ConfigError, match=f"streams.{name}"):
        load()
