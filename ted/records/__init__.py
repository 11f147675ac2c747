"""What happened: a node's journal, in SQLite unless a database is named."""
