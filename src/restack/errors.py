"""Every error that Restack raises on purpose: one line that says what is wrong, the limit, and what to do."""


class RestackError(Exception):
    """The base of them all; the command line prints it on one line and exits with status 2."""


class PlanError(RestackError, ValueError):
    """A plan, or a notation for one, is not valid."""


class ViewError(RestackError, ValueError):
    """A plan cannot be run on this model."""


class ModelError(RestackError, ValueError):
    """A model cannot be opened: not there, not a model, unknown, or too large."""


class UsageError(RestackError, ValueError):
    """An option or an input cannot be used."""
