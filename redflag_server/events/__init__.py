"""What happened, for people and for bridges."""
