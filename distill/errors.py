"""What can go wrong in service distillation: one base, a leaf for each thing that a caller may want to tell apart."""


class DistillError(Exception):
    """Base of all errors of this package."""


class ProtocolError(DistillError):
    """Raised when a message is not what the Open Inference Protocol says."""


class ConfigError(DistillError, ValueError):
    """Raised when a setting is unknown, missing or contradicts another; it names the setting."""


class NoTeacher(DistillError):
    """Raised when no teacher serves what is asked for, within the time that may be waited."""


class TeacherRefused(DistillError):
    """Raised when a teacher answers with an error that another try would not change (4xx)."""


class TeacherUnavailable(DistillError):
    """Raised when a teacher cannot be reached, breaks off or is overloaded: another one, or later, may do."""


class Mismatch(DistillError):
    """Raised when a teacher is not the one that the student was made for: hash, classes, names, dtypes or shapes."""


class ModelError(DistillError):
    """Raised when a model cannot be loaded or does not run."""
