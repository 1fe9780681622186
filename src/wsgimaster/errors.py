"""Every error that wsgimaster raises on purpose; each says whose fault it is and what to do next."""

EXIT_CHECK_FAILED = 23  # `reload-check`: ours
EXIT_HOOK_FAILED = 24  # in a zygote or a worker: ours
EXIT_NO_APP = 22  # `need-app` and no application: uWSGI's UWSGI_FAILED_APP_CODE, which supervisors know


class WsgimasterError(Exception):
    """The root: anything else that escapes is a defect of ours, please report it."""


class ConfigError(WsgimasterError):
    """What somebody wrote in a file or on the command line can't be used.

    where: "uwsgi.ini:12" or "command line"; option: the name as it was written, or None;
    problem: what was found and what was expected, in one sentence; hint: the next step, or None.
    """

    def __init__(self, where: str, option: str | None, problem: str, hint: str | None = None) -> None:
        self.where, self.option, self.problem, self.hint = where, option, problem, hint
        subject = f"{where}: {option}: " if option else f"{where}: "
        super().__init__(subject + problem + (f" ({hint})" if hint else ""))


class ConfigErrors(WsgimasterError):
    """All problems of one configuration, in the order in which they were written."""

    def __init__(self, errors: list[ConfigError]) -> None:
        self.errors = errors
        super().__init__("\n".join(str(error) for error in errors))


class StartError(WsgimasterError):
    """The machine refuses what the configuration asks for: an address in use, a missing right, a full disk."""


class AppLoadError(WsgimasterError):
    """The application could not be loaded; the cause is chained."""


class RequestTimeout(BaseException):
    """Raised inside a request that has run for longer than `harakiri`, under `harakiri-graceful-timeout`.

    A BaseException, so that `except Exception` doesn't keep the request alive: `finally` and error reporters run, the
    client gets 504, and the worker lives on. Whoever swallows it is killed after the timeout.
    """
