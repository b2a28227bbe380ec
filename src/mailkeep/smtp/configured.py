"""Turns the configured next hops of `Settings` into what sessions need. Pure but for this machine's own name.

Called by `wiring`, which sends through them, and by those who look at them: the doctor and `mailkeep routes`.
"""

import socket

import msgspec

from mailkeep.settings import HopSettings, Settings
from mailkeep.smtp.next_hop import AuthMechanism, HopAddress, NextHop, Timers, TlsMode
from mailkeep.smtp.pace import connections_at_pace


def next_hops(settings: Settings) -> dict[str, NextHop]:
    """Return the next hops by name, those of the routes file and those of the environment alike."""
    return {hop.name: _next_hop(hop, settings) for hop in settings.hops}


def _next_hop(hop: HopSettings, settings: Settings) -> NextHop:
    usual = Timers().capped(settings.smtp_timeout_s, settings.smtp_data_timeout_s)
    max_connections = hop.max_connections or settings.smtp_max_connections
    return NextHop(
        name=hop.name,
        addresses=tuple(
            HopAddress(server.endpoint.host, server.endpoint.port, server.priority, server.weight)
            for server in hop.addresses
        ),
        tls=TlsMode(hop.tls),
        helo_name=hop.helo_name or settings.smtp_helo_name or socket.getfqdn() or "localhost",
        username=hop.username,
        password=hop.password.reveal() if hop.password else None,
        token_command=tuple(word.reveal() for word in hop.token_command),
        token_ttl_s=hop.token_ttl_s,
        auth=tuple(AuthMechanism(way.upper()) for way in hop.auth),
        auth_without_tls=hop.auth_without_tls,
        verify=hop.tls_verify,
        ca_file=str(hop.tls_ca_file) if hop.tls_ca_file else None,
        fingerprints=hop.tls_fingerprints,
        client_certificate=str(hop.tls_client_certificate) if hop.tls_client_certificate else None,
        client_key=str(hop.tls_client_key) if hop.tls_client_key else None,
        max_connections=connections_at_pace(max_connections, hop.messages_per_s),
        messages_per_connection=hop.messages_per_connection,
        messages_per_s=hop.messages_per_s,
        source_address=hop.source_address,
        timers=msgspec.structs.replace(
            usual, **{f"{name}_s": limit_s for name, limit_s in hop.timers_s.items()}
        ),
        domains=hop.domains,
    )
