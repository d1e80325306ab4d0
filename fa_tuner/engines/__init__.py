"""Who generates: the engine contract and its implementations, found through entry points."""
