"""The sinkhole: an SMTP server whose answers are chosen at run time, for development, drills and tests.

`script` decides (pure), `wire` reads the protocol (pure), `session` speaks it, `capture` keeps what arrived, `mode_source`
says which answers are in force, `server` puts them behind a port. It never relays, and never runs in production.
"""
