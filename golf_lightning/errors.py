"""The one error a user is meant to read."""


class GolfError(ValueError):
    """Bad input, told in one sentence that says what is wrong and what to do.

    ``python -m golf_lightning`` prints the sentence without a traceback and exits with status 2. Everything else that
    is raised is a defect and keeps its traceback.
    """


class Interrupted(BaseException):
    """A signal ended the run; ``python -m golf_lightning`` exits with 128 plus its number.

    Not an ``Exception``, so that no handler of ordinary errors between here and there swallows it.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal
