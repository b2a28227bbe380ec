"""Settings: read from the environment whole, judged together, shown without secrets."""

from pathlib import Path

import pytest

from mailkeep.core.address import Mailbox
from mailkeep.core.command import Limits
from mailkeep.core.delivery import DeliveryClass, Guarantee
from mailkeep.settings import (
    Endpoint,
    Environment,
    HttpAuth,
    Secret,
    Settings,
    SettingsError,
    SmtpMode,
    SmtpTls,
)

TOKEN = "a-token-long-enough"
PASSWORD = "correct horse battery"
PRODUCTION = {
    "MAIL_ENVIRONMENT": "production",
    "MAIL_POSTGRES_DSN": "postgresql://mail:s3cret@db/mail",
    "MAIL_SMTP_MODE": "stub",
}


def problems_of(environ):
    """Return the problems of `environ` as {name: message}."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ)
    return {problem.name: problem.message for problem in caught.value.problems}


def test_empty_environment_gives_the_contract_defaults():
    """Nothing set is valid, and gives the defaults that the contract names."""
    settings = Settings.load({"PATH": "/bin"})
    assert settings.internal_http_addr == Endpoint("127.0.0.1", 8080)
    assert settings.attempt_worker_concurrency == 50
    assert settings.shutdown_timeout_s == 30
    assert settings.idempotency_ttl_s == settings.payload_retention_s == 7 * 86400
    assert settings.delivery_retention_s == 30 * 86400
    assert settings.malformed_retention_s == 90 * 86400
    assert settings.cleanup_interval_s == 3600
    assert settings.smtp_data_timeout_s == 600
    assert settings.environment is Environment.DEVELOPMENT
    assert settings.ladders[DeliveryClass.AUTH] == (10, 30, 90, 240, 480)
    assert len(settings.ladders[DeliveryClass.RELAY]) == 10
    assert set(settings.guarantees.values()) == {Guarantee.AT_LEAST_ONCE}
    assert settings.limits == Limits()


def test_each_value_is_read_in_its_notation():
    """Durations, endpoints, booleans, choices, ladders and numbers come out typed, in seconds where they are times."""
    settings = Settings.load(
        {
            "MAIL_SHUTDOWN_TIMEOUT": "1m30s",
            "MAIL_INTERNAL_HTTP_ADDR": "[::1]:9090",
            "MAIL_SMTP_TLS_VERIFY": "no",
            "MAIL_LOG_LEVEL": "Debug",
            "MAIL_RETRY_LADDER_AUTH": "1s, 2s",
            "MAIL_LIMIT_RECIPIENTS": "7",
            "MAIL_REDIS_MASTER_ADDR": "/run/redis.sock",
            "MAIL_GUARANTEE_RELAY": "at_most_once",
            "MAIL_SMTP_FROM_EMAIL": "Mail@Example.org",
            "MAIL_SMTP_FROM_NAME": "The Post",
        }
    )
    assert settings.shutdown_timeout_s == 90
    assert settings.internal_http_addr == Endpoint("::1", 9090)
    assert str(settings.internal_http_addr) == "[::1]:9090"
    assert settings.smtp_tls_verify is False
    assert settings.log_level == "debug"
    assert settings.ladders[DeliveryClass.AUTH] == (1, 2)
    assert settings.limits.recipients == 7
    assert settings.redis_master_addr is not None
    assert settings.redis_master_addr.is_socket
    assert settings.guarantees[DeliveryClass.RELAY] is Guarantee.AT_MOST_ONCE
    assert settings.smtp_from == Mailbox("Mail", "example.org", "The Post")


def test_every_limit_of_a_command_has_a_setting():
    """Each field of `Limits` is set by the MAIL_LIMIT_* of its name."""
    environ = {f"MAIL_LIMIT_{name.upper()}": str(1024) for name in Limits.__struct_fields__}
    environ |= {
        "MAIL_LIMIT_RECIPIENTS": "9",
        "MAIL_LIMIT_ATTACHMENTS": "8",
        "MAIL_LIMIT_VARIABLES_DEPTH": "7",
    }
    assert Settings.load(environ).limits == Limits(9, 1024, 1024, 8, 1024, 1024, 1024, 7)


def test_empty_means_unset():
    """An empty value is the default, as Compose files write it."""
    assert Settings.load({"MAIL_LOG_LEVEL": "", "MAIL_SMTP_PASSWORD_FILE": ""}) == Settings()


def test_all_problems_are_reported_at_once():
    """One error names every bad value, every unknown name and every broken rule."""
    problems = problems_of(
        {
            "MAIL_SHUTDOWN_TIMEOUT": "soon",
            "MAIL_POSTGRES_POOL_SIZE": "0",
            "MAIL_SMTP_MODE": "smtp",
            "MAIL_SMPT_ADDR": "mx:25",
            "MAIL_SINKHOLE_ADDR": "localhost:0",
        }
    )
    assert list(problems) == [
        "MAIL_SHUTDOWN_TIMEOUT",
        "MAIL_POSTGRES_POOL_SIZE",
        "MAIL_SINKHOLE_ADDR",
        "MAIL_SMTP_ADDR",
        "MAIL_SMTP_FROM_EMAIL",
        "MAIL_SMPT_ADDR",
    ]
    assert problems["MAIL_SMPT_ADDR"].endswith("did you mean MAIL_SMTP_ADDR?")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAIL_INTERNAL_HTTP_ADDR", "8080"),
        ("MAIL_INTERNAL_HTTP_ADDR", ":8080"),
        ("MAIL_INTERNAL_HTTP_ADDR", "::1:8080"),
        ("MAIL_INTERNAL_HTTP_ADDR", "host:65536"),
        ("MAIL_INTERNAL_HTTP_ADDR", "host:²"),
        ("MAIL_INTERNAL_HTTP_ADDR", "[::g]:1"),
        ("MAIL_SMTP_ADDR", "mx:0"),
        ("MAIL_REDIS_TLS", "maybe"),
        ("MAIL_LOG_LEVEL", "loud"),
        ("MAIL_IDEMPOTENCY_TTL", "6d"),
        ("MAIL_SMTP_TIMEOUT", "0s"),
        ("MAIL_RETRY_LADDER_AUTH", "1s,,2s"),
        ("MAIL_RETRY_LADDER_AUTH", ",".join(["1s"] * 51)),
        ("MAIL_SMTP_FROM_EMAIL", "Ann <ann@example.org>"),
        ("MAIL_SMTP_FROM_NAME", "Ann\r\nBcc: eve@example.org"),
        ("MAIL_TEMPLATE_DIR", "/nowhere/at/all"),
        ("MAIL_SMTP_TLS_CA_FILE", "/"),
        ("MAIL_POSTGRES_DSN", "mysql://root:s3cret@db"),
        ("MAIL_INTERNAL_HTTP_TOKENS", f"{TOKEN}, short"),
        ("MAIL_ENVIRONMENT", "prodution"),
    ],
)
def test_value_that_can_not_be_read_is_one_problem(name, value):
    """A bad value is reported under its own name, once, and never drags rules about it along."""
    assert list(problems_of({name: value})) == [name]


@pytest.mark.parametrize(
    ("environ", "culprit"),
    [
        ({"MAIL_ENVIRONMENT": "production", "MAIL_SMTP_MODE": "stub"}, "MAIL_POSTGRES_DSN"),
        (PRODUCTION | {"MAIL_SMTP_MODE": ""}, "MAIL_SMTP_MODE"),
        (PRODUCTION | {"MAIL_SINKHOLE_ADDR": "sink:25"}, "MAIL_SINKHOLE_ADDR"),
        (PRODUCTION | {"MAIL_FAULT_POINT": "before_dot"}, "MAIL_FAULT_POINT"),
        (PRODUCTION | {"MAIL_REDIS_MASTER_ADDR": "redis:6379"}, "MAIL_REDIS_TLS"),
        ({"MAIL_REDIS_PASSWORD": PASSWORD}, "MAIL_REDIS_MASTER_ADDR"),
        ({"MAIL_REDIS_MASTER_ADDR": "r:1", "MAIL_REDIS_USERNAME": "mail"}, "MAIL_REDIS_USERNAME"),
        ({"MAIL_INTERNAL_HTTP_ADDR": "0.0.0.0:8080"}, "MAIL_INTERNAL_HTTP_TOKENS"),
        ({"MAIL_INTERNAL_HTTP_AUTH": "tokens"}, "MAIL_INTERNAL_HTTP_TOKENS"),
        (
            {"MAIL_INTERNAL_HTTP_AUTH": "none", "MAIL_INTERNAL_HTTP_TOKENS": TOKEN},
            "MAIL_INTERNAL_HTTP_AUTH",
        ),
        ({"MAIL_SMTP_USERNAME": "mail"}, "MAIL_SMTP_USERNAME"),
        ({"MAIL_SMTP_PASSWORD": PASSWORD}, "MAIL_SMTP_USERNAME"),
        (
            {
                "MAIL_SMTP_ADDR": "mx.example.org:25",
                "MAIL_SMTP_USERNAME": "mail",
                "MAIL_SMTP_PASSWORD": PASSWORD,
                "MAIL_SMTP_TLS": "opportunistic",
            },
            "MAIL_SMTP_TLS",
        ),
        ({"MAIL_REPLICA_TTL": "5s"}, "MAIL_REPLICA_TTL"),
        ({"MAIL_DELIVERY_RETENTION": "1d"}, "MAIL_PAYLOAD_RETENTION"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(environ, culprit):
    """Each rule between settings is broken by one example, and reports the setting to change."""
    assert list(problems_of(environ)) == [culprit]


@pytest.mark.parametrize(
    "environ",
    [
        PRODUCTION,
        PRODUCTION | {"MAIL_REDIS_MASTER_ADDR": "redis:6379", "MAIL_REDIS_TLS": "false"},
        {"MAIL_INTERNAL_HTTP_ADDR": "0.0.0.0:8080", "MAIL_INTERNAL_HTTP_AUTH": "none"},
        {"MAIL_INTERNAL_HTTP_ADDR": "0.0.0.0:8080", "MAIL_INTERNAL_HTTP_TOKENS": TOKEN},
        {"MAIL_SMTP_ADDR": "mx.example.org:25", "MAIL_SMTP_TLS": "none"},
        {"MAIL_SINKHOLE_ADDR": "localhost:2525"},
    ],
)
def test_explicit_choices_are_accepted(environ):
    """What a rule asks to be said is accepted once it is said."""
    Settings.load(environ)


def test_tls_is_off_by_itself_only_towards_loopback():
    """A next hop on this machine needs no TLS unless asked; any other gets STARTTLS."""
    assert Settings.load({"MAIL_SMTP_ADDR": "127.0.0.1:25"}).smtp_tls is SmtpTls.NONE
    assert Settings.load({"MAIL_SMTP_ADDR": "[::1]:25"}).smtp_tls is SmtpTls.NONE
    assert Settings.load({"MAIL_SMTP_ADDR": "10.0.0.1:25"}).smtp_tls is SmtpTls.STARTTLS
    explicit = {"MAIL_SMTP_ADDR": "localhost:25", "MAIL_SMTP_TLS": "implicit"}
    assert Settings.load(explicit).smtp_tls is SmtpTls.IMPLICIT


def test_two_tokens_are_valid_while_rotating():
    """Tokens come one or several, separated by comma or white space."""
    settings = Settings.load({"MAIL_INTERNAL_HTTP_TOKENS": f"{TOKEN},{TOKEN}2\n{TOKEN}3"})
    assert [token.reveal() for token in settings.internal_http_tokens] == [TOKEN, f"{TOKEN}2", f"{TOKEN}3"]
    assert settings.internal_http_auth is not HttpAuth.NONE


def test_a_secret_may_come_from_a_file(tmp_path: Path):
    """X_FILE names a file whose content, less the final newline, is the secret X."""
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    settings = Settings.load({"MAIL_SMTP_USERNAME": "mail", "MAIL_SMTP_PASSWORD_FILE": str(file)})
    assert settings.smtp_password == Secret(PASSWORD)
    assert {row.name: row.source for row in settings.describe()}["MAIL_SMTP_PASSWORD"] == "file"


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"x" * 65537])
def test_a_secret_file_without_a_secret_is_a_problem(tmp_path: Path, content):
    """Empty, binary and oversized secret files are refused."""
    file = tmp_path / "password"
    file.write_bytes(content)
    assert list(problems_of({"MAIL_REDIS_PASSWORD_FILE": str(file)})) == ["MAIL_REDIS_PASSWORD"]


def test_a_secret_given_twice_or_from_a_missing_file_is_a_problem(tmp_path: Path):
    """Both spellings at once, and a file that is not there, are refused."""
    missing = str(tmp_path / "missing")
    assert "MAIL_REDIS_PASSWORD" in problems_of({"MAIL_REDIS_PASSWORD_FILE": missing})
    both = {"MAIL_SMTP_PASSWORD": PASSWORD, "MAIL_SMTP_PASSWORD_FILE": missing}
    assert "MAIL_SMTP_PASSWORD" in problems_of(both)


def test_only_secrets_have_a_file_variant():
    """X_FILE of a setting that is no secret is an unknown name."""
    assert list(problems_of({"MAIL_LOG_LEVEL_FILE": "/etc/hostname"})) == ["MAIL_LOG_LEVEL_FILE"]


SECRETS = {
    "MAIL_POSTGRES_DSN": "postgresql://mail:canary1@db.example.org/mail?sslpassword=canary2&sslmode=require",
    "MAIL_SINKHOLE_MODE_REDIS": "redis://:canary6@localhost/0",
    "MAIL_REDIS_MASTER_ADDR": "localhost:6379",
    "MAIL_REDIS_PASSWORD": "canary3",
    "MAIL_SMTP_USERNAME": "mail",
    "MAIL_SMTP_PASSWORD": "canary4",
    "MAIL_INTERNAL_HTTP_TOKENS": "canary5-canary5-canary5",
}


def test_no_secret_is_ever_shown():
    """repr, str and the rows for printing hold no part of any secret, and still say where the database is."""
    settings = Settings.load(SECRETS)
    shown = f"{settings!r} {settings} {settings.describe()} {settings.smtp_password}"
    assert "canary" not in shown
    dsn = {row.name: row.value for row in settings.describe()}["MAIL_POSTGRES_DSN"]
    assert dsn == "postgresql://mail:***@db.example.org/mail?sslpassword=***&sslmode=require"


def test_no_problem_repeats_a_secret():
    """Secrets that are refused do not come back in the message."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(
            {
                name: f"canary\x00{value}"
                for name, value in SECRETS.items()
                if name != "MAIL_REDIS_MASTER_ADDR"
            }
        )
    assert len(caught.value.problems) == 6
    assert "canary" not in str(caught.value)


