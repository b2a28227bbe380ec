"""The SMTP client: the way out.

Pure: `reply`, `capabilities`, `envelope`, `login`, `dialog`, `classify` (with `rules.toml`), `ending`, `next_hop`, `routes`,
`failover`.
Shell: `tls`, `alarm`, `session` (one connection), `connect`, `converse` (a dialog spoken over a session), `token`, `dial`
(the addresses of a hop), `pace`, `pool` (what dispatch calls), `probe` (what an operator calls).
"""
