"""The contracts as documents: OpenAPI of the internal listener, AsyncAPI of the stream, JSON Schema of the command.

Built from the value types that the service itself decodes with; what validation says beyond their types is written beside
them in `schemas`, and tests drive the live service from the documents. `api/` holds them as files. Pure, and made anew
only when asked for; called by `wiring`, which serves the first, and by `api/generate.py`.
"""
