"""The built-in distribution types, written only against what any plugin may import."""
