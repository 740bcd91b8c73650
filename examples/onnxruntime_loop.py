"""An exported policy without this package: python examples/onnxruntime_loop.py policy Hopper-v5

decision-seq export runs/dm --to onnx --out policy
"""

import json
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import onnxruntime

folder, env_id = sys.argv[1], sys.argv[2]
policy = json.loads(Path(folder, "policy.json").read_text())
session = onnxruntime.InferenceSession(f"{folder}/{policy['file']}")
sizes = {given["name"]: given["shape"][1:] for given in policy["inputs"]}

env = gym.make(env_id)
observation, _ = env.reset(seed=0)
state = np.zeros((1, *sizes["state"]), np.float32)  # zeros: an episode begins
target = np.array([policy["target_return"]], np.float32)
reward, total, ended = 0.0, 0.0, False
while not ended:
    seen = np.asarray(observation, np.float32)[None]
    given = {"observation": seen, "reward": np.array([reward], np.float32)}
    given |= {"target_return": target, "state": state}
    action, _, state = session.run(None, given)
    observation, reward, terminated, truncated, _ = env.step(action[0])
    total += float(reward)
    ended = terminated or truncated
print(f"return {total:.1f}, asked for {target[0]:g}")
