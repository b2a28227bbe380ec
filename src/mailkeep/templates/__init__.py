"""Content: a catalog of templates, their rendering in the reader's locale, and the bytes of the finished message."""
