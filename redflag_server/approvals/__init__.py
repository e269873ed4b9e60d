"""Approvals: asked for in a file, signed by an operator elsewhere, stored here, and shown with what they cover."""
