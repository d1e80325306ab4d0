"""The nouns of the project as plain values. Standard library only: no torch, no database, no clock."""
