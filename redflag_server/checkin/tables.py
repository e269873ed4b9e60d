"""Nonces that were used."""

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from redflag_server.db.base import Base


class Nonce(Base):
    """
    One used nonce, unique with its sender and its signed time.

    Kept until ``created`` + 600 s; the horizon in `ServerState` refuses what is older than the purge.
    """

    __tablename__ = "nonces"

    created: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    key_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    nonce: Mapped[str] = mapped_column(String(22), primary_key=True)
