"""
Production stores for programs that embed the library: nonces and rate limits in a database of theirs.

| Module | Database | Who calls it |
|---|---|---|
| `redflag_core.stores.sqlite` | SQLite, with the standard library | anybody, with or without an event loop |
| `redflag_core.stores.asyncpg` | PostgreSQL | an event loop |
| `redflag_core.stores.psycopg` | PostgreSQL | anybody, with or without an event loop |

Import the module of your driver; none is loaded by this package. ``pip install redflag-rmm[stores]`` brings the
drivers of PostgreSQL.

The rules that all of them keep:

- What is said was stored. A claim that was answered True is on the disk; when the answer is not known, it is a
  `StoreError`, and what depended on it has to be refused.
- One statement decides. Two callers never both win, whichever process, thread or machine they are in.
- The same arithmetic and the same limits of keys as in the core: `redflag_core.rate_limit.step`, `check_key`,
  `redflag_core.freshness.check_claim`.
- No table is made behind your back: call `create`, or put its statements, `ddl`, into your own migrations.
"""
