"""Packages of a package manager as distributions: what the types rpm and deb share.

``options`` what an inventory may say; ``gather`` and ``repositories`` the Distributor's side, which needs no package
manager; ``plan`` what is to happen on a Subscriber, and the test before it; ``carry_out`` makes it happen, in a process
of its own, and takes it back; ``rpm`` and ``deb`` each package manager; ``rpm_file`` and ``deb_file`` the formats.
"""
