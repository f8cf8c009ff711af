"""Errors of the bench."""


class BenchError(Exception):
    """Base of what the bench raises on its own."""


class BadOption(BenchError):
    """Raised when an option has a value that cannot work, with a sentence for the user."""


class SystemFailed(BenchError):
    """Raised when a system did not do what a case asks for; becomes a row with this text as the reason."""


class NotInstalled(BenchError):
    """Raised when a peer's package is missing; becomes rows that name the extra to install."""


class NotApplicable(BenchError):
    """Raised when a system has nothing that a case could be done to; becomes a row that says so."""
