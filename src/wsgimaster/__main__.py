"""python -m wsgimaster"""

import sys

if not sys.flags.safe_path:
    # Python puts the current directory first: a signal.py of the application's would be imported instead of the
    # library's, here and as root. The zygote adds it for the application.
    del sys.path[0]

from wsgimaster.cli import main

main()
