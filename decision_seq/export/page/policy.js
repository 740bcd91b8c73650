// An exported policy: one step from (observation, reward, target return, state) to
// (action, next state); see policy.json beside it.

import * as ort from "./lib/ort.js";

export class Policy {
  // folder: of policy.onnx and policy.json; wasm: ONNX Runtime's, bytes
  static async load(folder, wasm) {
    ort.env.wasm.wasmBinary = wasm;
    ort.env.wasm.numThreads = 1; // more would need cross-origin isolation, a matter of the server
    const described = await (await fetch(`${folder}/policy.json`)).json();
    const session = await ort.InferenceSession.create(`${folder}/${described.file}`, {
      executionProviders: ["wasm"],
    });
    return new Policy(session, described);
  }

  constructor(session, described) {
    this.session = session;
    const state = described.inputs.find((input) => input.name == "state");
    this.stateShape = [1, ...state.shape.slice(1)]; // [1, N]
    this.reset();
  }

  // An episode begins: a state of zeros.
  reset() {
    const size = this.stateShape.reduce((product, side) => product * side, 1);
    this.state = new ort.Tensor("float32", new Float32Array(size), this.stateShape);
    this.spent = []; // milliseconds of the last steps
  }

  // observation [S], reward of the step before, target return -> action [A], in the
  // environment's units. The return-to-go is counted inside.
  async act(observation, reward, target) {
    const one = (number) => new ort.Tensor("float32", [number], [1]);
    const began = performance.now();
    const given = {
      observation: new ort.Tensor("float32", observation, [1, observation.length]),
      reward: one(reward),
      target_return: one(target),
      state: this.state,
    };
    const made = await this.session.run(given);
    this.spent.push(performance.now() - began);
    if (this.spent.length > 100) this.spent.shift();
    this.state = made.next_state;
    return made.action.data;
  }

  // Mean milliseconds of the last 100 steps.
  get milliseconds() {
    return this.spent.reduce((sum, ms) => sum + ms, 0) / Math.max(1, this.spent.length);
  }
}