def test_secrets_compare_by_content():
    """Equal secrets are equal and hash alike; other types never equal one."""
    assert Secret("a") == Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a")}) == 1
    assert Secret("a") != "a"


def test_every_setting_is_documented():
    """Each row has a unique MAIL_ name, a notation and a meaning that is a sentence."""
    rows = Settings().describe()
    assert len({row.name for row in rows}) == len(rows) > 50
    for row in rows:
        assert row.name.startswith("MAIL_")
        assert row.notation
        assert row.value == row.default != ""
        assert row.meaning.endswith("."), row.name


def test_rows_tell_where_a_value_came_from():
    """A row says whether its value was given, and what it would be otherwise."""
    rows = {row.name: row for row in Settings.load({"MAIL_SMTP_MODE": "STUB"}).describe()}
    assert rows["MAIL_SMTP_MODE"].source == "environment"
    assert rows["MAIL_SMTP_MODE"].value == SmtpMode.STUB
    assert rows["MAIL_SMTP_TIMEOUT"].source == "default"
    assert rows["MAIL_SMTP_TIMEOUT"].value == "1m"
    assert rows["MAIL_RETRY_LADDER_AUTH"].default == "10s, 30s, 1m30s, 4m, 8m"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3cr3t/@db/mail",
        "postgresql://u:123/s3cr3t@db:5432/mail",
        "postgresql://u:s3cr3t@x@db/mail",
        "postgresql://u:s3cr3t?x@db/mail",
        "postgresql://u:s3cr3t@db:99999/mail",
        "postgresql://u:s3cr3t@db:5432,other:x/mail",
        "postgresql://u:s3cr3t@[::1/mail",
    ],
)
def test_a_password_that_breaks_its_url_is_refused_and_not_told(url):
    """What would be taken for a host, a port or a database is a problem of the setting; nobody reads the password."""
    with pytest.raises(SettingsError) as caught:
        Settings.load({"MAIL_POSTGRES_DSN": url})
    assert [problem.name for problem in caught.value.problems] == ["MAIL_POSTGRES_DSN"]
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://mail:p%2Fw%40@db.example.org/mail",
        "postgresql://mail@/mail?host=/tmp/socket&port=5432",
        "postgresql://db-1:5432,db-2:5433/mail?target_session_attrs=read-write",
        "postgres://[::1]:5432/mail",
        "postgresql:///mail",
    ],
)
def test_urls_of_every_usual_form_are_taken(url):
    """Sockets, several hosts, IPv6, and a password that is percent-encoded."""
    assert Settings.load({"MAIL_POSTGRES_DSN": url}).postgres_dsn
