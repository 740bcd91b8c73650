"""An entry of zoo/ from a trained run: python scripts/make_zoo.py RUN zoo/NAME [NOTE]

The last checkpoint, its matrices in float16, evaluated as rounded in both contexts. The note goes
into the card.
"""

import json
import sys
from pathlib import Path

from decision_seq.agents import load_agent
from decision_seq.eval.rollout.protocol import evaluate_agent, evaluation_config
from decision_seq.eval.rows import read_rows
from decision_seq.export.share import save_pretrained, write_card
from decision_seq.files import write_text
from decision_seq.run_folder import agent_path, read_index

run, out, note = Path(sys.argv[1]), Path(sys.argv[2]), " ".join(sys.argv[3:])
save_pretrained(run, out, half=True)
step = read_index(out)["last"]["step"]
for context in ("window", "stream"):
    config = evaluation_config(out, context=context)
    evaluate_agent(load_agent(agent_path(out)), config, out, step, "last")
rows = [row | {"ood": None} for row in read_rows(out)]  # a number a step is much to download

write_text(out / "episodes.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
write_card(out, f"zoo/{out.name}", note)
