"""File type (being written)."""
