"""``python -m ted``."""

from ted.cli.main import main

main()
