"""Patches: what turns one revision into the pack of the next. The form is in ``docs/format.md`` section 11.

* ``streams``: the file, columns of numbers and bytes in compressed chunks.
* ``covers``: which old bytes return where.
* ``base``: the old revision as one line of bytes that a patch can point into.
* ``entries``: the manifest as columns against the old one.
* ``packages``, ``layout``: which packages are opened, and their parts; ``opened``: bytes with streams opened.
* ``create``, ``apply``: the two directions.
"""
