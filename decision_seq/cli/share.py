"""`decision-seq share` and `decision-seq push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from decision_seq.cli.arguments import Run


def share(
    run: Run,
    out: Path,
    checkpoint: Literal["last", "validation"] = "last",
    half: FlagCreatePairsOff[bool] = False,
) -> None:
    """Make one folder of a trained run to give away: weights, config, rows and a model card.

    Args:
        run: run folder.
        out: folder to make.
        checkpoint: the last, or the one with the lowest validation loss.
        half: matrices in float16; evaluate the folder afterwards, since rows are left out.
    """
    from decision_seq.export.share import save_pretrained
    from decision_seq.shipped import run_at

    save_pretrained(run_at(run), out, checkpoint, half)
    print(f"{out}: made; look at {out / 'README.md'} before you give it away")


def push(
    run: Run,
    repository: Annotated[Positional[str], arg(metavar="USER/NAME")],
    checkpoint: Literal["last", "validation"] = "last",
    private: FlagCreatePairsOff[bool] = False,
) -> None:
    """Upload a trained run to the Hugging Face hub, as `share` makes it. Log in first (`hf auth
    login`).

    Args:
        run: run folder, or a folder that `share` made.
        repository: USER/NAME.
        checkpoint: the last, or the one with the lowest validation loss.
        private: for nobody else.
    """
    from decision_seq.export.share import push as upload
    from decision_seq.shipped import run_at

    print(f"pushed to {upload(run_at(run), repository, checkpoint, private)}")
