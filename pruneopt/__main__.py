"""`python -m pruneopt` is `pruneopt`."""

from pruneopt.cli.main import main

main()
