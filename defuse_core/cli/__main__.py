"""`python -m defuse_core.cli` is the command `defuse`."""

from defuse_core.cli.main import main

main()
