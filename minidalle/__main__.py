"""The way in from a terminal: `minidalle`, or `python -m minidalle`.

torch takes a second or more to import, and Ctrl-C may come meanwhile: so nothing is imported before it is waited for.
"""

import sys


def main() -> int:
    """Run the command line; its imports may be stopped too."""
    try:
        from minidalle.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("\nminidalle: stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
