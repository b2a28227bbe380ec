"""The ways in. All of them meet in one use case, `accept`; none of them talks to dispatch but through its commit."""
