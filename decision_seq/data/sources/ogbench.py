"""OGBench's .npz files (arXiv:2410.20092): observations, actions, terminals, and no rewards.

`terminals` mark a trajectory's last step, at which its time ran out: nothing ends an episode. The
name says which environment it is: pointmaze-medium-navigate-v0, or ...-v0-val.npz.
"""

from __future__ import annotations

import re
from pathlib import Path

# behaviour in a dataset's name, which its environment's has not
_NAME = re.compile(
    r"((?:visual-)?(?:point|ant|humanoid)maze-\w+|(?:visual-)?antsoccer-\w+|(?:visual-)?cube-\w+"
    r"|(?:visual-)?scene|(?:visual-)?puzzle-\w+|powderworld-\w+)"
    r"-(?:navigate|stitch|explore|play|noisy)-v(\d+)(?:-val)?"
)


def environment(path: Path) -> dict[str, str]:
    """`env_id` of the file's environment, as far as its name tells."""
    found = _NAME.fullmatch(path.stem)
    return {"env_id": f"{found[1]}-v{found[2]}"} if found else {}
