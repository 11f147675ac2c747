"""Opening packages: what lies compressed in zip, gzip, xz, zstd, deb and rpm files, and making the very bytes again.

* ``codecs``: inflating, and the recipes by which a compressor gives the same bytes once more.
* ``containers``: where compressed streams lie in a file; told by its bytes, not by its name.
* ``archives``: where the files of a tar or cpio archive begin.

Nothing here knows revisions or patches; ``ted.content.patch.opened`` uses it.
"""
