"""How people look after the mail: what they read, and what they may change."""
