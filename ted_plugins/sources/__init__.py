"""What the types that fetch share: a mirror of remote files, a rate for all connections of a build, secrets.

Any plugin may use it (``docs/plugins.md``); nothing here knows a protocol, and nothing reaches into the engine.
"""
