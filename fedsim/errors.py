"""Errors whose messages are meant for the person who runs an experiment."""


class FedsimError(Exception):
    """Base: the message says where, what was expected, what came, and what to do."""


class ConfigError(FedsimError):
    """The experiment asks for something that cannot be."""


class DataMissing(FedsimError):
    """A data set is neither on disk nor to be had; the message says what to place where."""


class RunFailed(FedsimError):
    """The run ended early; what it recorded is kept and usable."""
