"""`python -m modelvold`: the command line."""

from modelvold.cli import main

main()
