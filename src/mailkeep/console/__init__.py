"""The console: pages for people, over the same verbs as the operators' API and command line."""
