"""Fixtures of the end-to-end tests."""

from tests.beds.apt import apt_bed, shared_apt_bed

__all__ = ["apt_bed", "shared_apt_bed"]
