"""Health checks, verdicts on trial boots, evidence of what failed."""
