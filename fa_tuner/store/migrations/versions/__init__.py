"""One module a migration. A migration never changes once it was released, so it imports nothing of `schema.py`."""
