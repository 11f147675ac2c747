"""How a revision is stored: frames, packs, manifests, records, the working directory.

The format has its page, ``docs/format.md``; this room implements it and knows nothing but ``ted.errors``.
Import from its modules: ``entry``, ``revision``, ``builder``, ``blocks``, ``record``, ``working``, ``retention``.
"""
