"""The SMTP client: the way out.

Pure: `reply`, `redact`, `capabilities`, `envelope`, `dialog`, `classify` (with `rules.toml`), `ending`, `next_hop`.
Shell: `tls`, `session` (one connection), `converse` (a dialog spoken over it), `pool` (what dispatch calls).
"""
