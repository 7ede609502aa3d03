"""Where alembic gets its connection: `server.store` hands over an open one, so a migration is one
transaction with it.
"""

from alembic import context

from server.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
