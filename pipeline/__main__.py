"""What `retort` and `python -m pipeline` run. Imports nothing until it can say what ctrl-C has done."""

import sys


def main() -> None:
    """Entry point: ctrl-C is one line and exit code 130 while the verbs are imported, too."""
    try:
        from pipeline import quiet

        quiet.libraries()
        from pipeline import cli

        cli.main()
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from what is committed\n")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
