"""`python -m decision_seq` is `decision-seq`."""

from decision_seq.cli import main

main()
