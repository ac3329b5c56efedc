"""The command `autoprune`, also as `python -m autoprune`, without its script on the path."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is imported ends without a traceback, too."""
    try:
        from autoprune.cli.main import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run(own_process=True)


if __name__ == "__main__":
    main()
