"""Patches: what turns one revision into the pack of the next. The form is in ``docs/format.md`` section 10.

* ``streams``: the file, columns of numbers and bytes in compressed chunks.
* ``covers``: which old bytes return where.
* ``base``: the old revision as one line of bytes that a patch can point into.
* ``entries``: the manifest as columns against the old one.
* ``create``, ``apply``: the two directions.
"""
