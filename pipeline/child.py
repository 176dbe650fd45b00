"""The process of one stage: `python -m pipeline.child STAGE`. Ctrl-C is caught before anything large is imported."""

from pipeline import interrupt


def main() -> None:
    """Do the stage. After ctrl-C the exit code is 130, and nothing is said: cli.py does."""
    with interrupt.quiet():
        from pipeline import stage
    try:
        stage.main()
    except KeyboardInterrupt:
        raise SystemExit(interrupt.CODE) from None


if __name__ == "__main__":
    main()
