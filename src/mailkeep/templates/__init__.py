"""Content: a catalog of templates, their rendering in the reader's locale, and the message's bytes."""
