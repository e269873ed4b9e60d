"""What the command line says after a backup or a restore: what was done, and what people must do now."""

from datetime import UTC, datetime
from pathlib import Path

from redflag_core.freshness import TOLERANCE, unix
from redflag_server.backup.create import Backup
from redflag_server.backup.restore import Restored


def backup_lines(made: Backup, to: Path | None, *, noted: bool) -> list[str]:
    """
    What to say of a backup.

    Args:
        made: The backup.
        to: Its file, or None for standard output.
        noted: Whether there is an event of it.
    """
    lines = [] if to is None else [f"The backup is in {to}."]
    lines += [
        f"{made.size} bytes, sha256 {made.sha256}",
        "It holds the server's keys in clear: whoever reads it can be your server. Encrypt it, or guard it well.",
    ]
    if not made.manifest.has_root_key:
        lines.append("The root key is not on this server, so it is not in the backup: keep it safe where it is.")
    if not noted:
        lines.append("There is no event of it: the database is busy, or of another release.")
    return lines


def restore_lines(done: Restored, data: Path, *, now: datetime) -> list[str]:
    """
    What to say of a restore.

    Args:
        done: The restore.
        data: The data directory.
        now: Current time, aware UTC.
    """
    outcome, made = done.outcome, _minute(done.manifest.created_at)
    until = _minute(outcome.nonce_horizon + 60)
    back = f"{outcome.users} users, {outcome.api_keys} API keys and {outcome.machines} machines"
    lines = [
        f"The server in {data} is the one of the backup of {made}.",
        f"Its root fingerprint is {done.manifest.root_fp}: compare it with the one that you noted.",
        f"Start it. It answers agents from {until} on, and they go on by themselves.",
        f"Sessions ended: {outcome.sessions}. Registration tokens revoked: {outcome.registration_tokens}.",
        f"What was revoked or disabled after {made} is back. Look through the {back} that may come in now.",
    ]
    if done.manifest.created_at > unix(now) + TOLERANCE:
        lines.append("The backup is from the future of this machine: set its clock before you start the server.")
    if done.replaced is not None:
        lines.append(f"The server that was there before is in {done.replaced}.")
    return lines


def _minute(moment: int) -> str:
    return f"{datetime.fromtimestamp(moment, tz=UTC):%Y-%m-%d %H:%M} UTC"
