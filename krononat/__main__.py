"""`python -m krononat` is `krononat`."""

from krononat.cli import main

main()
