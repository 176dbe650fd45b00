"""The process of one stage: `python -m pipeline.cli.child STAGE`. It catches ctrl-C before large imports."""

from pipeline.cli import interrupt


def main() -> None:
    """Do the stage. After ctrl-C the exit code is 130, and nothing is said: verbs.py does."""
    with interrupt.quiet():
        from pipeline.cli import stage
    try:
        stage.main()
    except KeyboardInterrupt:
        raise SystemExit(interrupt.CODE) from None


if __name__ == "__main__":
    main()
