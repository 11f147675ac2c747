"""``python -m ted_plugins.packages forward|back PLAN``: what ted's transaction runs; see ``carry_out``."""

from __future__ import annotations

import sys

from ted_plugins.packages.carry_out import main

sys.exit(main(sys.argv[1:]))
