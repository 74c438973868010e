"""What every error of axbake's has in common."""


class AxbakeError(Exception):
    """An error that the user can act on.

    Its text says the value that was found, what was expected, and what to do. A job that meets one prints that text
    alone; the traceback goes to the job's log.
    """
