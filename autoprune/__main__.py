"""`python -m autoprune`: the command line, without its script on the path."""

from autoprune.cli.main import main

main()
