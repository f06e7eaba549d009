"""The store: one Postgres, embedded or somebody else's, with migrations, roles and tenants."""
