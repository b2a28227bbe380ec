"""`mailkeep`, and `python -m mailkeep`: the command line, or one line that says what it needs where only the client is installed."""


def main() -> None:
    """Run the command line."""
    try:
        from mailkeep.cli import main as run  # noqa: PLC0415 - what it imports may be missing
    except ModuleNotFoundError as fault:
        raise SystemExit(
            f"mailkeep: {fault.name} is not installed; the command line belongs to the server: pip install 'mailkeep[server]'"
        ) from None
    run()


if __name__ == "__main__":
    main()
