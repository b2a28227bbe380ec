"""The SMTP client: the way out.

Pure: `reply`, `redact`, `capabilities`, `envelope`, `dialog`, `classify` (with `rules.toml`), `ending`, `next_hop`.
Shell: `tls`, `alarm`, `session` (one connection), `connect`, `converse` (a dialog spoken over a session), `pool` (what
dispatch calls).
"""
