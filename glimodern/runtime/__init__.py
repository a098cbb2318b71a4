"""Process-wide state that results must not depend on: torch's ambient settings, threads after a fork."""
