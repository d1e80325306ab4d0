"""What a study has found, kept: rows in SQLite or PostgreSQL, frames in a folder.

`repository.Store` and `artifacts.Artifacts` are the room's two doors; this module itself loads nothing, so that
SQLAlchemy costs its 0.4 s only where a store is opened.
"""
