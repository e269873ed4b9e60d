"""The RedFlag server: a thin Litestar shell around redflag_core."""
