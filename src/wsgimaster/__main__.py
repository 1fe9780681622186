"""python -m wsgimaster"""

from wsgimaster.cli import main

main()
