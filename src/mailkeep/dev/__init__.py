"""`mailkeep dev`: everything in one process and its private children, for a first look and for development."""
