"""The RedFlag agent: a thin shell around redflag_core that scans and patches one machine."""
