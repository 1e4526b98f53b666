"""The store in SQLAlchemy Core, one implementation for SQLite and PostgreSQL."""
