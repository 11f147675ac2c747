"""Who said so: keys, signed catalogs, trusted roots, slips, certificates between nodes.

Rules:
 * A Distributor is a repository in the sense of The Update Framework; ``tuf`` does the verifying.
 * Trust in a Distributor (``root.json``) and trust in a node (its certificate) are two things:
   a relay with a valid certificate can still not change what it relays.
 * Verified first, stored after; stored in an order in which a reader never meets a dangling name.
 * Private keys never leave their directory and are readable by their owner only.

Rooms: ``names`` and ``files`` (helpers), ``keys`` (private keys), ``chain`` (a catalog at rest),
``catalog`` (a Distributor's), ``anchors`` (trusted roots), ``view`` (a receiver's), ``client`` (how
it is brought up to date), ``signing`` (routing slips), ``realm`` (certificates). Nothing is imported here: a command
starts quickly.
"""
