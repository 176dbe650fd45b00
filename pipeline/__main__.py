"""What `retort` and `python -m pipeline` run. Imports nothing until it can say what ctrl-C has done."""

from pipeline.cli import interrupt


def main() -> None:
    """Entry point: ctrl-C is one line and exit code 130 while the verbs are imported, too."""
    with interrupt.quiet("stopped; run the same command to resume"):
        from pipeline import quiet

        quiet.libraries()
        from pipeline.cli import app

        app.main()


if __name__ == "__main__":
    main()
