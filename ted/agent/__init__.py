"""The process that receives, relays, serves and reports by itself."""
