"""How it travels: routing slips, messages, the client and the server of a hop."""
