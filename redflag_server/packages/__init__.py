"""Scan reports and what the fleet lacks."""
