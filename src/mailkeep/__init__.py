"""Mailkeep: a durable outbound mail service."""
