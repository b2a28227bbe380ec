"""Which host a request names: a page of another site may be led to this machine by its own name server (DNS rebinding)."""

import ipaddress
from functools import lru_cache


@lru_cache(maxsize=256)
def is_local(host: str) -> bool:
    """Whether a Host header names this machine: `localhost` or a loopback address, with or without a port (RFC 9110 section 7.2)."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        return name.lower() == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
