"""Drills: Mailkeep proves its own promises on a deployment, one step after another, and says what it saw."""
