"""Incident triage: reads the symptoms of the live system once, runs each check, and names the cause, its evidence, the next step."""
