"""What can go wrong in a way that the user can put right."""


class RunError(RuntimeError):
    """A run that cannot be made; the message is one sentence that says how to put it right."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says what to do."""
