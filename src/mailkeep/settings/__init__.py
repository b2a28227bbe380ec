"""Settings: `MAIL_*` of the environment, read once into one frozen `Settings` that later code can trust.

Each setting is declared once, as an annotated field of `Settings`: how it is written, its meaning, its default. Its name
is `MAIL_` and the field's in capitals, less the unit `_s` (`smtp_timeout_s` is `MAIL_SMTP_TIMEOUT`). Reading,
`mailkeep config` and the reference page all come from that declaration. `Settings.load` judges the environment whole and
reports every problem at once; a `MAIL_*` name that is not declared is a problem too. Empty means unset. A secret `X` may
also come from the file that `X_FILE` names, and is shown as `***`.

Called by `mailkeep.cli` and `mailkeep.wiring`. It never reads `os.environ` by itself and never opens a connection.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

import msgspec

from mailkeep.core.address import Mailbox
from mailkeep.core.command import Limits
from mailkeep.core.delivery import DeliveryClass, Guarantee
from mailkeep.core.duration import parse_duration, parse_ladder
from mailkeep.core.suppression import USUAL_TTL_S
from mailkeep.settings.files import certificate_fits, read_secret
from mailkeep.settings.notation import (
    AUTHORITIES,
    BOOL,
    CERTIFICATE_NAMES,
    CONNECT,
    CONNECT_MANY,
    CONNECT_OR_SOCKET,
    DSN,
    EMAIL,
    FILE,
    FOLDER,
    HELO_NAME,
    HTTPS_URL,
    LADDER,
    LISTEN,
    PATH,
    REDIS_URL,
    SECRET,
    SENDERS_FILE,
    TEXT,
    TOKENS,
    WORDS,
    Dsn,
    Endpoint,
    Secret,
    Setting,
    choice,
    duration,
    whole,
)
from mailkeep.settings.routes import (
    DEFAULT_HOP,
    MAX_CONNECTIONS,
    SINKHOLE_HOP,
    HopAddress,
    HopAuth,
    HopSettings,
    SmtpTls,
    describe_hop,
    read_routes,
)
from mailkeep.settings.webhooks import WebhookSettings, read_webhooks

__all__ = [
    "Dsn",
    "Endpoint",
    "Environment",
    "HopAddress",
    "HopAuth",
    "HopSettings",
    "HttpAuth",
    "ListenerTlsFiles",
    "LogFormat",
    "LogLevel",
    "Secret",
    "SettingRow",
    "Settings",
    "SettingsError",
    "SettingsProblem",
    "SmtpMode",
    "SmtpTls",
    "WebhookSettings",
]

PREFIX: Final = "MAIL_"
ROUTES: Final = "MAIL_ROUTES_FILE"
WEBHOOKS: Final = "MAIL_WEBHOOKS_FILE"


class SettingsProblem(msgspec.Struct, frozen=True):
    """One thing wrong with one setting; the message never repeats a secret."""

    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


class SettingsError(ValueError):
    """The environment can't be used; `problems` lists everything that is wrong with it."""

    def __init__(self, problems: tuple[SettingsProblem, ...]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class Environment(StrEnum):
    """Where this runs; `production` switches the guards on."""

    DEVELOPMENT = "development"
    TEST = "test"
    STAGING = "staging"
    PRODUCTION = "production"


class HttpAuth(StrEnum):
    """How callers of the internal listener are known."""

    TOKENS = "tokens"
    NONE = "none"


class SmtpMode(StrEnum):
    """Whether mail is handed to a next hop at all."""

    STUB = "stub"
    SMTP = "smtp"


class LogLevel(StrEnum):
    """The least severe line that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How lines are written; `auto` is `console` on a terminal, else `json`."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class SettingRow(msgspec.Struct, frozen=True):
    """One line of `mailkeep config` and of the reference page; `value` and `default` are redacted."""

    name: str
    value: str
    source: str  # "environment", "file", "routes file" or "default"
    default: str
    notation: str
    meaning: str
    secret: bool  # may also come from a file


class ListenerTlsFiles(msgspec.Struct, frozen=True):
    """What a listener needs for TLS. `key` None: it is in the certificate's file; `client_ca` None: clients show nothing."""

    certificate: Path
    key: Path | None
    client_ca: Path | None
    client_names: tuple[str, ...]


_LIMIT: Final = Limits()
_TIMEOUT: Final = duration("100ms", "1h")
_CERTIFICATE_KEY: Final = Setting(FILE, "Its key (PEM).", unset="in the certificate's file")
_CLIENT_CA: Final = Setting(
    AUTHORITIES,
    "Authorities (PEM) of whose certificates each client must show one.",
    unset="clients show no certificate",
)
_CLIENT_NAMES: Final = Setting(
    CERTIFICATE_NAMES,
    "Subject alternative names of the client certificates that may call.",
    unset="every name",
)
_RETENTION: Final = duration("1m", "3650d")
_MAX_BYTES: Final = 100 * 1024 * 1024  # no next hop takes more; above it memory would be the limit


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a Mailkeep process is told from outside. To add a setting, add one field."""

    given: frozenset[str] = frozenset()
    """The names that the environment set, `X_FILE` where a secret came from a file."""
    routes: tuple[HopSettings, ...] = ()
    """The next hops of the routes file."""
    webhooks: tuple[WebhookSettings, ...] = ()
    """The webhooks of their file."""

    environment: Annotated[
        Environment,
        Setting(
            choice(Environment),
            "Where this runs. Production refuses the sinkhole and whatever is left to a default for convenience.",
        ),
    ] = Environment.DEVELOPMENT
    log_level: Annotated[
        LogLevel, Setting(choice(LogLevel), "The least severe log line that is written.")
    ] = LogLevel.INFO
    log_format: Annotated[
        LogFormat, Setting(choice(LogFormat), "`auto` is `console` on a terminal, else `json`.")
    ] = LogFormat.AUTO
    shutdown_timeout_s: Annotated[
        float, Setting(_TIMEOUT, "Bound on a stop; what is in flight then is handed back.")
    ] = 30.0

    fault_point: Annotated[
        str | None,
        Setting(TEXT, "Where to kill the process, for crash tests; refused in production.", unset="nowhere"),
    ] = None

    postgres_dsn: Annotated[
        Dsn | None,
        Setting(
            DSN,
            "The PostgreSQL database that holds the queue.",
            unset="`serve` does not start; `mailkeep dev` brings its own",
        ),
    ] = None
    postgres_pool_size: Annotated[int, Setting(whole(1, 1000), "Connections each process keeps.")] = 8
    embedded_pg_bin: Annotated[
        Path | None,
        Setting(
            FOLDER,
            "Folder with the `postgres` and `initdb` to start as embedded server.",
            unset="looked for: wheel, Debian's folder, PATH",
        ),
    ] = None

    redis_master_addr: Annotated[
        Endpoint | None,
        Setting(
            CONNECT_OR_SOCKET,
            "The Redis whose stream `mail:delivery_commands` is read.",
            unset="stream intake off",
        ),
    ] = None
    redis_sentinel_addrs: Annotated[
        tuple[Endpoint, ...],
        Setting(
            CONNECT_MANY,
            "Sentinels that know the Redis master, instead of its address.",
            unset="no sentinels",
        ),
    ] = ()
    redis_sentinel_master: Annotated[
        str, Setting(TEXT, "Name under which the sentinels know the master.")
    ] = "mymaster"
    redis_username: Annotated[str | None, Setting(TEXT, "Redis ACL user.", unset="the default user")] = None
    redis_password: Annotated[Secret | None, Setting(SECRET, "Redis password.", unset="no login")] = None
    redis_tls: Annotated[bool, Setting(BOOL, "Whether Redis is spoken to over TLS.")] = False
    redis_database: Annotated[int, Setting(whole(0, 65535), "Number of the Redis database.")] = 0

    internal_http_addr: Annotated[Endpoint, Setting(LISTEN, "Where the internal HTTP API listens.")] = (
        Endpoint("127.0.0.1", 8080)
    )
    internal_http_auth: Annotated[
        HttpAuth | None,
        Setting(
            choice(HttpAuth),
            "`none` opens the listener to everybody on a non-loopback address too.",
            unset="tokens and client certificates where they are configured; loopback may go without",
        ),
    ] = None
    internal_http_tokens: Annotated[
        tuple[Secret, ...],
        Setting(
            TOKENS,
            "Bearer tokens of the internal HTTP API; give the old and the new one while rotating.",
            unset="no tokens",
        ),
    ] = ()
    webhooks_file: Annotated[
        Path | None, Setting(FILE, "Who is told what becomes of mail (TOML).", unset="nobody is told")
    ] = None

    internal_http_tls_cert: Annotated[
        Path | None,
        Setting(
            FILE, "Certificate chain of the internal HTTP API (PEM), which speaks HTTPS then.", unset="no TLS"
        ),
    ] = None
    internal_http_tls_key: Annotated[Path | None, _CERTIFICATE_KEY] = None
    internal_http_tls_client_ca: Annotated[
        Path | None,
        _CLIENT_CA,
    ] = None
    internal_http_tls_client_names: Annotated[
        tuple[str, ...],
        _CLIENT_NAMES,
    ] = ()
    internal_http_client_cert: Annotated[
        Path | None,
        Setting(
            FILE,
            "Certificate chain (PEM) that `mailkeep healthcheck` and `mailkeep send` show.",
            unset="they show none",
        ),
    ] = None
    internal_http_client_key: Annotated[Path | None, _CERTIFICATE_KEY] = None

    send_http_addr: Annotated[
        Endpoint | None,
        Setting(LISTEN, "Where `POST /send` listens, for people's programs.", unset="off"),
    ] = None
    send_http_tls_cert: Annotated[
        Path | None,
        Setting(FILE, "Certificate chain of `POST /send` (PEM), which speaks HTTPS then.", unset="no TLS"),
    ] = None
    send_http_tls_key: Annotated[Path | None, _CERTIFICATE_KEY] = None
    send_http_tls_client_ca: Annotated[
        Path | None,
        _CLIENT_CA,
    ] = None
    send_http_tls_client_names: Annotated[
        tuple[str, ...],
        _CLIENT_NAMES,
    ] = ()
    send_http_plain: Annotated[
        bool,
        Setting(
            BOOL,
            "Say that it may speak plain HTTP off loopback, since something before it ends TLS.",
        ),
    ] = False
    send_rate: Annotated[
        int,
        Setting(
            whole(1, 1_000_000),
            "Recipients a minute that one token may send to, in each process; refused calls count as one.",
        ),
    ] = 600
    send_oidc_issuer: Annotated[
        str | None,
        Setting(
            HTTPS_URL,
            "The OpenID Connect issuer whose access tokens may send.",
            unset="API keys only",
        ),
    ] = None
    send_oidc_audiences: Annotated[
        tuple[str, ...],
        Setting(
            WORDS,
            "Who such a token must be for: its `aud`, or `client_id` where it has none.",
            unset="nobody",
        ),
    ] = ()
    send_oidc_keys_url: Annotated[
        str | None,
        Setting(HTTPS_URL, "Where the issuer's keys (JWKS) are.", unset="found by its discovery document"),
    ] = None
    send_oidc_scope: Annotated[
        str | None, Setting(TEXT, "The scope that such a token must have.", unset="any")
    ] = None
    send_oidc_sender_claim: Annotated[
        str,
        Setting(TEXT, "The claim with the address a bearer owns; `email` counts with `email_verified` only."),
    ] = "email"
    send_oidc_senders_file: Annotated[
        Path | None,
        Setting(SENDERS_FILE, "What else bearers own, by claims (TOML).", unset="nothing else"),
    ] = None

    console_addr: Annotated[
        Endpoint | None,
        Setting(
            LISTEN,
            "Where the console listens, pages for people; it takes the tokens of the internal API.",
            unset="off; `mailkeep dev` has one",
        ),
    ] = None
    console_tls_cert: Annotated[
        Path | None,
        Setting(FILE, "Certificate chain of the console (PEM), which speaks HTTPS then.", unset="no TLS"),
    ] = None
    console_tls_key: Annotated[Path | None, _CERTIFICATE_KEY] = None
    console_tls_client_ca: Annotated[
        Path | None,
        _CLIENT_CA,
    ] = None
    console_tls_client_names: Annotated[
        tuple[str, ...],
        _CLIENT_NAMES,
    ] = ()
    console_plain: Annotated[
        bool,
        Setting(
            BOOL,
            "Say that it may speak plain HTTP off loopback, since something before it ends TLS.",
        ),
    ] = False

    template_dir: Annotated[
        Path | None, Setting(FOLDER, "The template catalog.", unset="the shipped catalog")
    ] = None
    dkim_keys_file: Annotated[
        Path | None, Setting(FILE, "Keys that sign mail (DKIM), TOML.", unset="mail is not signed")
    ] = None

    payload_keys_file: Annotated[
        Path | None,
        Setting(
            FILE, "Keys that seal stored content and addresses, newest first.", unset="they are not sealed"
        ),
    ] = None

    smtp_mode: Annotated[
        SmtpMode, Setting(choice(SmtpMode), "`stub` sends nothing: deliveries end `suppressed`.")
    ] = SmtpMode.STUB
    routes_file: Annotated[
        Path | None,
        Setting(FILE, "Next hops of their own for some recipient domains (TOML).", unset="one next hop"),
    ] = None
    smtp_addr: Annotated[
        Endpoint | None,
        Setting(CONNECT, "The next hop of all mail that has no route of its own.", unset="none"),
    ] = None
    smtp_username: Annotated[str | None, Setting(TEXT, "Login at the next hop.", unset="no login")] = None
    smtp_password: Annotated[Secret | None, Setting(SECRET, "Password of that login.", unset="no login")] = (
        None
    )
    smtp_from_email: Annotated[
        Mailbox, Setting(EMAIL, "Sender of login codes, notifications and API mail.")
    ] = Mailbox("mailkeep", "mailkeep.invalid")
    smtp_from_name: Annotated[str, Setting(TEXT, "Name beside that address.", unset="no name")] = ""
    smtp_tls: Annotated[
        SmtpTls,
        Setting(
            choice(SmtpTls), "Encryption towards the next hop; a next hop on loopback defaults to `none`."
        ),
    ] = SmtpTls.STARTTLS
    smtp_tls_verify: Annotated[
        bool, Setting(BOOL, "Whether certificate chain and host name must be right.")
    ] = True
    smtp_tls_ca_file: Annotated[
        Path | None, Setting(AUTHORITIES, "Authorities to trust (PEM).", unset="the system's")
    ] = None
    smtp_helo_name: Annotated[
        str | None, Setting(HELO_NAME, "Name given in EHLO.", unset="this machine's host name")
    ] = None
    smtp_max_connections: Annotated[
        int, Setting(whole(1, MAX_CONNECTIONS), "Open connections of a process to one next hop at most.")
    ] = 50
    smtp_timeout_s: Annotated[float, Setting(_TIMEOUT, "Bound on each SMTP phase but the final dot.")] = 60.0
    smtp_data_timeout_s: Annotated[float, Setting(_TIMEOUT, "Bound on the reply to the final dot.")] = 600.0
    sinkhole_addr: Annotated[
        Endpoint | None,
        Setting(
            CONNECT,
            "Where mail for `sinkhole.test` goes; refused in production.",
            unset="sinkhole.test has no route",
        ),
    ] = None
    sinkhole_mode_file: Annotated[
        Path | None,
        Setting(PATH, "File in which a sinkhole looks up its mode.", unset="one in the user's state folder"),
    ] = None
    sinkhole_mode_redis: Annotated[
        Dsn | None,
        Setting(REDIS_URL, "Redis in which a sinkhole looks up its mode instead.", unset="the file"),
    ] = None
    sinkhole_mode_ssm: Annotated[
        str | None,
        Setting(
            TEXT,
            "AWS SSM parameter in which a sinkhole looks up its mode instead; needs the extra `aws`.",
            unset="the file",
        ),
    ] = None
    sinkhole_url: Annotated[
        str | None,
        Setting(
            TEXT,
            "HTTP API of the sinkhole that `mailkeep sinkhole inbox`, `show`, `transcript` and `mode` ask.",
            unset="that of a running `mailkeep dev`, or http://127.0.0.1:8025",
        ),
    ] = None

    retry_ladder_auth_s: Annotated[
        tuple[float, ...], Setting(LADDER, "Waits between the attempts of class `auth`.")
    ] = parse_ladder("10s, 30s, 90s, 4m, 8m")
    retry_ladder_transactional_s: Annotated[
        tuple[float, ...], Setting(LADDER, "Waits between the attempts of class `transactional`.")
    ] = parse_ladder("1m, 5m, 15m, 30m, 1h, 2h, 4h, 8h, 12h")
    retry_ladder_relay_s: Annotated[
        tuple[float, ...], Setting(LADDER, "Waits between the attempts of class `relay`.")
    ] = parse_ladder("30m, 1h, 2h, 4h, 8h, 16h, 24h, 24h, 24h, 16h")
    guarantee_auth: Annotated[
        Guarantee, Setting(choice(Guarantee), "What an unknown outcome means for class `auth`.")
    ] = Guarantee.AT_LEAST_ONCE
    guarantee_transactional: Annotated[
        Guarantee, Setting(choice(Guarantee), "The same for class `transactional`.")
    ] = Guarantee.AT_LEAST_ONCE
    guarantee_relay: Annotated[Guarantee, Setting(choice(Guarantee), "The same for class `relay`.")] = (
        Guarantee.AT_LEAST_ONCE
    )
    auth_expiry_s: Annotated[
        float, Setting(duration("1m", "1d"), "Age after which a login code is not sent.")
    ] = 900.0
    attempt_worker_concurrency: Annotated[
        int, Setting(whole(1, 10_000), "Attempts a process runs at a time.")
    ] = 50

    idempotency_ttl_s: Annotated[
        float, Setting(duration("7d", "3650d"), "How long a key is kept; never shorter than its delivery.")
    ] = parse_duration("7d")
    delivery_retention_s: Annotated[float, Setting(_RETENTION, "How long a finished delivery is kept.")] = (
        parse_duration("30d")
    )
    payload_retention_s: Annotated[
        float,
        Setting(
            _RETENTION, "How long the content of a finished delivery is kept; login codes are erased at once."
        ),
    ] = parse_duration("7d")
    malformed_retention_s: Annotated[float, Setting(_RETENTION, "How long a malformed command is kept.")] = (
        parse_duration("90d")
    )
    suppression_ttl_s: Annotated[
        float,
        Setting(duration("1m", "3650d"), "How long an address gets no mail after a hard answer about it."),
    ] = USUAL_TTL_S
    cleanup_interval_s: Annotated[float, Setting(duration("1s", "1d"), "How often retention is applied.")] = (
        3600.0
    )
    replica_heartbeat_s: Annotated[
        float, Setting(duration("100ms", "1m"), "How often a replica says it lives.")
    ] = 2.0
    replica_ttl_s: Annotated[
        float, Setting(duration("500ms", "10m"), "Silence after which a replica's deliveries are taken over.")
    ] = 10.0

    limit_recipients: Annotated[int, Setting(whole(1, 1000), "Recipients of one delivery.")] = (
        _LIMIT.recipients
    )
    limit_subject_chars: Annotated[int, Setting(whole(1, 10_000, "characters"), "Length of a subject.")] = (
        _LIMIT.subject_chars
    )
    limit_body_bytes: Annotated[
        int, Setting(whole(1, _MAX_BYTES, "bytes"), "Size of text and of html, each.")
    ] = _LIMIT.body_bytes
    limit_attachments: Annotated[int, Setting(whole(0, 1000), "Attachments of one delivery.")] = (
        _LIMIT.attachments
    )
    limit_attachment_bytes: Annotated[
        int, Setting(whole(1, _MAX_BYTES, "bytes"), "Size of one attachment.")
    ] = _LIMIT.attachment_bytes
    limit_message_bytes: Annotated[
        int, Setting(whole(1024, _MAX_BYTES, "bytes"), "Size of the finished message.")
    ] = _LIMIT.message_bytes
    limit_variables_bytes: Annotated[
        int, Setting(whole(2, 16 * 1024 * 1024, "bytes"), "Size of template variables.")
    ] = _LIMIT.variables_bytes
    limit_variables_depth: Annotated[int, Setting(whole(1, 64), "Nesting of template variables.")] = (
        _LIMIT.variables_depth
    )

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> "Settings":
        """Return the settings that `environ` gives. Raises `SettingsError` with every problem in it."""
        values: dict[str, Any] = {}
        given: set[str] = set()
        problems: list[SettingsProblem] = []
        for name, (field, setting) in _DECLARED.items():
            try:
                source, text = _find(name, setting, environ)
                if text:
                    values[field] = setting.notation.read(text)
                    given.add(source)
            except ValueError as fault:
                problems.append(SettingsProblem(name, str(fault)))
        if "routes_file" in values:
            values["routes"], faults = read_routes(values["routes_file"], environ)
            problems += [SettingsProblem(ROUTES, fault) for fault in faults]
        if "webhooks_file" in values:
            values["webhooks"], faults = read_webhooks(values["webhooks_file"])
            problems += [SettingsProblem(WEBHOOKS, fault) for fault in faults]
        settings = cls(**_with_smtp_tls(values), given=frozenset(given))
        unread = {problem.name for problem in problems}
        problems += _broken_rules(settings, unread)
        problems += _unknown_names(environ)
        if problems:
            raise SettingsError(tuple(problems))
        return settings

    @property
    def is_for_this_machine(self) -> bool:
        """Whether the internal API knows its callers by nothing but that they are on this machine."""
        return not (
            self.internal_http_tokens
            or self.internal_http_tls_client_ca
            or self.internal_http_auth is HttpAuth.NONE
        )

    def tls_of(self, listener: str) -> ListenerTlsFiles | None:
        """Return the TLS of `internal_http`, `send_http` or `console`, None: it speaks plain HTTP."""
        certificate = getattr(self, f"{listener}_tls_cert")
        return certificate and ListenerTlsFiles(
            certificate,
            getattr(self, f"{listener}_tls_key"),
            getattr(self, f"{listener}_tls_client_ca"),
            getattr(self, f"{listener}_tls_client_names"),
        )

    @property
    def has_redis(self) -> bool:
        """Whether commands come by a Redis Stream."""
        return self.redis_master_addr is not None or bool(self.redis_sentinel_addrs)

    @property
    def limits(self) -> Limits:
        """The bounds on one command."""
        return Limits(**{name: getattr(self, f"limit_{name}") for name in Limits.__struct_fields__})

    @property
    def hops(self) -> tuple[HopSettings, ...]:
        """Every next hop: those of the routes file, the default one, and the sinkhole where there is one."""
        hops = self.routes
        if self.smtp_addr is not None and not any(hop.name == DEFAULT_HOP for hop in hops):
            hops += (
                HopSettings(
                    name=DEFAULT_HOP,
                    addresses=(HopAddress(self.smtp_addr),),
                    tls=self.smtp_tls,
                    tls_verify=self.smtp_tls_verify,
                    tls_ca_file=self.smtp_tls_ca_file,
                    username=self.smtp_username,
                    password=self.smtp_password,
                ),
            )
        if self.sinkhole_addr is not None:
            hops += (
                HopSettings(name=SINKHOLE_HOP, addresses=(HopAddress(self.sinkhole_addr),), tls=SmtpTls.NONE),
            )
        return hops

    @property
    def ladders(self) -> dict[DeliveryClass, tuple[float, ...]]:
        """The waits between attempts, in seconds, of each class."""
        return {name: getattr(self, f"retry_ladder_{name}_s") for name in DeliveryClass}

    @property
    def guarantees(self) -> dict[DeliveryClass, Guarantee]:
        """The guarantee of each class, where a command asks for none."""
        return {name: getattr(self, f"guarantee_{name}") for name in DeliveryClass}

    @property
    def smtp_from(self) -> Mailbox:
        """The sender of mail that names none."""
        return Mailbox(self.smtp_from_email.local, self.smtp_from_email.domain, self.smtp_from_name)

    def describe(self) -> tuple[SettingRow, ...]:
        """Return one row a setting, redacted, in the order of declaration; what the routes file says follows."""
        defaults = Settings()
        settings = [
            SettingRow(
                name=name,
                value=_shown(setting, getattr(self, field)),
                source=self._source(name),
                default=_shown(setting, getattr(defaults, field)),
                notation=setting.notation.words,
                meaning=setting.meaning,
                secret=setting.notation.secret,
            )
            for name, (field, setting) in _DECLARED.items()
        ]
        routes = [
            SettingRow(
                name=name,
                value=value,
                source="routes file",
                default=key.unset,
                notation=key.notation.words,
                meaning=key.meaning,
                secret=False,
            )
            for hop in self.routes
            for name, value, key in describe_hop(hop)
        ]
        return (*settings, *routes)

    def _source(self, name: str) -> str:
        if name in self.given:
            return "environment"
        return "file" if f"{name}_FILE" in self.given else "default"


_DECLARED: Final[dict[str, tuple[str, Setting]]] = {
    PREFIX + field.removesuffix("_s").upper(): (field, hint.__metadata__[0])
    for field, hint in get_type_hints(Settings, include_extras=True).items()
    if hasattr(hint, "__metadata__")
}


def _shown(setting: Setting, value: object) -> str:
    return setting.unset if value in (None, "", ()) else setting.notation.show(value)


def _find(name: str, setting: Setting, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the name that gives this setting and its text; empty text: it is unset."""
    text = environ.get(name, "")
    file_name = f"{name}_FILE"
    path = environ.get(file_name, "") if setting.notation.secret else ""
    if not path:
        return name, text
    if text:
        raise ValueError(f"{file_name} is set too; give one of them")
    try:
        return file_name, read_secret(Path(path))
    except ValueError as fault:
        raise ValueError(f"the file that {file_name} names {fault}") from None


def _with_smtp_tls(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with TLS off for a next hop on loopback that says nothing of it (contract section 6)."""
    if "smtp_addr" in values and values["smtp_addr"].is_loopback:
        return {"smtp_tls": SmtpTls.NONE, **values}
    return values


def _unknown_names(environ: Mapping[str, str]) -> Iterator[SettingsProblem]:
    known = [
        *_DECLARED,
        *(f"{name}_FILE" for name, (_, setting) in _DECLARED.items() if setting.notation.secret),
    ]
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            yield SettingsProblem(name, f"is not a setting of Mailkeep{hint}")


class _Rule(msgspec.Struct, frozen=True):
    """What must hold between settings. Reported under the first name; not judged if one of the names is unreadable."""

    names: tuple[str, ...]
    broken: Callable[[Settings], bool]
    message: str


def _off_loopback(endpoint: Endpoint | None) -> bool:
    return endpoint is not None and not endpoint.is_loopback


def _pair_fits(certificate: Path | None, key: Path | None) -> bool:
    return certificate is None or certificate_fits(certificate, key)


def _tls_rules(listener: str) -> tuple[_Rule, ...]:
    """Return what must hold between the TLS settings of a listener."""
    address, cert, key, ca, names = (
        f"{PREFIX}{listener.upper()}_{name}"
        for name in ("ADDR", "TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA", "TLS_CLIENT_NAMES")
    )

    def given(settings: Settings, name: str) -> Any:  # noqa: ANN401 - of any setting
        return getattr(settings, f"{listener}_{name}")

    return (
        _Rule(
            (cert, key, ca),
            lambda s: given(s, "tls_cert") is None and bool(given(s, "tls_key") or given(s, "tls_client_ca")),
            f"is unset although other {cert.removesuffix('CERT')}* settings are given",
        ),
        _Rule(
            (cert, key),
            lambda s: not _pair_fits(given(s, "tls_cert"), given(s, "tls_key")),
            f"and {key} are not a certificate and its key (PEM, without a passphrase)",
        ),
        _Rule(
            (names, ca),
            lambda s: bool(given(s, "tls_client_names")) and given(s, "tls_client_ca") is None,
            f"needs {ca}: only a certificate can have a name",
        ),
        _Rule(
            (cert, address),
            lambda s: given(s, "tls_cert") is not None and given(s, "addr") is None,
            f"is given although {address} is not",
        ),
    )


def _plain_rule(listener: str) -> _Rule:
    """Return that a listener whose callers show tokens speaks no plain HTTP off loopback, unless that is said."""
    address, cert, plain = (f"{PREFIX}{listener.upper()}_{name}" for name in ("ADDR", "TLS_CERT", "PLAIN"))
    return _Rule(
        (address, cert, plain, "MAIL_INTERNAL_HTTP_TOKENS"),
        lambda s: (
            _off_loopback(getattr(s, f"{listener}_addr"))
            and getattr(s, f"{listener}_tls_cert") is None
            and not getattr(s, f"{listener}_plain")
            and (listener != "console" or bool(s.internal_http_tokens))  # without, nothing is shown there
        ),
        f"is not on loopback, and tokens must not cross a network in clear: give {cert}, "
        f"or say {plain}=true if something before it ends TLS",
    )


_RULES: Final = (
    _Rule(
        ("MAIL_POSTGRES_DSN", "MAIL_ENVIRONMENT"),
        lambda s: s.postgres_dsn is None and s.environment in {Environment.STAGING, Environment.PRODUCTION},
        "is required in staging and production; the embedded server is for development",
    ),
    _Rule(
        ("MAIL_REDIS_MASTER_ADDR", "MAIL_REDIS_USERNAME", "MAIL_REDIS_PASSWORD", "MAIL_REDIS_TLS"),
        lambda s: not s.has_redis and bool(s.redis_username or s.redis_password or s.redis_tls),
        "is unset although other MAIL_REDIS_* settings are given",
    ),
    _Rule(
        ("MAIL_REDIS_SENTINEL_ADDRS", "MAIL_REDIS_MASTER_ADDR"),
        lambda s: bool(s.redis_sentinel_addrs) and s.redis_master_addr is not None,
        "and MAIL_REDIS_MASTER_ADDR name the same thing in two ways; give one of them",
    ),
    _Rule(
        ("MAIL_REDIS_USERNAME", "MAIL_REDIS_PASSWORD"),
        lambda s: s.redis_username is not None and s.redis_password is None,
        "needs MAIL_REDIS_PASSWORD or MAIL_REDIS_PASSWORD_FILE",
    ),
    _Rule(
        ("MAIL_REDIS_TLS", "MAIL_REDIS_MASTER_ADDR", "MAIL_ENVIRONMENT"),
        lambda s: (
            s.environment is Environment.PRODUCTION
            and _off_loopback(s.redis_master_addr)
            and "MAIL_REDIS_TLS" not in s.given
        ),
        "must be said in production when Redis is on another machine: true, or false if the network is private",
    ),
    _Rule(
        ("MAIL_INTERNAL_HTTP_TOKENS", "MAIL_INTERNAL_HTTP_ADDR", "MAIL_INTERNAL_HTTP_AUTH"),
        lambda s: (
            not s.internal_http_tokens
            and s.internal_http_auth is not HttpAuth.NONE
            and (
                s.internal_http_auth is HttpAuth.TOKENS
                or (_off_loopback(s.internal_http_addr) and s.internal_http_tls_client_ca is None)
            )
        ),
        "(or MAIL_INTERNAL_HTTP_TOKENS_FILE) is required when MAIL_INTERNAL_HTTP_AUTH=tokens, or when"
        " MAIL_INTERNAL_HTTP_ADDR is not on loopback and no MAIL_INTERNAL_HTTP_TLS_CLIENT_CA is given;"
        " MAIL_INTERNAL_HTTP_AUTH=none opens the listener to its whole network",
    ),
    _Rule(
        ("MAIL_INTERNAL_HTTP_AUTH", "MAIL_INTERNAL_HTTP_TOKENS", "MAIL_INTERNAL_HTTP_TLS_CLIENT_CA"),
        lambda s: (
            s.internal_http_auth is HttpAuth.NONE
            and (bool(s.internal_http_tokens) or s.internal_http_tls_client_ca is not None)
        ),
        "is none although tokens or authorities of clients are given; drop one of the two",
    ),
    *(rule for listener in ("internal_http", "send_http", "console") for rule in _tls_rules(listener)),
    *(_plain_rule(listener) for listener in ("send_http", "console")),
    _Rule(
        ("MAIL_INTERNAL_HTTP_CLIENT_CERT", "MAIL_INTERNAL_HTTP_CLIENT_KEY"),
        lambda s: (
            (s.internal_http_client_cert is None and s.internal_http_client_key is not None)
            or not _pair_fits(s.internal_http_client_cert, s.internal_http_client_key)
        ),
        "and MAIL_INTERNAL_HTTP_CLIENT_KEY are not a certificate and its key (PEM, without a passphrase)",
    ),
    _Rule(
        ("MAIL_SEND_RATE", "MAIL_LIMIT_RECIPIENTS", "MAIL_SEND_HTTP_ADDR"),
        lambda s: s.send_http_addr is not None and s.send_rate < s.limit_recipients,
        "must be at least MAIL_LIMIT_RECIPIENTS, or a mail to so many could never be sent",
    ),
    _Rule(
        ("MAIL_SEND_OIDC_AUDIENCES", "MAIL_SEND_OIDC_ISSUER"),
        lambda s: (s.send_oidc_issuer is not None) != bool(s.send_oidc_audiences),
        "and MAIL_SEND_OIDC_ISSUER go together: tokens of an issuer that are meant for others must not send",
    ),
    _Rule(
        (
            "MAIL_SEND_OIDC_ISSUER",
            "MAIL_SEND_OIDC_KEYS_URL",
            "MAIL_SEND_OIDC_SCOPE",
            "MAIL_SEND_OIDC_SENDERS_FILE",
        ),
        lambda s: (
            s.send_oidc_issuer is None
            and any((s.send_oidc_keys_url, s.send_oidc_scope, s.send_oidc_senders_file))
        ),
        "is unset although other MAIL_SEND_OIDC_* settings are given",
    ),
    _Rule(
        ("MAIL_SEND_HTTP_ADDR", "MAIL_INTERNAL_HTTP_ADDR"),
        lambda s: (
            s.send_http_addr is not None
            and s.send_http_addr.port != 0
            and s.send_http_addr == s.internal_http_addr
        ),
        "is the same as MAIL_INTERNAL_HTTP_ADDR; the two listeners are apart",
    ),
    _Rule(
        (
            "MAIL_CONSOLE_ADDR",
            "MAIL_INTERNAL_HTTP_TOKENS",
            "MAIL_INTERNAL_HTTP_AUTH",
            "MAIL_CONSOLE_TLS_CLIENT_CA",
        ),
        lambda s: (
            _off_loopback(s.console_addr)
            and not s.internal_http_tokens
            and s.console_tls_client_ca is None
            and s.internal_http_auth is not HttpAuth.NONE
        ),
        "is not on loopback, so that it needs MAIL_INTERNAL_HTTP_TOKENS (or MAIL_INTERNAL_HTTP_TOKENS_FILE) to log in with, or MAIL_CONSOLE_TLS_CLIENT_CA;"
        " MAIL_INTERNAL_HTTP_AUTH=none opens it to its whole network",
    ),
    _Rule(
        ("MAIL_CONSOLE_ADDR", "MAIL_INTERNAL_HTTP_ADDR", "MAIL_SEND_HTTP_ADDR"),
        lambda s: (
            s.console_addr is not None
            and s.console_addr.port != 0
            and s.console_addr in (s.internal_http_addr, s.send_http_addr)
        ),
        "is the same as MAIL_INTERNAL_HTTP_ADDR or MAIL_SEND_HTTP_ADDR; the listeners are apart",
    ),
    _Rule(
        ("MAIL_SMTP_MODE", "MAIL_ENVIRONMENT"),
        lambda s: s.environment is Environment.PRODUCTION and "MAIL_SMTP_MODE" not in s.given,
        "must be said in production: smtp, or stub if no mail shall be sent",
    ),
    _Rule(
        ("MAIL_SMTP_ADDR", "MAIL_SMTP_MODE", ROUTES),
        lambda s: s.smtp_mode is SmtpMode.SMTP and not any(hop.name == DEFAULT_HOP for hop in s.hops),
        f"is required when MAIL_SMTP_MODE=smtp, unless MAIL_ROUTES_FILE has a [hop.{DEFAULT_HOP}]",
    ),
    _Rule(
        ("MAIL_SMTP_FROM_EMAIL", "MAIL_SMTP_MODE"),
        lambda s: s.smtp_mode is SmtpMode.SMTP and "MAIL_SMTP_FROM_EMAIL" not in s.given,
        "is required when MAIL_SMTP_MODE=smtp",
    ),
    _Rule(
        ("MAIL_SMTP_USERNAME", "MAIL_SMTP_PASSWORD"),
        lambda s: (s.smtp_username is None) != (s.smtp_password is None),
        "and MAIL_SMTP_PASSWORD (or MAIL_SMTP_PASSWORD_FILE) go together: give both or neither",
    ),
    _Rule(
        ("MAIL_SMTP_TLS", "MAIL_SMTP_ADDR", "MAIL_SMTP_PASSWORD"),
        lambda s: (
            _off_loopback(s.smtp_addr)
            and s.smtp_password is not None
            and s.smtp_tls in {SmtpTls.NONE, SmtpTls.OPPORTUNISTIC}
        ),
        "must be starttls or implicit, or the password may cross the network in clear",
    ),
    _Rule(
        ("MAIL_SMTP_TLS_VERIFY", "MAIL_SMTP_ADDR", "MAIL_SMTP_PASSWORD"),
        lambda s: _off_loopback(s.smtp_addr) and s.smtp_password is not None and not s.smtp_tls_verify,
        "must be true, or the password may go to whoever answers; a hop in MAIL_ROUTES_FILE may pin a certificate",
    ),
    _Rule(
        ("MAIL_SINKHOLE_ADDR", "MAIL_ENVIRONMENT"),
        lambda s: s.environment is Environment.PRODUCTION and s.sinkhole_addr is not None,
        "is refused in production",
    ),
    _Rule(
        ("MAIL_FAULT_POINT", "MAIL_ENVIRONMENT"),
        lambda s: s.environment is Environment.PRODUCTION and s.fault_point is not None,
        "is refused in production",
    ),
    _Rule(
        ("MAIL_REPLICA_TTL", "MAIL_REPLICA_HEARTBEAT"),
        lambda s: s.replica_ttl_s < 3 * s.replica_heartbeat_s,
        "must be at least three times MAIL_REPLICA_HEARTBEAT, or one late beat costs a replica its deliveries",
    ),
    _Rule(
        ("MAIL_PAYLOAD_RETENTION", "MAIL_DELIVERY_RETENTION"),
        lambda s: s.payload_retention_s > s.delivery_retention_s,
        "must not be longer than MAIL_DELIVERY_RETENTION",
    ),
)


def _broken_rules(settings: Settings, unread: set[str]) -> Iterator[SettingsProblem]:
    for rule in _RULES:
        if unread.isdisjoint(rule.names) and rule.broken(settings):
            yield SettingsProblem(rule.names[0], rule.message)
