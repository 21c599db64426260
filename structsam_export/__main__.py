"""`python -m structsam_export`."""

from structsam_export.cli import main

main()
