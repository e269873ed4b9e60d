"""Every table, imported once: the metadata that migrations are checked against."""

from redflag_server.accounts.tables import Credential, SetupLink, User
from redflag_server.agents.tables import Agent, RegistrationToken
from redflag_server.approvals.tables import Approval, CoveredCommand
from redflag_server.checkin.tables import Nonce
from redflag_server.client_errors.tables import ClientError, ErrorBatch
from redflag_server.commands.tables import Command, CommandDelivery, CommandStatement, CommandSubject
from redflag_server.db.base import Base
from redflag_server.events.tables import Consumer, Event, History, HistoryEntry, UnplacedEvent
from redflag_server.jobs.tables import Lease, QueuedJob, Schedule
from redflag_server.organizations.tables import Organization, Site
from redflag_server.packages.tables import Package, Scanner, ScanReport
from redflag_server.plans.tables import Plan
from redflag_server.rate_limits.tables import RateArrival, RateLimit
from redflag_server.trust.tables import OperatorKey, ServerState, TrustDocument

__all__ = [
    "Agent",
    "Approval",
    "Base",
    "ClientError",
    "Command",
    "CommandDelivery",
    "CommandStatement",
    "CommandSubject",
    "Consumer",
    "CoveredCommand",
    "Credential",
    "ErrorBatch",
    "Event",
    "History",
    "HistoryEntry",
    "Lease",
    "Nonce",
    "OperatorKey",
    "Organization",
    "Package",
    "Plan",
    "QueuedJob",
    "RateArrival",
    "RateLimit",
    "RegistrationToken",
    "ScanReport",
    "Scanner",
    "Schedule",
    "ServerState",
    "SetupLink",
    "Site",
    "TrustDocument",
    "UnplacedEvent",
    "User",
]

metadata = Base.metadata
