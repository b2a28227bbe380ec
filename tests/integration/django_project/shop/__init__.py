"""A small shop that sends mail: orders with a confirmation, and Django's own password reset."""
