"""wsgimaster: a drop-in successor to uWSGI for Python WSGI applications."""

__version__ = "0.1.0"
