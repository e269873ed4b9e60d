"""The first tables"""

import sqlalchemy as sa
from advanced_alchemy.types import GUID, DateTimeUTC, JsonB
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _sorted(length: int) -> sa.types.TypeEngine[str]:
    """Text in the order of its code points, as SQLite has it anyway."""
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    """Move the schema forward."""
    op.create_table(
        "nonces",
        sa.Column("created", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("nonce", sa.String(length=22), nullable=False),
        sa.PrimaryKeyConstraint("created", "key_id", "nonce", name=op.f("pk_nonces")),
    )
    op.create_table(
        "organizations",
        sa.Column("id", GUID(length=16), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("created_at", DateTimeUTC(timezone=True), nullable=False),
        sa.CheckConstraint("kind IN ('client', 'installation')", name=op.f("ck_organizations_kind")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organizations")),
        sa.UniqueConstraint("name", name=op.f("uq_organizations_name")),
    )
    op.create_table(
        "schedules",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("next_due", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("last_run", DateTimeUTC(timezone=True), nullable=True),
        sa.Column("last_error", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_schedules")),
    )
    op.create_table(
        "server_state",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("server", sa.String(length=36), nullable=False),
        sa.Column("root_fp", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("gen", sa.BigInteger(), nullable=False),
        sa.Column("nonce_horizon", sa.BigInteger(), nullable=False),
        sa.Column("created_at", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("addresses", JsonB, nullable=False),
        sa.Column("tls_pin", sa.String(length=80), nullable=True),
        sa.CheckConstraint("id = 1", name=op.f("ck_server_state_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_server_state")),
    )
    op.create_table(
        "setup_links",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("expires_at", DateTimeUTC(timezone=True), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_setup_links_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_setup_links")),
    )
    op.create_table(
        "trust_documents",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("created_at", DateTimeUTC(timezone=True), nullable=False),
        sa.CheckConstraint("kind IN ('root', 'bundle')", name=op.f("ck_trust_documents_kind")),
        sa.PrimaryKeyConstraint("kind", "version", name=op.f("pk_trust_documents")),
    )
    op.create_table(
        "events",
        sa.Column("id", GUID(length=16), nullable=False),
        sa.Column("organization_id", GUID(length=16), nullable=False),
        sa.Column("at", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("kind", sa.String(length=128), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("agent_id", GUID(length=16), nullable=True),
        sa.Column("code", sa.String(length=64), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data", JsonB, nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f("fk_events_organization_id_organizations"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index("ix_events_agent_id_id", ["agent_id", "id"], unique=False)
        batch_op.create_index(batch_op.f("ix_events_kind"), ["kind"], unique=False)
        batch_op.create_index("ix_events_organization_id_id", ["organization_id", "id"], unique=False)

    op.create_table(
        "sites",
        sa.Column("id", GUID(length=16), nullable=False),
        sa.Column("organization_id", GUID(length=16), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("created_at", DateTimeUTC(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f("fk_sites_organization_id_organizations"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sites")),
        sa.UniqueConstraint("organization_id", "name", name=op.f("uq_sites_organization_id")),
    )
    op.create_table(
        "users",
        sa.Column("id", GUID(length=16), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("organization_id", GUID(length=16), nullable=True),
        sa.Column("password_hash", sa.String(length=256), nullable=False),
        sa.Column("created_at", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("disabled_at", DateTimeUTC(timezone=True), nullable=True),
        sa.CheckConstraint("role IN ('owner', 'viewer')", name=op.f("ck_users_role")),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f("fk_users_organization_id_organizations"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("name", name=op.f("uq_users_name")),
    )
    op.create_table(
        "credentials",
        sa.Column("id", GUID(length=16), nullable=False),
        sa.Column("user_id", GUID(length=16), nullable=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("scopes", JsonB, nullable=False),
        sa.Column("organization_id", GUID(length=16), nullable=True),
        sa.Column("created_at", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("expires_at", DateTimeUTC(timezone=True), nullable=True),
        sa.Column("last_used_at", DateTimeUTC(timezone=True), nullable=True),
        sa.Column("revoked_at", DateTimeUTC(timezone=True), nullable=True),
        sa.CheckConstraint("kind IN ('session', 'api_key')", name=op.f("ck_credentials_kind")),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f("fk_credentials_organization_id_organizations"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_credentials_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credentials")),
        sa.UniqueConstraint("digest", name=op.f("uq_credentials_digest")),
    )
    with op.batch_alter_table("credentials", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_credentials_user_id"), ["user_id"], unique=False)

    op.create_table(
        "registration_tokens",
        sa.Column("id", GUID(length=16), nullable=False),
        sa.Column("organization_id", GUID(length=16), nullable=False),
        sa.Column("site_id", GUID(length=16), nullable=False),
        sa.Column("label", sa.String(length=256), nullable=False),
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("seats", sa.Integer(), nullable=False),
        sa.Column("used", sa.Integer(), nullable=False),
        sa.Column("expires_at", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("cidr", sa.String(length=64), nullable=True),
        sa.Column("needs_approval", sa.Boolean(), nullable=False),
        sa.Column("created_at", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.Column("revoked_at", DateTimeUTC(timezone=True), nullable=True),
        sa.CheckConstraint("used >= 0 AND used <= seats", name=op.f("ck_registration_tokens_seats")),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f("fk_registration_tokens_organization_id_organizations"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["site_id"], ["sites.id"], name=op.f("fk_registration_tokens_site_id_sites"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_registration_tokens")),
        sa.UniqueConstraint("digest", name=op.f("uq_registration_tokens_digest")),
    )
    op.create_table(
        "agents",
        sa.Column("id", GUID(length=16), nullable=False),
        sa.Column("organization_id", GUID(length=16), nullable=False),
        sa.Column("site_id", GUID(length=16), nullable=False),
        sa.Column("hostname", sa.String(length=256), nullable=False),
        sa.Column("os", JsonB, nullable=False),
        sa.Column("agent_version", sa.String(length=128), nullable=False),
        sa.Column("protocol", JsonB, nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("status_reason", sa.Text(), nullable=False),
        sa.Column("status_at", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("registered_at", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("registered_with", GUID(length=16), nullable=True),
        sa.Column("key_type", sa.String(length=16), nullable=False),
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("public_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("executor_key_id", sa.String(length=32), nullable=False),
        sa.Column("executor_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("token_version", sa.Integer(), nullable=False),
        sa.Column("machine_binding", sa.String(length=32), nullable=False),
        sa.Column("evidence", JsonB, nullable=False),
        sa.Column("evidence_digest", sa.String(length=64), nullable=False),
        sa.Column("presented_evidence", JsonB, nullable=True),
        sa.Column("mismatch_since", DateTimeUTC(timezone=True), nullable=True),
        sa.Column("last_match_at", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("boot_id", sa.String(length=64), nullable=True),
        sa.Column("previous_boot_id", sa.String(length=64), nullable=True),
        sa.Column("first_refresh_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("first_evidence_digest", sa.String(length=64), nullable=False),
        sa.Column("refresh_current", sa.LargeBinary(length=32), nullable=False),
        sa.Column("refresh_previous", sa.LargeBinary(length=32), nullable=True),
        sa.Column("refresh_generation", sa.Integer(), nullable=False),
        sa.Column("refresh_expires_at", sa.BigInteger(), nullable=False),
        sa.Column("refresh_adopted_gen", sa.BigInteger(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("gen", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_at", DateTimeUTC(timezone=True), nullable=True),
        sa.Column("last_address", sa.String(length=64), nullable=True),
        sa.Column("next_check_in_at", DateTimeUTC(timezone=True), nullable=True),
        sa.Column("rate_arrival", sa.Float(), nullable=True),
        sa.CheckConstraint(
            "status IN ('pending', 'active', 'quarantined', 'hardware_changed', 'renewal_pending', 'revoked')",
            name=op.f("ck_agents_status"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f("fk_agents_organization_id_organizations"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["registered_with"],
            ["registration_tokens.id"],
            name=op.f("fk_agents_registered_with_registration_tokens"),
            ondelete="RESTRICT",
        ),
        sa.ForeignKeyConstraint(
            ["site_id"], ["sites.id"], name=op.f("fk_agents_site_id_sites"), ondelete="RESTRICT"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agents")),
        sa.UniqueConstraint("executor_key_id", name=op.f("uq_agents_executor_key_id")),
        sa.UniqueConstraint("key_id", name=op.f("uq_agents_key_id")),
    )
    with op.batch_alter_table("agents", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_agents_last_seen_at"), ["last_seen_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_agents_machine_binding"), ["machine_binding"], unique=False)
        batch_op.create_index("ix_agents_organization_id_id", ["organization_id", "id"], unique=False)
        batch_op.create_index(batch_op.f("ix_agents_site_id"), ["site_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_agents_status"), ["status"], unique=False)

    op.create_table(
        "client_errors",
        sa.Column("id", GUID(length=16), nullable=False),
        sa.Column("organization_id", GUID(length=16), nullable=False),
        sa.Column("agent_id", GUID(length=16), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("subsystem", sa.String(length=128), nullable=False),
        sa.Column("type", sa.String(length=128), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("stack", sa.Text(), nullable=True),
        sa.Column("context", JsonB, nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("first_seen_at", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("last_seen_at", DateTimeUTC(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name=op.f("fk_client_errors_agent_id_agents"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f("fk_client_errors_organization_id_organizations"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_client_errors")),
        sa.UniqueConstraint("agent_id", "digest", name=op.f("uq_client_errors_agent_id")),
    )
    with op.batch_alter_table("client_errors", schema=None) as batch_op:
        batch_op.create_index(
            "ix_client_errors_organization_id_last_seen_at", ["organization_id", "last_seen_at"], unique=False
        )

    op.create_table(
        "error_batches",
        sa.Column("id", GUID(length=16), nullable=False),
        sa.Column("organization_id", GUID(length=16), nullable=False),
        sa.Column("agent_id", GUID(length=16), nullable=False),
        sa.Column("received_at", DateTimeUTC(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name=op.f("fk_error_batches_agent_id_agents"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f("fk_error_batches_organization_id_organizations"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_error_batches")),
    )
    with op.batch_alter_table("error_batches", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_error_batches_agent_id"), ["agent_id"], unique=False)

    op.create_table(
        "packages",
        sa.Column("id", GUID(length=16), nullable=False),
        sa.Column("organization_id", GUID(length=16), nullable=False),
        sa.Column("agent_id", GUID(length=16), nullable=False),
        sa.Column("manager", _sorted(length=32), nullable=False),
        sa.Column("scanner", sa.String(length=32), nullable=False),
        sa.Column("name", _sorted(length=256), nullable=False),
        sa.Column("arch", _sorted(length=32), nullable=False),
        sa.Column("installed", sa.String(length=256), nullable=True),
        sa.Column("available", sa.String(length=256), nullable=True),
        sa.Column("observed", sa.String(length=24), nullable=False),
        sa.Column("state", sa.String(length=24), nullable=False),
        sa.Column("state_at", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("severity", sa.String(length=16), nullable=False),
        sa.Column("security", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("origin", sa.Text(), nullable=True),
        sa.Column("source", sa.String(length=256), nullable=True),
        sa.Column("source_version", sa.String(length=256), nullable=True),
        sa.Column("download_size", sa.BigInteger(), nullable=True),
        sa.Column("automatic", sa.Boolean(), nullable=False),
        sa.Column("cves", JsonB, nullable=False),
        sa.Column("first_seen_at", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("present", sa.Boolean(), nullable=False),
        sa.CheckConstraint(
            "observed IN ('current', 'available', 'held', 'kept_back', 'phased', 'approved', 'deferred', 'excluded', 'planning', 'needs_confirmation', 'installing', 'reboot_pending', 'installed', 'failed', 'rolled_back', 'not_applicable', 'unknown')",
            name=op.f("ck_packages_observed"),
        ),
        sa.CheckConstraint(
            "severity IN ('unknown', 'low', 'moderate', 'important', 'critical')",
            name=op.f("ck_packages_severity"),
        ),
        sa.CheckConstraint(
            "state IN ('current', 'available', 'held', 'kept_back', 'phased', 'approved', 'deferred', 'excluded', 'planning', 'needs_confirmation', 'installing', 'reboot_pending', 'installed', 'failed', 'rolled_back', 'not_applicable', 'unknown')",
            name=op.f("ck_packages_state"),
        ),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name=op.f("fk_packages_agent_id_agents"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f("fk_packages_organization_id_organizations"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_packages")),
        sa.UniqueConstraint("agent_id", "scanner", "name", "arch", name=op.f("uq_packages_agent_id")),
    )
    with op.batch_alter_table("packages", schema=None) as batch_op:
        batch_op.create_index(
            "ix_packages_agent_id_state_security", ["agent_id", "state", "security"], unique=False
        )
        batch_op.create_index("ix_packages_organization_id_state", ["organization_id", "state"], unique=False)

    op.create_table(
        "scan_reports",
        sa.Column("id", GUID(length=16), nullable=False),
        sa.Column("organization_id", GUID(length=16), nullable=False),
        sa.Column("agent_id", GUID(length=16), nullable=False),
        sa.Column("scanner", sa.String(length=32), nullable=False),
        sa.Column("received_at", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("taken_at", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("full", sa.Boolean(), nullable=False),
        sa.Column("changed", sa.Integer(), nullable=False),
        sa.Column("removed", sa.Integer(), nullable=False),
        sa.Column("inventory_hash", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name=op.f("fk_scan_reports_agent_id_agents"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f("fk_scan_reports_organization_id_organizations"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scan_reports")),
    )
    with op.batch_alter_table("scan_reports", schema=None) as batch_op:
        batch_op.create_index("ix_scan_reports_agent_id_received_at", ["agent_id", "received_at"], unique=False)

    op.create_table(
        "scanners",
        sa.Column("id", GUID(length=16), nullable=False),
        sa.Column("organization_id", GUID(length=16), nullable=False),
        sa.Column("agent_id", GUID(length=16), nullable=False),
        sa.Column("name", _sorted(length=32), nullable=False),
        sa.Column("manager", sa.String(length=32), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("warnings", JsonB, nullable=False),
        sa.Column("facts", JsonB, nullable=False),
        sa.Column("duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("taken_at", DateTimeUTC(timezone=True), nullable=False),
        sa.Column("succeeded_at", DateTimeUTC(timezone=True), nullable=True),
        sa.Column("inventory_hash", sa.String(length=64), nullable=True),
        sa.CheckConstraint("status IN ('ok', 'failed', 'open')", name=op.f("ck_scanners_status")),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name=op.f("fk_scanners_agent_id_agents"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f("fk_scanners_organization_id_organizations"),
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scanners")),
        sa.UniqueConstraint("agent_id", "name", name=op.f("uq_scanners_agent_id")),
    )
    with op.batch_alter_table("scanners", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_scanners_agent_id"), ["agent_id"], unique=False)


def downgrade() -> None:
    """Move the schema back."""
    with op.batch_alter_table("scanners", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_scanners_agent_id"))

    op.drop_table("scanners")
    with op.batch_alter_table("scan_reports", schema=None) as batch_op:
        batch_op.drop_index("ix_scan_reports_agent_id_received_at")

    op.drop_table("scan_reports")
    with op.batch_alter_table("packages", schema=None) as batch_op:
        batch_op.drop_index("ix_packages_organization_id_state")
        batch_op.drop_index("ix_packages_agent_id_state_security")

    op.drop_table("packages")
    with op.batch_alter_table("error_batches", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_error_batches_agent_id"))

    op.drop_table("error_batches")
    with op.batch_alter_table("client_errors", schema=None) as batch_op:
        batch_op.drop_index("ix_client_errors_organization_id_last_seen_at")

    op.drop_table("client_errors")
    with op.batch_alter_table("agents", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_agents_status"))
        batch_op.drop_index(batch_op.f("ix_agents_site_id"))
        batch_op.drop_index("ix_agents_organization_id_id")
        batch_op.drop_index(batch_op.f("ix_agents_machine_binding"))
        batch_op.drop_index(batch_op.f("ix_agents_last_seen_at"))

    op.drop_table("agents")
    op.drop_table("registration_tokens")
    with op.batch_alter_table("credentials", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_credentials_user_id"))

    op.drop_table("credentials")
    op.drop_table("users")
    op.drop_table("sites")
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.drop_index("ix_events_organization_id_id")
        batch_op.drop_index(batch_op.f("ix_events_kind"))
        batch_op.drop_index("ix_events_agent_id_id")

    op.drop_table("events")
    op.drop_table("trust_documents")
    op.drop_table("setup_links")
    op.drop_table("server_state")
    op.drop_table("schedules")
    op.drop_table("organizations")
    op.drop_table("nonces")
