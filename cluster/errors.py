"""The one kind of failure here: a sentence for a person, without traceback."""


class ClusterError(Exception):
    """What was found and where, what was expected, what to do."""


class MissingError(ClusterError):
    """This machine can't carry a cluster; the message lists what it lacks."""
