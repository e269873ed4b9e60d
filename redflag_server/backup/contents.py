"""What must be true of the database and the keys in a backup, apart from their digests."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import attrs
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from redflag_core.errors import VerificationError
from redflag_core.messages import Role
from redflag_core.trust import verify_bundle, verify_roots
from redflag_server.backup.archive import BackupError, Manifest
from redflag_server.db import migrate
from redflag_server.trust.keystore import KeyStore
from redflag_server.trust.service import current_bundle, read_bundle
from redflag_server.trust.tables import TrustDocument


@attrs.frozen
class Facts:
    """
    What a database says of itself.

    Attributes:
        server: Server id.
        root_fp: Fingerprint of the first root key.
        revision: Its schema.
    """

    server: str
    root_fp: str
    revision: str


def check_database(path: Path) -> Facts:
    """
    Check that a file is a sound database of a server.

    Args:
        path: A database that nobody has open, without a journal.

    Returns:
        Which one it is.

    Raises:
        BackupError: It is damaged, or not a server's.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            sound = database.execute("PRAGMA integrity_check(1)").fetchall() == [("ok",)]
            dangling = database.execute("PRAGMA foreign_key_check").fetchone()
            ((server, root_fp),) = database.execute("SELECT server, root_fp FROM server_state").fetchall()
            ((revision,),) = database.execute("SELECT version_num FROM alembic_version").fetchall()
    except (sqlite3.Error, ValueError):
        raise BackupError("the database is damaged, or is none of a RedFlag server") from None
    if not sound or dangling is not None:
        raise BackupError("the database is damaged")
    return Facts(server, root_fp, revision)


def check_schema(manifest: Manifest) -> None:
    """
    Check that this release knows the schema of a backup, and with it all that came before.

    Raises:
        BackupError: A newer release made it.
    """
    try:
        ScriptDirectory.from_config(migrate.alembic_config()).get_revision(manifest.revision)
    except CommandError:
        raise BackupError(
            f"the backup was made by release {manifest.release}, which is newer than this one: install it first"
        ) from None


async def check_trust(session: AsyncSession, keys: KeyStore, manifest: Manifest) -> None:
    """
    Check that keys and database belong together: agents would believe nothing that the wrong keys sign.

    Args:
        session: The database of the backup, in this release's schema.
        keys: The keys of the backup.
        manifest: What it says of itself.

    Raises:
        BackupError: They do not.
    """
    roots = select(TrustDocument.envelope).where(TrustDocument.kind == "root").order_by(TrustDocument.version)
    try:
        root = verify_roots((await session.scalars(roots)).all(), server=manifest.server, root_fp=manifest.root_fp)
        document = await current_bundle(session)
        # As of its own time: a bundle that is past its end is renewed after the restore.
        issued = datetime.fromtimestamp(read_bundle(document).iat, tz=UTC)
        bundle = verify_bundle(document.envelope, root.key, server=manifest.server, now=issued)
    except VerificationError as error:
        raise BackupError(f"the trust documents in the backup are wrong: {error.message}") from None
    trusted = {(entry.role, entry.open()) for entry in bundle.keys}
    ours = {(Role.COMMAND, keys.command.verify_key), (Role.CHECKPOINT, keys.checkpoint.verify_key)}
    if not ours <= trusted or (keys.root is not None and keys.root.verify_key != root.key):
        raise BackupError("the keys in the backup are not those of its database")
