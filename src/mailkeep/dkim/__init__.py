"""DKIM: what proves to a receiver that a domain sent a message, and that nobody changed it on the way."""
